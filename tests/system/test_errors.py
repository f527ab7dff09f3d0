"""What a user gets wrong: one line that says what, and how to go on."""

import os
import shutil
import signal
import subprocess
import sys
import time

import command_runner
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_runs import checkpoint_steps, fingerprint, shards

from dfkd_jax.runtime import weights
from dfkd_jax.teachers import weights as teachers

CONFIG = "--config=configs/mnist.py:smoke"
OTHER_STUDENT = (
    "--config.student.network=resnet10_narrow",
    "--config.distillation.start=teacher",
)


def _assert_error(lab, command, status, *phrases):
    [(found, line)] = lab.errors(command)
    assert found == status, line
    for phrase in phrases:
        assert str(phrase) in line


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        ([], ["--config=configs/mnist.py"]),
        (["--config=configs/mnst.py"], ["mnst.py", 'Did you mean "configs/mnist.py"?']),
        (["--config=/no/such/file.py"], ["/no/such/file.py", "configs/mnist.py"]),
        (["--config=configs/mnist.py:smoek"], ["'smoek'", 'Did you mean "smoke"?']),
        (
            [CONFIG, "--config.synthesis.num_image=3"],
            ["config.synthesis.num_image ", 'Did you mean "num_images"?'],
        ),
        ([CONFIG, "--config.syntesis.num_images=3"], ["syntesis", '"synthesis"?']),
        ([CONFIG, "--config.no_such_thing=3"], ["config.no_such_thing "]),
        ([CONFIG, "--workdri=x"], ["workdri", "workdir"]),
        ([CONFIG, "runs"], ["'runs'"]),
        ([CONFIG, "--config.seed=abc"], ["config.seed=abc", "a whole number"]),
        ([CONFIG, "--config.seed=-1"], ["config.seed=-1", "from 0"]),
        (
            [CONFIG, "--config.synthesis.learning_rate=fast"],
            ["config.synthesis.learning_rate=fast", "a number"],
        ),
        (
            [CONFIG, "--config.synthesis.learning_rate=nan"],
            ["config.synthesis.learning_rate=nan", "finite"],
        ),
        (
            [CONFIG, "--config.distillation.batch_size=0"],
            ["config.distillation.batch_size=0", "at least 1"],
        ),
        (
            [CONFIG, "--config.synthesis.num_images=450"],
            ["config.synthesis.num_images=450", "multiple", "images_per_device=100"],
        ),
        (
            [CONFIG, "--config.distillation.loss=hintn"],
            ["config.distillation.loss='hintn'", "hinton", "Did you mean"],
        ),
        (
            [CONFIG, "--config.student.network=lenet5_hlaf"],
            ["config.student.network='lenet5_hlaf'", '"lenet5_half"'],
        ),
        (
            [CONFIG, "--config.targets.feature_layer=dense_3"],
            ["config.targets.feature_layer='dense_3'", "dense_2"],
        ),
        (
            [CONFIG, "--config.synthesis.batch_norm=3"],
            ["config.synthesis.batch_norm=3.0", "no BatchNorm", "Set it to 0"],
        ),
        ([CONFIG, "--config.data.dataset=mnits"], ["mnits", '"mnist"']),
        (
            [
                CONFIG,
                "--config.cpu_devices=2",
                "--config.distillation.batch_size=7",
                "--config.distillation.warmup_steps=0",
            ],
            ["config.distillation.batch_size=7", "2 devices"],
        ),
        (
            [CONFIG, *OTHER_STUDENT],
            ["config.distillation.start='teacher'", "start='random'"],
        ),
    ],
)
def test_settings(lab, tmp_path, arguments, phrases):
    """Refused before anything is written, so that the remedy is not refused, too."""
    workdir = tmp_path / "run"
    command = lab.runner.start("main", f"--workdir={workdir}", *arguments)
    _assert_error(lab, command, 2, *phrases)
    assert not workdir.exists()


