"""Two processes with two devices each: the run of one process, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time

import command_runner
import numpy as np
import pytest
from flax import traverse_util
from tiny_runs import checkpoint_steps, fingerprint, read_transfer_set, shards

from dfkd_jax.reporting import figures
from dfkd_jax.runtime import hosts, weights

FEW_STEPS = {
    "synthesis__num_images": 80,  # Two rounds of four devices.
    "distillation__num_steps": 8,
    "distillation__log_every": 2,
    "distillation__checkpoint_every": 2,
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pair:
    """Two processes of `main` on loopback, each with flags of its own."""

    def __init__(self, lab, folder, arguments, *, pictures=False):
        port = free_port()
        without = {} if pictures else {figures.SWITCH: "off"}
        self._environment = lab.runner.environment | without
        folder.mkdir()
        self._folder = folder
        self.processes = [
            self._start(place, port, arguments[place]) for place in range(2)
        ]

    def _start(self, place, port, arguments):
        command = [
            *[sys.executable, "-m", "dfkd_jax.main", *arguments],
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={place}",
        ]
        with (
            open(self._folder / f"stdout{place}", "wb") as stdout,
            open(self._folder / f"stderr{place}", "wb") as stderr,
        ):
            return subprocess.Popen(
                command,
                env=self._environment,
                cwd=command_runner.REPOSITORY,
                stdout=stdout,
                stderr=stderr,
            )

    def stdout(self, place):
        return (self._folder / f"stdout{place}").read_text()

    def stderr(self, place):
        return (self._folder / f"stderr{place}").read_text()

    def wait(self):
        """Both exit statuses."""
        try:
            return [p.wait(command_runner.PATIENCE) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def wait_for(self, condition):
        deadline = time.monotonic() + command_runner.PATIENCE
        while not condition():
            assert all(p.poll() is None for p in self.processes), self.stderr(0)
            assert time.monotonic() < deadline
            time.sleep(0.01)


def start_pair(lab, folder, workdir, *, pictures=False, **changes):
    arguments = lab.arguments(workdir, **FEW_STEPS | changes)
    return Pair(lab, folder, [arguments, arguments], pictures=pictures)


@pytest.fixture(scope="module")
def alone(toys, tmp_path_factory):
    """One process with as many devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    toys.finish(workdir, **FEW_STEPS | {"cpu_devices": 4})
    return workdir


@pytest.fixture(scope="module")
def undisturbed(toys, tmp_path_factory):
    """Two processes with two devices each."""
    folder = tmp_path_factory.mktemp("pair")
    pair = start_pair(toys, folder / "output", folder / "run", pictures=True)
    assert pair.wait() == [0, 0], pair.stderr(0) + pair.stderr(1)
    return pair, folder / "run"


def assert_same_student(two, one, *, atol):
    students = [weights.load(run / "student.safetensors")[0] for run in (two, one)]
    found, expected = (traverse_util.flatten_dict(each, sep="/") for each in students)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, atol=atol, err_msg=name)


@pytest.mark.full
def test_two_processes_make_what_one_makes(toys, undisturbed, tmp_path):
    runs = [undisturbed[1], tmp_path / "one"]
    toys.finish(runs[1], **FEW_STEPS)
    for mine, theirs in zip(*map(read_transfer_set, runs), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert_same_student(*runs, atol=1e-4)


@pytest.mark.full
def test_two_processes_are_one_of_as_many_devices_to_the_last_bit(undisturbed, alone):
    _, workdir = undisturbed
    assert fingerprint(workdir) == fingerprint(alone)
    # Both made shards: each keeps a list of its own.
    lists = sorted(path.name for path in (workdir / "transfer_set").glob("*.jsonl"))
    assert lists == ["shards-0001.jsonl", "shards.jsonl"]


@pytest.mark.full
def test_a_start_that_is_fitted_is_that_of_one_process(toys, tmp_path):
    # Steps too small to move it: Adam would blow up the least of differences.
    changes = FEW_STEPS | {
        "distillation__start": "teacher",
        "distillation__learning_rate": 1e-9,
    }
    pair = start_pair(toys, tmp_path / "output", tmp_path / "two", **changes)
    toys.finish(tmp_path / "one", **changes | {"cpu_devices": 4})
    assert pair.wait() == [0, 0], pair.stderr(0) + pair.stderr(1)
    # Sums over many images are rounded as the number of devices has it.
    assert_same_student(tmp_path / "two", tmp_path / "one", atol=1e-3)


@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        pytest.param(1, shards, id="1 in synthesis"),
        pytest.param(
            0,
            lambda workdir: checkpoint_steps(workdir / "student"),
            id="0 in distillation",
            marks=pytest.mark.full,
        ),
    ],
)
def test_killed_process_is_named_and_the_run_goes_on(
    toys, alone, tmp_path, victim, moment
):
    workdir = tmp_path / "run"
    pair = start_pair(toys, tmp_path / "first", workdir)
    pair.wait_for(lambda: moment(workdir))
    os.kill(pair.processes[victim].pid, signal.SIGKILL)
    statuses = pair.wait()
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    errors = [
        line
        for line in pair.stderr(1 - victim).splitlines()
        if not line.startswith("WARNING: ")
    ]
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"ERROR: Process {victim} of 2 stopped answering")

    pair = start_pair(toys, tmp_path / "second", workdir)
    assert pair.wait() == [0, 0], pair.stderr(0) + pair.stderr(1)
    assert fingerprint(workdir) == fingerprint(alone)
    assert "80 pseudo samples" in pair.stdout(0)  # Process 0 alone prints.
    assert pair.stdout(1) == ""
    assert pair.stderr(1) == ""


