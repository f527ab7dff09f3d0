"""The student is made without real data, and evaluated once there is some."""

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import command_runner
import numpy as np
import pytest
import toy
from tiny_runs import identity, read_transfer_set, shards

from dfkd_jax.data import held_out, tfds
from dfkd_jax.reporting import figures

WAYS_TO_DATA = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
)


def _run_and_forbid_data(arguments, workdir, data_dir):
    """`main`, with every way to real data closed until the student is made.

    Real data is what begins with `data_dir`: a folder, or a file of the user's own.
    """
    loads = tfds.load, held_out._read_file
    evaluating, refused, opened = [], [], set()

    def hook(event, args):
        if evaluating:
            return
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            opened.add(os.path.realpath(os.fsdecode(args[0])))
        if event == "subprocess.Popen" and args[0] == "lscpu":
            return  # NumPy 2.0 asks for vector instructions where it is imported.
        if event in WAYS_TO_DATA or (
            event in ("open", "os.listdir", "os.scandir")
            and str(args[0]).startswith(data_dir)
        ):
            refused.append(f"{event} {args[0]}")
            raise RuntimeError(f"Data before evaluation: {event} {args[0]}")

    def evaluate_only(load):
        def late(*args, **kwargs):
            if not pathlib.Path(workdir, "student.safetensors").is_file():
                refused.append(load.__name__)
            evaluating.append(True)
            return load(*args, **kwargs)

        return late

    tfds.load, held_out._read_file = map(evaluate_only, loads)
    tfds.preflight = lambda *args, **kwargs: tfds.Availability(True, True, "")
    platform.platform()  # Asks uname, once.
    sys.addaudithook(hook)
    try:
        command_runner.run_module("main", arguments)
    finally:
        print("refused:", refused, "evaluated:", evaluating)
        print("opened:", json.dumps(sorted(opened)))


def _is_white_noise(results, workdir):
    images, _ = read_transfer_set(workdir)
    np.testing.assert_allclose(images.std(), 1, atol=0.03)
    np.testing.assert_allclose(images.mean(), 0, atol=0.03)


def _fills_the_pixel_range(results, workdir):
    pixels = read_transfer_set(workdir)[0] * 0.3081 + 0.1307
    np.testing.assert_allclose(pixels.min((1, 2, 3)), np.zeros(40), atol=1e-6)
    np.testing.assert_allclose(pixels.max((1, 2, 3)), np.ones(40), atol=1e-6)


def _is_small(results, workdir):
    assert results["student"]["parameters"] == 15_738


def _saw_two_batches_a_step(results, workdir):
    assert results["num_pseudo_samples"] == 20 * 8 * 2


def _asked_for_no_more(results, workdir):
    pass


@pytest.mark.parametrize(
    ("variant", "check"),
    [
        ("smoke", _asked_for_no_more),
        pytest.param("half_b", _is_small, marks=pytest.mark.full),
        pytest.param("paper", _asked_for_no_more, marks=pytest.mark.full),
        pytest.param("zskd", _fills_the_pixel_range, marks=pytest.mark.full),
        pytest.param("noise", _is_white_noise, marks=pytest.mark.full),
        pytest.param("dafl", _asked_for_no_more, marks=pytest.mark.full),
        pytest.param("dfad", _saw_two_batches_a_step, marks=pytest.mark.full),
    ],
)
def test_no_real_data_before_evaluation(lab, prepared_data, tmp_path, variant, check):
    workdir = tmp_path / "run"
    arguments = lab.arguments(workdir, variant=variant, data__dir=prepared_data)
    command = lab.runner.call(
        _run_and_forbid_data, arguments, str(workdir), str(prepared_data)
    )
    assert command.wait() == 0, command.stderr
    assert "refused: [] evaluated: [True]" in command.stdout
    results = json.loads((workdir / "results.json").read_text())
    assert results["experiment"] == f"mnist_{variant}"
    assert results["data_free"] is True
    assert "real_data" not in results
    assert results["student"]["test_accuracy"] is not None
    check(results, workdir)
    _check_opened(command.stdout, workdir, "mnist_lenet5.safetensors")
    assert "transfer_set_sha256" in results


def test_a_test_set_of_ones_own_is_read_for_evaluation_alone(toys, tmp_path):
    workdir, file = tmp_path / "run", toy.write_test_set(tmp_path / "own.npz")
    arguments = toys.arguments(workdir, data__file=file)
    command = toys.runner.call(_run_and_forbid_data, arguments, str(workdir), str(file))
    assert command.wait() == 0, command.stderr
    assert "refused: [] evaluated: [True]" in command.stdout
    results = json.loads((workdir / "results.json").read_text())
    assert (results["data_free"], results["dataset"]) == (True, str(file))
    assert results["student"]["evaluation"]["num_examples"] == 50
    _check_opened(command.stdout, workdir, "toy.safetensors")