@pytest.mark.parametrize("variant", ["kd", "metadata"])
def test_settings_where_real_data_is_read(
    lab, prepared_training_data, tmp_path, variant
):
    command = lab.runner.start(
        "main",
        f"--config=configs/mnist.py:{variant}",
        f"--config.data.dir={prepared_training_data}",
        f"--workdir={tmp_path / 'run'}",
        *OTHER_STUDENT,
    )
    _assert_error(lab, command, 2, "config.distillation.start='teacher'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], [CONFIG, "--config.seed=x"], [CONFIG, "--config.nothing=1"]],
)
def test_settings_are_checked_before_jax_is_imported(lab, arguments):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('jax' in sys.modules))\n"
        "sys.argv[0] = 'main'\n"
        "runpy.run_module('dfkd_jax.main', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=lab.runner.environment,
        cwd=command_runner.REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "False"
    if arguments == ["--help"]:
        assert done.returncode == 0
        for flag in ("--config", "--workdir", "Exit status"):
            assert flag in done.stdout
    else:
        assert done.returncode == 2
        assert done.stderr.startswith("ERROR: ")


def _write_weights(path, kind):
    shipped = teachers.find("mnist_lenet5")
    if kind == "truncated":
        path.write_bytes(shipped.read_bytes()[:-1_000])
    elif kind == "empty":
        path.touch()
    elif kind == "foreign":
        save_file({"kernel": np.ones(3, np.float32)}, path)
    elif kind == "NaN":
        variables, description = weights.load(shipped)
        variables["params"]["dense_1"]["bias"][3] = np.nan
        weights.save(path, variables, description)
    elif kind == "huge":
        variables, description = weights.load(shipped)
        variables["params"]["output"]["kernel"] *= 1e38
        weights.save(path, variables, description)


@pytest.mark.parametrize(
    ("kind", "phrases"),
    [
        ("missing", ["mnist_lenet5"]),
        ("truncated", ["damaged", "again"]),
        ("empty", ["damaged", "again"]),
        ("NaN", ["params/dense_1/bias", "NaN"]),
        ("huge", ["answers with NaN or infinity"]),
    ],
)
def test_teacher_weights(lab, tmp_path, kind, phrases):
    path = tmp_path / "weights.safetensors"
    _write_weights(path, kind)
    command = lab.start(tmp_path / "run", teacher__weights=path)
    _assert_error(lab, command, 1, path, *phrases)


def test_teacher_weights_that_say_nothing_of_the_network(lab, tmp_path):
    path = tmp_path / "weights.safetensors"
    _write_weights(path, "foreign")
    command = lab.start(tmp_path / "run", teacher__weights=path)
    _assert_error(lab, command, 2, path, "config.teacher.image_shape is missing")


def test_teacher_weights_by_a_wrong_name(lab, tmp_path):
    command = lab.start(tmp_path / "run", teacher__weights="mnist_lenet")
    _assert_error(lab, command, 1, "'mnist_lenet'", 'Did you mean "mnist_lenet5"?')


def test_teacher_weights_of_another_network(lab, tmp_path):
    command = lab.start(tmp_path / "run", teacher__network="lenet5_half")
    _assert_error(
        lab,
        command,
        1,
        "mnist_lenet5.safetensors",
        "'lenet5_half'",
        "conv_1/kernel is (5, 5, 1, 6) instead of (5, 5, 1, 3)",
    )


def test_teacher_of_another_data_set(lab, tmp_path):
    command = lab.start(tmp_path / "run", data__dataset="cifar10")
    _assert_error(lab, command, 1, "(28, 28, 1)", "(32, 32, 3)", "config.data.dataset")


def test_teacher_training_without_data(lab, tmp_path):
    command = lab.runner.start(
        "main",
        "--config=configs/teachers/mnist.py",
        f"--config.data.dir={lab.empty}",
        f"--workdir={tmp_path / 'run'}",
    )
    _assert_error(lab, command, 3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        (
            {"synthesis__num_images": 60},
            ["config.synthesis.num_images was 40 and is now 60"],
        ),
        ({"seed": 1}, ["config.seed was 0 and is now 1"]),
        ({"student__arguments__width": 5}, ["width was 6 and is now 5"]),
    ],
)
def test_workdir_of_other_settings(toys, finished_toy, changes, phrases):
    before = fingerprint(finished_toy)
    command = toys.start(finished_toy, **changes)
    _assert_error(toys, command, 1, finished_toy, "--workdir", *phrases)
    assert fingerprint(finished_toy) == before


