"""Sweeps as users make them: killed, resumed, with runs that fail."""

import json
import re
import shlex
import signal

import command_runner
import laboratory
import pytest
import toy
from tiny_runs import TINY, fingerprint, identity, shards

from dfkd_jax.runtime import files

CASES = ("", "distillation.noise=0.5", "distillation.feature_layer=no_such_layer")
NAMES = ("base", "noise=0.5", "feature_layer=no_such_layer")


@pytest.fixture(scope="module")
def settings(toys, tmp_path_factory):
    """Settings of all runs: a tiny student, and fifty images to evaluate it on."""
    path = toy.write_test_set(tmp_path_factory.mktemp("images") / "own.npz")
    return TINY | toys.settings | {"data.dataset": "", "data.file": path}


def start(lab, given):
    """The command; its runs draw no pictures, which take seconds."""
    return lab.runner.start("sweep", "--nopictures", *given)


def arguments(settings, workdir, *more):
    return [
        f"--config={laboratory.TOY}:smoke",
        *(f"--config.{key}={value}" for key, value in settings.items()),
        f"--workdir={workdir}",
        *more,
    ]


def test_killed_resumed_and_shared(lab, toys, settings, tmp_path):
    workdir = tmp_path / "sweep"
    given = arguments(
        settings, workdir, "--seeds=1", *(f"--case={case}" for case in CASES)
    )
    first, second, _ = (workdir / name / "seed1" for name in NAMES)
    start(lab, given).kill_when(
        lambda: (first / "results.json").exists() and (second / "run.json").exists()
    )
    kept = identity(first / "results.json"), shards(first)
    command = start(lab, [*given, "--jobs=2"])
    assert command.wait() == 1, command.stderr
    assert (identity(first / "results.json"), shards(first)) == kept
    assert "1 of 3 runs were finished before" in command.stdout
    assert re.search(r"\[2 of 3\] .*, seed 1: .*; about .* left", command.stdout)

    # The transfer set is there, so the other two runs are made side by side.
    both = [command.stdout.index(f"{name}, seed 1: started") for name in NAMES[1:]]
    assert max(both) < command.stdout.index(f"{NAMES[1]}, seed 1: validation")

    # A run that fails is named with its error, and the others are made.
    assert "feature_layer=no_such_layer, seed 1 failed" in command.stderr
    assert "is no layer of the teacher" in command.stderr
    summary = json.loads((workdir / "sweep.json").read_text())
    assert [row["name"] for row in summary["rows"]] == list(NAMES)
    assert [len(row["runs"]) for row in summary["rows"]] == [1, 1, 0]
    assert "no layer of the teacher" in summary["rows"][2]["failed"]["1"]
    assert (summary["split"], summary["seeds"]) == ("validation", [1])
    [base], [noisy] = (row["runs"] for row in summary["rows"][:2])
    assert base["transfer_set_sha256"] == noisy["transfer_set_sha256"]
    assert base["student"]["sha256"] != noisy["student"]["sha256"]
    assert noisy["transfer_set_of"] == "base/seed1"

    assert not (second / "report.html").exists()

    # The transfer set is one, on the disk too; the student is that of a run by itself.
    assert shards(second) == shards(first)
    changes = {key.replace(".", "__"): value for key, value in settings.items()}
    changes |= {"distillation__noise": 0.5, "data__split": "validation", "seed": 1}
    alone = toys.start(tmp_path / "alone", **changes)
    assert alone.wait() == 0, alone.stderr
    assert fingerprint(tmp_path / "alone") == fingerprint(second)
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert results["student"]["validation_accuracy"] == noisy["accuracy"]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)]
)
def test_stopped_with_two_runs_at_a_time(lab, settings, tmp_path, number):
    """The runs end too: their work directories are free at once."""
    workdir = tmp_path / "sweep"
    long = settings | {"distillation.num_steps": 1_000_000}
    given = arguments(long, workdir, "--seeds=0,1", "--jobs=2")
    folders = [workdir / "toy_smoke" / f"seed{seed}" for seed in (0, 1)]
    command = start(lab, given)
    command.interrupt_when(
        lambda: all((f / "run.json").exists() for f in folders), number
    )
    assert command.wait() == 128 + number, command.stderr
    name = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[number]
    assert (
        f"{name}. The same command goes on from here: python -m dfkd_jax.sweep"
        in command.stderr
    )
    assert "Traceback" not in command.stderr
    for folder in (workdir, *folders):
        with files.lock(folder):
            pass
    assert not (workdir / "sweep.json").exists()