# What images come in, whatever they are called.
PICTURES = r"record|ubyte|\.(npy|npz|gz|zip|tar|tgz|png|jpe?g|csv|h5|parquet|bin|mat)$"


def _check_opened(stdout, workdir, teacher):
    """Up to evaluation only code and the run's own files were opened."""
    [line] = [x for x in stdout.splitlines() if x.startswith("opened: ")]
    opened = json.loads(line.removeprefix("opened: "))
    own = [path for path in opened if path.startswith(str(workdir))]
    assert any(path.endswith(".npy") or "shards" in path for path in own)
    others = sorted(set(opened) - set(own))
    assert any(path.endswith(teacher) for path in others)
    names = [os.path.basename(path) for path in others]
    names = [
        name for name in names if not re.fullmatch(r"python\d+\.zip|.*\.(py|pyc)", name)
    ]
    assert [name for name in names if re.search(PICTURES, name)] == []


def test_student_first_evaluation_when_there_is_data(lab, prepared_data, tmp_path):
    workdir, data_dir = tmp_path / "run", tmp_path / "data"
    data_dir.mkdir()
    arguments = lab.arguments(workdir, data__dir=data_dir)

    # As a user starts it; it speaks before it works.
    process = subprocess.Popen(
        [sys.executable, "-m", "dfkd_jax.main", *arguments],
        cwd=command_runner.REPOSITORY,
        env=lab.runner.environment | {figures.SWITCH: "off"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    first_line = process.stderr.readline()
    assert not workdir.exists()
    assert first_line.startswith("WARNING: The held-out test set cannot be had: ")
    assert "The student will be made all the same" in first_line
    rest = process.communicate(timeout=command_runner.PATIENCE)[1]
    assert process.returncode == 3, rest
    assert rest.splitlines()[-1].startswith("WARNING: The student is made")
    assert "Traceback" not in rest
    results = json.loads((workdir / "results.json").read_text())
    assert results["student"]["test_accuracy"] is None
    assert results["teacher"]["test_accuracy"] is None
    before = shards(workdir), identity(workdir / "student.safetensors")
    assert len(before[0]) == 8

    shutil.copytree(prepared_data, data_dir, dirs_exist_ok=True)
    command = lab.runner.start("main", *arguments)
    assert command.wait() == 0, command.stderr
    assert "Synthesis: done before, 40 pseudo samples\n" in command.stdout
    assert "Distillation: done before\n" in command.stdout
    assert (shards(workdir), identity(workdir / "student.safetensors")) == before
    _check_contract(json.loads((workdir / "results.json").read_text()))

    before = identity(workdir / "results.json")
    command = lab.runner.start("main", *arguments)
    assert command.wait() == 0, command.stderr
    assert identity(workdir / "results.json") == before
    assert "test accuracy" in command.stdout

    # The set may lie elsewhere by then, or be gone.
    shutil.rmtree(data_dir)
    assert lab.start(workdir).wait() == 0

    output = tmp_path / "figures.json"
    command = lab.runner.start(
        "evaluate",
        f"--checkpoint={workdir}",
        f"--data_dir={prepared_data}",
        f"--output={output}",
    )
    assert command.wait() == 0, command.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert (
        json.loads(output.read_text())["accuracy"]
        == results["student"]["test_accuracy"]
    )


def _check_contract(results):
    assert results["experiment"] == "mnist_smoke"
    assert results["seed"] == 0
    assert results["data_free"] is True
    # All images are the same gray: both networks call all of them by one digit.
    shares = {count / 10_000 for count in (980, 1135, 1032, 1010, 982)}
    shares |= {count / 10_000 for count in (892, 958, 1028, 974, 1009)}
    for role in ("teacher", "student"):
        assert results[role]["test_accuracy"] in shares
    assert results["student"]["parameters"] == 35_820
    stages = ("prepare", "synthesis", "distillation", "evaluation")
    assert all(results["seconds"][stage] > 0 for stage in stages)
    assert results["num_pseudo_samples"] == 40
    assert results["machine"]["num_devices"] == 2
    assert results["machine"]["cpu_cores"] == os.cpu_count()
    assert results["versions"].keys() >= {"python", "dfkd_jax", "jax", "numpy"}
    assert results["command"].startswith("python -m dfkd_jax.main --config=configs/")
    assert "--config.synthesis.num_images=40" in results["command"]
