"""Makes the runs of a sweep, each in a process of its own."""

import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from dfkd_jax.errors import StorageError
from dfkd_jax.reporting import figures
from dfkd_jax.runtime import files, progress, workdir
from dfkd_jax.sweeps import outcome, sharing
from dfkd_jax.sweeps.plan import Run

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60  # For a process that was told to end, or whose parent was killed.


def command(run: Run) -> str:
    """The command that makes `run` by itself."""
    return "python -m dfkd_jax.main " + shlex.join(run.arguments)


def execute(
    runs: Sequence[Run], *, jobs: int, share: bool, pictures: bool
) -> dict[Run, str]:
    """Makes the runs that are not finished; those that failed, with the reason.

    Args:
        runs: In the order in which they are started.
        jobs: Processes at a time.
        share: Whether runs with equal transfer sets make only one.
        pictures: Whether runs draw pictures and write report.html.

    Raises:
        StorageError: A work directory cannot be written or is in use.
    """
    waiting = [run for run in runs if not outcome.is_finished(run)]
    done = len(runs) - len(waiting)
    if done:
        progress.say(f"{done} of {len(runs)} runs were finished before.")
    sources = sharing.sources(runs) if share else {}
    clock = _Clock(total=len(runs), done=done, jobs=jobs)
    failed: dict[Run, str] = {}
    active: dict[Run, subprocess.Popen] = {}
    try:
        while waiting or active:
            for run in _startable(waiting, active, sources, jobs=jobs, share=share):
                waiting.remove(run)
                wait_until_free(run.workdir)
                if source := sources.get(run.transfer_set):
                    sharing.share(source, run)
                active[run] = _start(run, pictures=pictures)
                clock.start(run)
            for run, process in list(active.items()):
                ended = process.poll() is not None  # Before looking at what it made.
                unknown = share and run.transfer_set not in sources
                if unknown and sharing.is_source(run):
                    sources[run.transfer_set] = run
                if not ended:
                    continue
                del active[run]
                assert process.stdin is not None
                process.stdin.close()
                if not outcome.is_finished(run):
                    failed[run] = _reason(run, process.returncode)
                clock.end(run, failed.get(run))
            time.sleep(POLL_SECONDS)
    finally:
        _stop(active.values())
    return failed


def _startable(waiting, active, sources, *, jobs, share):
    """Runs to start now; who waits for another one's transfer set is left out."""
    found, in_work = [], [run.transfer_set for run in active]
    for run in waiting:
        if len(active) + len(found) >= jobs:
            break
        needs = run.transfer_set
        if share and needs and needs in in_work and needs not in sources:
            continue
        found.append(run)
        in_work.append(needs)
    return found


def log_of(run: Run) -> pathlib.Path:
    """What the run's process printed, beside its work directory."""
    return run.workdir.with_suffix(".log")


def _start(run, *, pictures):
    log = log_of(run)
    environment = {} if pictures else {figures.SWITCH: "off"}
    with files.storage_errors(log), open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dfkd_jax.sweeps.child", *run.arguments],
            stdin=subprocess.PIPE,  # Closed when this process ends; see `child`.
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C is for this process, which passes it on.
        )


def wait_until_free(folder: pathlib.Path) -> None:
    """Waits for a process of an earlier, killed sweep to let go of a work directory.

    Raises:
        StorageError: It does not, or the folder cannot be written.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with files.lock(folder, record=workdir.RECORD):
                return
        except StorageError as error:
            if isinstance(error.__cause__, OSError) or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """Ends runs as SIGTERM ends them; what they finished is kept."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _reason(run, status):
    """Why a run failed, in one line: what it printed last, errors first."""
    lines = log_of(run).read_text(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    told = [line for line in lines if line.startswith("ERROR: ")]
    if status == 3:  # Made, but the held-out set could not be had.
        told = [line for line in lines if line.startswith("WARNING: ")]
    last = (told or lines or ["it printed nothing"])[-1]
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"{last.removeprefix('ERROR: ')} ({ended}; {log_of(run)})"


class _Clock:
    """Says what starts and ends, and when all will be done."""

    def __init__(self, *, total: int, done: int, jobs: int):
        self._total = total
        self._done = done
        self._jobs = jobs
        self._begun: dict[Run, float] = {}
        self._seconds: list[float] = []

    def start(self, run: Run) -> None:
        """Of a run that was started just now."""
        self._begun[run] = time.monotonic()
        number = self._done + len(self._begun) - len(self._seconds)
        progress.say(f"[{number} of {self._total}] {run.title}: started")

    def end(self, run: Run, failure: str | None) -> None:
        """Of a run that ended just now."""
        seconds = time.monotonic() - self._begun[run]
        self._seconds.append(seconds)
        self._done += 1
        left = self._total - self._done
        result = f"failed: {failure}" if failure else outcome.in_words(run)
        rest = sum(self._seconds) / len(self._seconds) * left / self._jobs
        progress.say(
            f"[{self._done} of {self._total}] {run.title}: {result}; "
            f"{progress.duration(seconds)}"
            + (f"; about {progress.duration(rest)} left" if left else "")
        )