def test_dry_run_prints_commands_and_makes_nothing(lab, settings, tmp_path):
    workdir = tmp_path / "sweep"
    command = lab.runner.start(
        "sweep",
        *arguments(settings, workdir, "--dry_run", "--seeds=0,1", "--split=test"),
        "--set=synthesis.grid_factors=(4,2,1),(1,)",
    )
    assert command.wait() == 0, command.stderr
    lines = [shlex.split(line) for line in command.stdout.splitlines()]
    assert len(lines) == 4
    for words in lines:
        assert words[:3] == ["python", "-m", "dfkd_jax.main"]
        assert f"--config={laboratory.TOY}:smoke" in words
        assert "--config.data.split=test" in words
    assert "--config.synthesis.grid_factors=(1,)" in lines[3]
    assert f"--workdir={workdir}/grid_factors=1/seed1" in lines[3]
    assert not workdir.exists()


def test_settings_in_json(lab, settings, tmp_path):
    """Their commands can be given, too."""
    path = tmp_path / "theirs.json"
    data = {"dataset": "", "file": str(settings["data.file"])}
    files.write_json(path, {"name": "theirs", "data": data})
    command = lab.runner.start(
        "sweep",
        f"--config={path}",
        "--set=targets.sigma=1,2",
        "--seeds=0",
        f"--workdir={tmp_path / 'sweep'}",
        "--dry_run",
    )
    assert command.wait() == 0, command.stderr
    [words, _] = map(shlex.split, command.stdout.splitlines())
    assert "--config.targets.sigma=1" in words
    words = [word.replace("--config.seed=0", "--config.seed=-1") for word in words]
    command = lab.runner.start("main", *words[3:])
    [(status, line)] = lab.errors(command)
    assert (status, "config.seed=-1" in line) == (2, True)


def test_errors_come_before_anything_starts(lab, settings, tmp_path):
    workdir = tmp_path / "sweep"

    def start(*more, changes=None):
        given = arguments(settings | (changes or {}), workdir, *more)
        return lab.runner.start("sweep", *given)

    found = lab.errors(
        lab.runner.start("sweep"),
        lab.runner.start("sweep", "--config=configs/mnist.py"),
        start("--set=targets.sigma=1,-1"),
        start("--set=sigma=1,2"),
        start("--seeds=0,0"),
        start("--jobs=0"),
        start("--split=train"),
        start(changes={"seed": 3}),
        start(changes={"data.file": "no_such.npz"}),
        start(changes={"data.file": ""}),
        start(changes={"data.file": "", "data.dataset": "mnist", "data.dir": tmp_path}),
    )
    assert [status for status, _ in found] == [2] * 10 + [3]
    lines = [line for _, line in found]
    assert "--config=configs/mnist.py" in lines[0]
    assert "--workdir=sweeps/sigma" in lines[1]
    assert "config.targets.sigma=-1.0 is not possible" in lines[2]
    assert 'Did you mean "targets.sigma"?' in lines[3]
    assert "--seeds=0,0" in lines[4]
    assert "jobs" in lines[5]
    assert "split" in lines[6]
    assert "--seeds=0,1,2" in lines[7]
    assert "no_such.npz: no such file" in lines[8]
    assert "no test set is named: set config.data.dataset" in lines[9]
    assert "The validation set cannot be had" in lines[10]
    assert not workdir.exists()


def commands_of_the_page():
    text = (command_runner.REPOSITORY / "docs" / "ablations.md").read_text()
    return re.findall(r"^python -m dfkd_jax\.sweep (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("line", commands_of_the_page())
def test_ablations_of_the_page_can_be_given(lab, line, tmp_path):
    words = [word for word in shlex.split(line) if not word.startswith("--workdir=")]
    command = lab.runner.start(
        "sweep", *words, f"--workdir={tmp_path / 'sweep'}", "--dry_run"
    )
    assert command.wait() == 0, command.stderr
    runs = command.stdout.splitlines()
    # Of a window there are two choices, of all else more.
    assert len(runs) >= (6 if "--set=targets.window=" in line else 9)
    assert len(runs) % 3 == 0  # Three seeds.
