"""What a work directory claims is computed again, and what does not hold is named."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import fingerprint

from dfkd_jax.runtime import files, weights
from dfkd_jax.teachers import weights as teachers


@pytest.fixture(scope="module")
def evaluated(lab, finished_workdir, tmp_path_factory):
    """A finished run, evaluated on a test set of noise, and that test set."""
    folder = tmp_path_factory.mktemp("evaluated")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (200, 28, 28, 1), np.uint8)
    np.savez(folder / "noise.npz", images=images, labels=np.arange(200) % 10)
    workdir = shutil.copytree(finished_workdir, folder / "run")
    data = {"data__dataset": "", "data__file": folder / "noise.npz"}
    assert lab.start(workdir, **data).wait() == 0
    return folder


@pytest.fixture
def workdir(evaluated, tmp_path):
    return shutil.copytree(evaluated / "run", tmp_path / "run")


def verify(lab, workdir, *flags):
    """Exit status, and what is said of each thing."""
    command = lab.runner.start("verify", workdir, *flags)
    status = command.wait()
    assert "Traceback" not in command.stderr, command.stderr
    found = {}
    for line in command.stdout.splitlines():
        for verdict in ("holds", "DIFFERS", "not checked"):
            if line.startswith(f"  {verdict} "):
                what, _, detail = line.removeprefix(f"  {verdict}").partition(": ")
                found[what.strip()] = (verdict, detail)
    return status, found


def change(path, **values):
    """Alters a record so that its own checksum holds."""
    content = files.read_object(path)
    for key, value in values.items():
        inner = content
        *groups, last = key.split("__")
        for group in groups:
            inner = inner[group]
        inner[last] = value
    files.write_json(path, content, sealed=True)


def test_all_holds_and_nothing_is_changed(lab, workdir):
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in workdir.rglob("*")
        if path.is_file()
    }
    status, found = verify(lab, workdir)
    assert status == 0
    assert {verdict for verdict, _ in found.values()} == {"holds"}
    assert set(found) >= {
        "run.json",
        "results.json",
        "config",
        "teacher",
        "shards",
        "transfer set",
        "student",
        "run of the student",
        "checkpoint student/20",
        "test set",
        "test accuracy of the student",
        "test accuracy of the teacher",
    }
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == {path: time for path, (_, time) in before.items()}


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def another_student(workdir):
    path = workdir / "student.safetensors"
    variables, description = weights.load(path)
    variables["params"]["output"]["bias"][0] += 1
    weights.save(path, variables, description)


@pytest.mark.parametrize(
    ("damage", "culprits"),
    [
        (lambda w: flip(w / "transfer_set" / "labels-00002.npy"), {"shards"}),
        (
            lambda w: (w / "transfer_set" / "images-00001.npy").unlink(),
            {"shards", "transfer set"},
        ),
        (lambda w: flip(w / "student.safetensors"), {"student"}),
        (another_student, {"student", "test accuracy of the student"}),
        (lambda w: flip(w / "results.json", 40), {"results.json"}),
        (
            lambda w: change(w / "results.json", student__test_accuracy=0.9857),
            {"test accuracy of the student"},
        ),
        (
            lambda w: change(w / "results.json", config__seed=3),
            {"config in results"},
        ),
        (
            lambda w: change(w / "results.json", teacher__sha256="0" * 64),
            {"teacher in results"},
        ),
        (lambda w: flip(next(w.glob("student/20/**/d/*"))), {"checkpoint student/20"}),
    ],
)
def test_what_does_not_hold(lab, workdir, damage, culprits):
    damage(workdir)
    status, found = verify(lab, workdir)
    assert status == 1
    differing = {what for what, (verdict, _) in found.items() if verdict == "DIFFERS"}
    assert differing >= culprits - {"test accuracy of the student"}
    assert differing <= culprits


def test_without_the_test_set(lab, workdir, evaluated):
    change(workdir / "results.json", dataset="/no/such/file.npz")
    status, found = verify(lab, workdir)
    assert status == 3
    assert found["test accuracy"][0] == "not checked"
    data = f"--data_file={evaluated / 'noise.npz'}"
    status, found = verify(lab, workdir, data)
    assert (status, found["test accuracy of the student"][0]) == (0, "holds")


def test_an_unfinished_run_and_none(lab, finished_workdir, tmp_path):
    before = fingerprint(finished_workdir)
    status, found = verify(lab, finished_workdir)
    assert status == 0
    assert found["test accuracy"] == ("not checked", "the run was not evaluated")
    assert fingerprint(finished_workdir) == before
    [(status, line)] = lab.errors(lab.runner.start("verify", tmp_path))
    assert status == 2
    assert "is no work directory" in line


def test_code_of_strangers_is_not_imported(lab, workdir):
    content = files.read_object(workdir / "run.json")
    content["config"]["teacher"]["module"] = "antigravity:Net"
    files.write_json(workdir / "run.json", content, sealed=True)
    _, found = verify(lab, workdir)
    assert found["teacher"][0] == "not checked"
    assert "--teacher_module=antigravity:Net" in found["teacher"][1]


def test_results_say_what_was_used(workdir):
    results = json.loads((workdir / "results.json").read_text())
    settings = files.read_object(workdir / "run.json")["config"]
    assert results["config_sha256"] == files.digest(settings)
    assert len(results["source"]["sha256"]) == len(results["test_set_sha256"]) == 64
    assert (
        results["teacher"]["sha256"]
        == teachers.load(
            teachers.NetworkConfig(network="lenet5", weights="mnist_lenet5")
        ).sha256
    )
    # A student of 20 steps on 40 images knows next to nothing, and that is said.
    assert any("hardly better than chance" in text for text in results["warnings"])
