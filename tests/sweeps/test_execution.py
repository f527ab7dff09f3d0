"""Processes of a sweep: which start, why they failed, and that they end."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from dfkd_jax.errors import StorageError
from dfkd_jax.runtime import files
from dfkd_jax.sweeps import execution


def startable(waiting, active=(), made=(), *, jobs=4, share=True):
    sources = {run.transfer_set: run for run in made}
    return execution._startable(list(waiting), active, sources, jobs=jobs, share=share)


def test_a_transfer_set_under_way_is_waited_for(runs):
    """Noise is of the student's side: of each seed there is one transfer set."""
    first, noisy, other, other_noisy = runs
    assert first.transfer_set == noisy.transfer_set != other.transfer_set
    assert startable(runs) == [first, other]
    assert startable(runs, share=False) == runs
    assert startable(runs, jobs=1) == [first]
    assert startable([noisy, other_noisy], [first]) == [other_noisy]
    assert startable([noisy, other_noisy], [first], [first]) == [noisy, other_noisy]
    assert startable(runs[1:], made=[first]) == [noisy, other]
    assert startable(runs, [first], jobs=1) == []


@pytest.mark.parametrize(
    ("printed", "status", "reason"),
    [
        ("ERROR: no disk\nWARNING: slow\n", 1, "no disk (exit status 1; "),
        ("step 1\n\n  step 2 \n\n", -9, "step 2 (signal 9; "),
        ("WARNING: no data\n  done\n", 3, "WARNING: no data (exit status 3; "),
        ("", 1, "it printed nothing (exit status 1; "),
    ],
)
def test_why_a_run_failed(runs, printed, status, reason):
    log = execution.log_of(runs[0])
    log.parent.mkdir(parents=True)
    log.write_text(printed)
    assert execution._reason(runs[0], status) == f"{reason}{log})"


def test_workdir_that_is_in_use_is_waited_for(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    freed = threading.Event()

    def hold():
        with files.lock(folder):
            held.set()
            time.sleep(0.2)
            freed.set()

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    execution.wait_until_free(folder)
    assert freed.is_set()
    thread.join()

    monkeypatch.setattr(execution, "PATIENCE_SECONDS", 0.1)
    with files.lock(folder), pytest.raises(StorageError, match="run"):
        execution.wait_until_free(folder)


def test_workdir_that_cannot_be_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(execution.time, "sleep", pytest.fail)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        execution.wait_until_free(tmp_path / "file" / "run")


def test_processes_are_ended_even_if_they_refuse(monkeypatch):
    monkeypatch.setattr(execution, "PATIENCE_SECONDS", 0.3)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True)"
    programs = [f"{deaf}; time.sleep(60)", "print(flush=True); input()"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for program in programs
    ]
    for process in processes:
        process.stdout.readline()
    execution._stop(processes)
    assert [process.returncode for process in processes] == [-9, -15]
    for process in processes:
        assert process.stdin.closed
        process.stdout.close()


def test_a_run_ends_with_its_sweep(tmp_path):
    """The pipe that the sweep held is closed: the run ends as SIGTERM ends it."""
    config = tmp_path / "config.py"
    # Where a run may be at any time.
    config.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "dfkd_jax.sweeps.child", f"--config={config}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == b"begun\n"
    process.stdin.close()
    assert process.wait(30) == 143
    process.stdout.close()