def test_workdir_of_another_teacher(lab, finished_workdir, tmp_path):
    """The same name, other weights: a teacher that was trained again."""
    path = tmp_path / "teacher.safetensors"
    shutil.copy(teachers.find("mnist_lenet5"), path)
    command = lab.start(tmp_path / "run", teacher__weights=path)
    command.kill_when(lambda: (tmp_path / "run" / "run.json").exists())
    variables, description = weights.load(path)
    variables["params"]["dense_1"]["bias"][3] += 0.1
    weights.save(path, variables, description)
    command = lab.start(tmp_path / "run", teacher__weights=path)
    _assert_error(lab, command, 1, tmp_path / "run", "teacher_sha256 was")


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_workdir_that_cannot_be(lab, tmp_path, place):
    (tmp_path / "file").touch()
    command = lab.start(tmp_path / place)
    _assert_error(lab, command, 1, tmp_path / place, "--workdir")


@pytest.mark.parametrize(
    "name", ["run.json", "transfer_set/manifest.json", "student.safetensors"]
)
def test_damaged_file_in_the_workdir(toys, toy_copy, name):
    path = toy_copy / name
    path.write_bytes(path.read_bytes()[:-20])
    _assert_error(toys, toys.start(toy_copy), 1, path)


@pytest.mark.full
@pytest.mark.parametrize("damage", ["cut", "emptied", "metadata", "gone"])
def test_damaged_checkpoint(toys, toy_copy, finished_toy, damage):
    (toy_copy / "student.safetensors").unlink()
    folder = toy_copy / "student" / "20"
    largest = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    if damage == "cut":
        os.truncate(largest, largest.stat().st_size // 2)
    elif damage == "emptied":
        for path in folder.rglob("*"):
            if path.is_file():
                os.truncate(path, 0)
    elif damage == "metadata":
        os.truncate(folder / "_CHECKPOINT_METADATA", 10)
    else:
        shutil.rmtree(folder / "state")
    command = toys.start(toy_copy)
    if damage == "metadata" and command.wait() == toys.done:
        return  # Orbax did without it.
    _assert_error(toys, command, 1, folder, "delete that folder")
    if damage == "cut":
        shutil.rmtree(folder)
        toys.finish(toy_copy)
        assert fingerprint(toy_copy) == fingerprint(finished_toy)


def test_two_processes(toys, finished_toy, tmp_path):
    workdir = tmp_path / "run"
    first = toys.start(workdir)
    while not (workdir / "run.json").exists():
        assert first.running, first.stderr
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        _assert_error(toys, toys.start(workdir), 1, workdir, "in use", "--workdir")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == toys.done, first.stderr
    assert fingerprint(workdir) == fingerprint(finished_toy)


def test_numbers_blow_up_in_synthesis(toys, tmp_path):
    changes = {"learning_rate": 1e18, "pixel_bounds": "none", "init": "normal"}
    changes = {f"synthesis__{key}": value for key, value in changes.items()}
    command = toys.start(tmp_path / "run", **changes)
    # At which of its six steps, the processor and XLA say.
    _assert_error(toys, command, 1, "Synthesis", "of shards [0, 1]", "learning_rate")


@pytest.mark.full
def test_numbers_blow_up_in_distillation(lab, tmp_path):
    """Weights grow fast: step 5 is saved, by step 10 they are NaN."""
    changes = {
        "distillation__weight_decay": 1.7e3,
        "distillation__warmup_steps": 0,
    }
    workdir = tmp_path / "run"
    command = lab.start(workdir, **changes)
    _assert_error(
        lab, command, 1, "Distillation", "by step 10", workdir / "student", "--workdir"
    )
    assert checkpoint_steps(workdir / "student") == [5]
    assert len(shards(workdir)) == 8


def test_learning_rate_without_sense(toys, tmp_path):
    command = toys.start(tmp_path / "run", distillation__learning_rate=1e18)
    _assert_error(toys, command, 1, "Distillation", "by step 5", "learning_rate")
    assert not checkpoint_steps(tmp_path / "run" / "student")


def _mount_command():
    """What may mount a small disk here, as root or as a user; None if nothing may."""
    if os.name != "posix" or shutil.which("unshare") is None:
        return None
    for options in ("-m", "-rm"):
        command = ["unshare", options, "sh", "-c"]
        probe = [*command, "mount -t tmpfs -o size=100k none /tmp"]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return command
    return None


SMALL_DISK = """
set -u
disk=$1; out=$2; size=$3; shift 3
mount -t tmpfs -o size=$size none "$disk"
"$@" >/dev/null 2>"$out/full"; echo $? >"$out/full.status"
mount -o remount,ro,size=20m "$disk"
"$@" >/dev/null 2>"$out/readonly"; echo $? >"$out/readonly.status"
mount -o remount,rw "$disk"
cp -r "$disk/run" "$out/before"
"$@" >/dev/null 2>"$out/roomy"; echo $? >"$out/roomy.status"
cp -r "$disk/run" "$out/run"
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("size", "stage"), [("140k", "synthesis"), ("900k", "distillation")]
)
def test_full_disk(lab, finished_workdir, tmp_path, size, stage):
    mount = _mount_command()
    if mount is None:
        pytest.skip("no file system may be mounted here")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    program = [sys.executable, command_runner.__file__, "main"]
    arguments = lab.arguments(disk / "run")
    subprocess.run(
        [*mount, SMALL_DISK, "sh", disk, out, size, *program, *arguments],
        env=lab.runner.environment | {"PATH": os.environ["PATH"]},
        cwd=command_runner.REPOSITORY,
        check=True,
    )

    def error(name):
        assert (out / f"{name}.status").read_text() == "1\n"
        lines = (out / name).read_text().splitlines()
        [line] = [line for line in lines if not line.startswith("WARNING: ")]
        assert line.startswith("ERROR: Cannot write ")
        assert str(disk / "run") in line
        return line

    full = error("full")
    assert "space" in full and "the same command goes on from there" in full
    assert "read-only" in error("readonly")
    assert (out / "roomy.status").read_text() == "3\n", (out / "roomy").read_text()
    made = len(shards(out / "before"))
    if stage == "synthesis":
        assert 0 < made < 8
    else:
        assert made == 8
        assert checkpoint_steps(out / "before" / "student")
    assert fingerprint(out / "run") == fingerprint(finished_workdir)


@pytest.mark.parametrize(
    ("status", "flags", "phrases"),
    [
        (2, [], ["--checkpoint="]),
        (1, ["--checkpoint=/no/such/run"], ["/no/such/run", "check the path"]),
        (1, ["--checkpoint={cut}"], ["{cut}", "damaged", "again"]),
        (1, ["--checkpoint={empty}"], ["{empty}", "name a work directory"]),
        (2, ["--checkpoint={run}", "--split=tst"], ["--split=tst", "test, validation"]),
        (2, ["--checkpoint={run}", "--dataset=mnits"], ["mnits", '"mnist"']),
        (
            1,
            ["--checkpoint={run}", "--dataset=cifar10"],
            ["(28, 28, 1)", "cifar10", "--dataset"],
        ),
        (
            1,
            ["--checkpoint={run}", "--teacher=mnist_lenet"],
            ["'mnist_lenet'", '"mnist_lenet5"'],
        ),
        (
            2,
            ["--checkpoint={run}", "--data_file=x.npz", "--dataset=mnist"],
            ["--dataset has no effect with --data_file"],
        ),
        (
            2,
            ["--checkpoint=mnist_lenet5", "--teacher_module=nets:Net"],
            ["--teacher_module", "no teacher"],
        ),
        (3, ["--checkpoint={run}", "--data_dir={empty}"], []),
        (3, ["--checkpoint={run}/student", "--data_dir={empty}"], []),
        (3, ["--checkpoint={run}/student/15", "--data_dir={empty}"], []),
    ],
)
def test_evaluate(lab, finished_workdir, tmp_path, status, flags, phrases):
    cut = tmp_path / "cut.safetensors"
    _write_weights(cut, "truncated")
    places = {"cut": cut, "empty": lab.empty, "run": finished_workdir}
    flags = [flag.format(**places) for flag in flags]
    phrases = [phrase.format(**places) for phrase in phrases]
    _assert_error(lab, lab.runner.start("evaluate", *flags), status, *phrases)
