"""What a work directory claims is computed again, and what does not hold is named."""

import dataclasses
import json
import shutil

import fault_programs
import numpy as np
import pytest
from tiny_runs import fingerprint

from dfkd_jax import api
from dfkd_jax.reporting import figures
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


def _distil(checkpoint, workdir):
    api.distill(
        api.load(checkpoint),
        "lenet5_half_dafl",
        workdir=workdir,
        synthesis={
            "num_images": 20,
            "images_per_device": 10,
            "num_steps": 2,
            "steps_per_call": 2,
        },
        distillation={"num_steps": 4, "batch_size": 8, "warmup_steps": 0},
    )


@pytest.mark.full
def test_a_student_made_in_python(lab, finished_workdir, tmp_path):
    """Of a teacher that is of this package, but not the usual one."""
    without_pictures = {figures.SWITCH: "off"}
    command = lab.runner.call(_distil, finished_workdir, tmp_path, **without_pictures)
    assert command.wait() == 0, command.stderr
    status, found = verify(lab, tmp_path)
    assert (status, found["teacher"][0]) == (0, "holds")
    results = files.read_object(tmp_path / "results.json")
    assert results["teacher"]["network"] == "lenet5_half"


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


def test_accuracy_of_the_validation_part(lab, evaluated, workdir):
    data = {"data__dataset": "", "data__file": evaluated / "noise.npz"}
    assert lab.start(workdir, **data, data__split="validation").wait() == 0
    status, found = verify(lab, workdir)
    assert status == 0
    claimed = files.read_object(workdir / "results.json")["student"]
    assert found["validation accuracy of the student"] == (
        "holds",
        f"{claimed['validation_accuracy']:.4}",
    )
    change(workdir / "results.json", student__validation_accuracy=0.999)
    status, found = verify(lab, workdir)
    assert status == 1
    assert found["validation accuracy of the student"][0] == "DIFFERS"


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


def another_network(workdir):
    """The student as if its network were one of the user's own."""
    path = workdir / "student.safetensors"
    variables, description = weights.load(path)
    own = dataclasses.replace(description, network="nets:Mine")
    weights.save(path, variables, own)


def without_checksum(workdir):
    path = workdir / "results.json"
    files.write_json(path, files.read_object(path))


@pytest.mark.parametrize(
    ("damage", "what", "verdict", "phrase"),
    [
        (without_checksum, "results.json", "not checked", "it has no checksum"),
        (
            lambda w: (w / "student.safetensors").unlink(),
            "student",
            "DIFFERS",
            "is not there",
        ),
        (
            lambda w: (w / "results.json").unlink(),
            "results",
            "not checked",
            "the run is not finished",
        ),
        (
            lambda w: shutil.rmtree(w / "transfer_set"),
            "transfer set",
            "not checked",
            "is not there",
        ),
        (
            lambda w: flip(w / "transfer_set" / "manifest.json", 20),
            "transfer set",
            "DIFFERS",
            "manifest.json",
        ),
        (
            another_network,
            "student's network",
            "not checked",
            "say --module=nets:Mine if you trust that code",
        ),
        (
            lambda w: change(w / "run.json", config__teacher__module="nets:Mine"),
            "teacher",
            "not checked",
            "say --teacher_module=nets:Mine if you trust that code",
        ),
        (
            lambda w: change(w / "run.json", config__teacher__weights="/no/such"),
            "teacher",
            "not checked",
            "/no/such is not there: say where with --teacher",
        ),
        (
            lambda w: change(w / "run.json", config__teacher={}),
            "teacher",
            "not checked",
            "the run names none",
        ),
        (
            lambda w: change(w / "results.json", teacher__sha256=None),
            "teacher in results",
            "not checked",
            "no claim",
        ),
        (lambda w: flip(w / "run.json", 40), "run.json", "DIFFERS", "run.json"),
    ],
)
def test_what_cannot_be_checked_is_named(lab, workdir, damage, what, verdict, phrase):
    damage(workdir)
    _, found = verify(lab, workdir)
    assert found[what][0] == verdict
    assert phrase in found[what][1]


def test_teacher_that_was_moved(lab, workdir, tmp_path):
    moved = tmp_path / "moved.safetensors"
    shutil.copy(teachers.find("mnist_lenet5"), moved)
    change(workdir / "run.json", config__teacher__weights="/no/such")
    _, found = verify(lab, workdir, f"--teacher={moved}")
    assert found["teacher"][0] == "holds"
    assert found["test accuracy of the teacher"][0] == "holds"
    moved.write_bytes(b"damaged")
    _, found = verify(lab, workdir, f"--teacher={moved}")
    assert found["teacher"][0] == "DIFFERS"
    assert "damaged" in found["teacher"][1]


def test_teacher_training(lab, tmp_path):
    """What it claims, and that it makes nothing twice but what is damaged."""
    workdir = tmp_path / "run"
    settings = ("cpu_devices=2", "num_epochs=1", "batch_size=32", "warmup_steps=2")
    arguments = [
        "--config=configs/teachers/mnist.py",
        f"--workdir={workdir}",
        *(f"--config.{setting}" for setting in settings),
    ]
    train = lab.runner.call(fault_programs.train_teacher, arguments)
    assert train.wait() == 0, train.stderr
    # Its real images were made up; those of MNIST are not here.
    status, found = verify(lab, workdir, f"--data_dir={lab.empty}")
    assert status == 3
    assert found.pop("test accuracy")[0] == "not checked"
    assert {verdict for verdict, _ in found.values()} == {"holds"}
    assert set(found) >= {"run.json", "teacher.json", "config", "teacher"}

    before = files.read_object(workdir / "teacher.json")
    again = lab.runner.call(fault_programs.train_teacher, arguments)
    assert again.wait() == 0, again.stderr
    assert f"Finished before: {workdir / 'teacher.safetensors'}" in again.stdout
    flip(workdir / "teacher.safetensors")
    status, found = verify(lab, workdir, f"--data_dir={lab.empty}")
    assert (status, found["teacher"][0]) == (1, "DIFFERS")
    again = lab.runner.call(fault_programs.train_teacher, arguments)
    assert again.wait() == 0, again.stderr
    assert "is missing or damaged: making it again" in again.stderr
    assert files.read_object(workdir / "teacher.json")["sha256"] == before["sha256"]


def test_flags_that_are_wrong(lab, workdir):
    (none, line), (unknown, suggestion), (idle, reason) = lab.errors(
        lab.runner.start("verify"),
        lab.runner.start("verify", workdir, "--dataset=mnits"),
        lab.runner.start("verify", workdir, "--data_file=x.npz", "--raw_dir=x"),
    )
    assert (none, unknown, idle) == (2, 2, 2)
    assert "--raw_dir has no effect with --data_file" in reason
    assert "Name a work directory" in line
    assert 'Did you mean "mnist"' in suggestion