@pytest.mark.full
def test_processes_that_do_not_belong_together(toys, tmp_path):
    """Started at once: each pair ends when process 0 misses the other one."""
    arguments = toys.arguments(tmp_path / "run")
    other_folder = Pair(
        toys, tmp_path / "output1", [arguments, toys.arguments(tmp_path / "other")]
    )
    workdir = tmp_path / "settings"
    other_settings = Pair(
        toys,
        tmp_path / "output2",
        [toys.arguments(workdir), toys.arguments(workdir, seed=1)],
    )
    for pair, message in (
        (other_folder, "is not the folder that process 0 writes to: name a --workdir"),
        (other_settings, "config.seed was 0 and is now 1"),
    ):
        assert pair.wait() == [1, 1]
        assert message in pair.stderr(1)
        assert "Process 1 of 2 stopped answering" in pair.stderr(0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=localhost:1"], "belong together"),
        (["--num_processes=2", "--process_id=0"], "belong together"),
        (
            ["--coordinator=localhost", "--num_processes=2", "--process_id=0"],
            "must be host:port",
        ),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "must be from 0 to 1",
        ),
    ],
)
def test_flags_that_do_not_fit(toys, tmp_path, flags, message):
    command = toys.runner.start("main", *toys.arguments(tmp_path / "run"), *flags)
    [(status, error)] = toys.errors(command)
    assert status == 2
    assert message in error


@pytest.mark.full
def test_batch_that_cannot_be_split(toys, tmp_path):
    pair = start_pair(
        toys, tmp_path / "output", tmp_path / "run", distillation__batch_size=6
    )
    assert pair.wait() == [2, 2]
    for place in range(2):
        assert "6 cannot be split over 4 devices of 2 processes" in pair.stderr(place)


@pytest.mark.parametrize(
    ("told", "who"),
    [
        ("unhealthy (stopped sending heartbeats):\n1\nThe tasks", "Process 1 of 4"),
        ("(stopped sending heartbeats):\n1\n3\nThe tasks", "Process 1 and 3 of 4"),
        ("Failed to send RPC to coordination service. Either", "Process 0 of 4"),
    ],
)
def test_verdict_names_the_dead(told, who):
    verdict = hosts._verdict(-signal.SIGABRT, told, 2, 4)
    assert verdict.startswith(f"{who} stopped answering")
    assert "Process 2 stops too" in verdict


def test_verdict_on_a_process_that_was_killed_itself():
    verdict = hosts._verdict(-signal.SIGKILL, "", 2, 4)
    assert verdict.startswith("Process 2 of 4 was ended by SIGKILL")
    assert "memory" in verdict


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    hosts.join(coordinator="", num_processes=None, process_id=None, detect=True)
    assert (hosts.index(), hosts.count(), hosts.is_primary()) == (0, 1, True)
    hosts.barrier()
    assert hosts.broadcast_from_process_0({"a": 1}) == {"a": 1}
    assert hosts.process_slice(range(5)) == range(5)


def test_slurm_job_of_one_task_is_alone(monkeypatch):
    """An interactive job, say, on a machine with Slurm's variables."""
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert hosts._detected()[1] == 1
    hosts.join(coordinator="", num_processes=None, process_id=None, detect=True)
    assert hosts.count() == 1


@pytest.mark.full
def test_one_that_is_told_to_stop_has_all_save(toys, undisturbed, tmp_path):
    """As when one machine of several is to be preempted."""
    workdir = tmp_path / "run"
    changes = {
        "distillation__num_steps": 1_500,
        "distillation__log_every": 10,
        "distillation__checkpoint_every": 1_000,
    }
    metrics = workdir / "metrics.jsonl"
    pair = start_pair(toys, tmp_path / "first", workdir, **changes)
    pair.wait_for(lambda: metrics.exists() and "distillation" in metrics.read_text())
    os.kill(pair.processes[1].pid, signal.SIGTERM)
    assert pair.wait() == [143, 143], pair.stderr(0) + pair.stderr(1)
    assert "The same command goes on from here" in pair.stderr(0)
    assert "Traceback" not in pair.stderr(0) + pair.stderr(1)
    [step] = checkpoint_steps(workdir / "student")
    assert 10 <= step < 1_500

    pair = start_pair(toys, tmp_path / "second", workdir, **changes)
    assert pair.wait() == [0, 0], pair.stderr(0) + pair.stderr(1)
    toys.finish(tmp_path / "one", **FEW_STEPS | changes | {"cpu_devices": 4})
    assert fingerprint(workdir) == fingerprint(tmp_path / "one")
