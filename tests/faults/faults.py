"""What happens to a stage, and what must come of it."""

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
from typing import Any

import fault_programs
import pytest
from command_runner import PATIENCE
from stages import Stage

from dfkd_jax.runtime import stopping

LONGEST_STOP = 10.0  # Seconds.
GOES_ON = "The same command goes on from here: python -m "
SPACE, READ_ONLY = "space", "(?i)read-only"


class Cell:
    """One stage under one fault: its folders, its random numbers, and what it counts.

    Attributes:
        times: Repetitions: how often to kill, or how many files to damage (0: all).
        counts: What is reported.
    """

    def __init__(self, stage: Stage, folder: pathlib.Path, *, seed: str, times: int):
        self.stage = stage
        self.times = times
        self.random = random.Random(seed)
        self.counts: dict[str, Any] = {}
        self._folder = folder
        self._copies = 0

    def copy(self, origin: pathlib.Path) -> pathlib.Path:
        """A folder to disturb."""
        self._copies += 1
        folder = self._folder / f"copy{self._copies}"
        return shutil.copytree(origin, folder, symlinks=True)

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def check(self, folder: pathlib.Path) -> None:
        """Finishes; the result is that of an undisturbed run, to the last bit."""
        self.stage.finish(folder)
        assert self.stage.result(folder) == self.stage.undisturbed()
        self.count("equal results")


def killed(cell: Cell) -> None:
    """SIGKILL at random moments, again and again."""
    _interrupt(cell, signal.SIGKILL)


def terminated(cell: Cell) -> None:
    """SIGTERM at random moments."""
    _interrupt(cell, signal.SIGTERM)


def interrupted(cell: Cell) -> None:
    """SIGINT at random moments."""
    _interrupt(cell, signal.SIGINT)


def _interrupt(cell, number):
    stage = cell.stage
    folder = cell.copy(stage.before())
    made = stage.finished(folder)
    sent = tries = 0
    while sent < cell.times:
        tries += 1
        assert tries <= 10 * cell.times, f"only {sent} of {tries - 1} signals ended it"
        command = stage.start(folder)
        if number != signal.SIGKILL and stage.graceful:
            wait_for_handler(command)
        time.sleep(cell.random.uniform(0, 1.1 * stage.seconds))
        if command.running:
            with contextlib.suppress(ProcessLookupError):  # It ended just now.
                os.kill(command.pid, number)
            started = time.monotonic()
            status = command.wait()
            sent += status != stage.done  # It may have been done already.
            _check_end(cell, command, number, status, time.monotonic() - started)
        else:
            assert command.wait() == stage.done, command.stderr
        now = stage.finished(folder)
        assert made.items() <= now.items()  # Nothing that is finished is made again.
        made = now
        if command.wait() == stage.done:
            assert stage.result(folder) == stage.undisturbed()
            cell.count("equal results")
            folder = cell.copy(stage.before())
            made = stage.finished(folder)
    cell.count("kills" if number == signal.SIGKILL else "stops", sent)
    cell.check(folder)
    assert made.items() <= stage.finished(folder).items()


def wait_for_handler(command):
    """Until the command answers SIGTERM by itself."""
    deadline = time.monotonic() + PATIENCE
    while command.running and time.monotonic() < deadline:
        try:
            status = pathlib.Path(f"/proc/{command.pid}/status").read_text()
        except OSError:
            return
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def _check_end(cell, command, number, status, seconds):
    if number == signal.SIGKILL or not cell.stage.graceful:
        return
    assert seconds < LONGEST_STOP
    cell.counts["longest stop"] = max(cell.counts.get("longest stop", 0), seconds)
    assert status in (128 + number, cell.stage.done), command.stderr
    assert "Traceback" not in command.stderr, command.stderr
    if status == 128 + number:
        last = command.stderr.splitlines()[-1]
        assert GOES_ON in last or last == stopping.DROPPED, command.stderr


def full_disk(cell: Cell) -> None:
    """It fills up; some is freed."""
    _on_small_disk(cell, None, SPACE)


def read_only(cell: Cell) -> None:
    """The file system may not be written; later it may."""
    _on_small_disk(cell, "remount,ro", READ_ONLY)


def _on_small_disk(cell, options, message):
    stage = cell.stage
    before = stage.before()
    stage.undisturbed()
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in before.rglob("*"))
    disk = cell._folder / "disk"
    disk.mkdir()
    size = (used // 1024 + stage.grows) if options is None else 100 * 1024
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a disk needs root")
    try:
        folder = shutil.copytree(before, disk / "folder", symlinks=True)
        if options:
            _remount(disk, options)
        [(status, line)] = stage.lab.errors(stage.start(folder))
        assert status == 1
        assert str(disk) in line
        assert re.search(message, line), line
        cell.count("refused")
        _remount(disk, "remount,rw,size=100m")
        cell.check(folder)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _remount(disk, options):
    subprocess.run(["mount", "-o", options, str(disk)], check=True)


def truncated(cell: Cell) -> None:
    """A file ends too early."""

    def damage(path, foreign):
        os.truncate(path, cell.random.randrange(path.stat().st_size))

    _damage_files(cell, "truncated", damage)


def flipped(cell: Cell) -> None:
    """One bit of a file is another one."""

    def damage(path, foreign):
        content = bytearray(path.read_bytes())
        place = cell.random.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)

    _damage_files(cell, "flipped", damage)


def missing(cell: Cell) -> None:
    """A file is gone."""
    _damage_files(cell, "missing", lambda path, foreign: path.unlink())


def foreign(cell: Cell) -> None:
    """A file is that of a run with another seed."""
    _damage_files(cell, "foreign", lambda path, other: shutil.copy(other, path))


def _damage_files(cell, fault, damage):
    stage = cell.stage
    chosen = [file for file in stage.files if fault in file.faults]
    if cell.times:
        chosen = cell.random.sample(chosen, min(cell.times, len(chosen)))
    for file in chosen:
        folder = cell.copy(getattr(stage, file.state)())
        path = _find(folder, file.path)
        before = stage.finished(folder)
        other = _find(stage.foreign(), file.path) if fault == "foreign" else None
        damage(path, other)
        cell.count("files")
        command = stage.start(folder)
        status = command.wait()
        assert "Traceback" not in command.stderr, command.stderr
        if status == stage.done:
            cell.count("went on")
            assert stage.result(folder) == stage.undisturbed(), file
            _check_kept(cell, before, folder, path)
            continue
        assert file.remedy, (file, command.stderr)
        _check_named(command, status, folder, path)
        cell.count("refused")
        _apply(file.remedy, folder, path, stage)
        cell.check(folder)


def _find(folder, pattern):
    """The largest file that fits the pattern, in the last checkpoint if in one."""
    found = [path for path in folder.glob(pattern) if path.is_file()]
    assert found, (folder, pattern)

    def rank(path):
        steps = [int(part) for part in path.parts if part.isdigit()]
        return steps[-1:], path.stat().st_size, path

    return max(found, key=rank)


def _check_kept(cell, before, folder, damaged):
    """What was finished is still the same file, but for what was damaged."""
    now = cell.stage.finished(folder)
    number = re.search(r"-(\d{5})", damaged.name)
    for name, kept in before.items():
        of_shard = number and name.endswith(f" {int(number[1])}")
        if of_shard or name == damaged.name or damaged.name == "shards.jsonl":
            continue
        if damaged.name == "teacher.safetensors":
            continue  # Its manifest is made again with it.
        assert now[name] == kept, (name, damaged)


def _check_named(command, status, folder, path):
    """One line says what is wrong with which file."""
    assert status in (1, 2, 3), (status, command.stderr)
    start = "WARNING: The student is made" if status == 3 else "ERROR: "
    lines = [line for line in command.stderr.splitlines() if line.startswith(start)]
    if status == 3 and not lines:
        lines = [x for x in command.stderr.splitlines() if x.startswith("ERROR: ")]
    assert len(lines) == 1, command.stderr
    names = [path, *path.parents]
    names = [str(name) for name in names if folder in name.parents]
    assert any(name in lines[0] for name in names), lines[0]


def _apply(remedy, folder, path, stage):
    if remedy == "delete":
        path.unlink()
    elif remedy == "folder":
        step = next(parent for parent in path.parents if parent.name.isdigit())
        shutil.rmtree(step)
    elif (folder / "raw").exists():
        shutil.rmtree(folder / "raw")  # The published ones cannot be had here.
    else:
        shutil.copy(stage.before() / path.relative_to(folder), path)


def clock_back(cell: Cell) -> None:
    """Killed half way; when it goes on it is ten years earlier."""
    stage = cell.stage
    folder = cell.copy(stage.middle())
    command = stage.start(folder, wrap=fault_programs.ten_years_ago)
    assert command.wait() == stage.done, command.stderr
    assert stage.result(folder) == stage.undisturbed()
    cell.count("equal results")


def two_processes(cell: Cell) -> None:
    """Another one is started on the same folder while the first one holds it."""
    stage = cell.stage
    stage.undisturbed()
    folder = cell.copy(stage.before())
    first = stage.start(folder)
    while not stage.is_held(folder):
        assert first.running, first.stderr
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = stage.start(folder)
        if stage.waits:
            deadline = time.monotonic() + PATIENCE
            while "Waiting for another process" not in second.stdout:
                assert second.running and time.monotonic() < deadline, second.stderr
                time.sleep(0.01)
        else:
            [(status, line)] = stage.lab.errors(second)
            assert status == 1
            assert "another process" in line
            cell.count("refused")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == stage.done, first.stderr
    if stage.waits:
        assert second.wait() == stage.done, second.stderr
    assert stage.result(folder) == stage.undisturbed()
    cell.count("equal results")


FAULTS = {
    "SIGKILL": killed,
    "SIGTERM": terminated,
    "SIGINT": interrupted,
    "full disk": full_disk,
    "read-only": read_only,
    "truncated file": truncated,
    "flipped bit": flipped,
    "missing file": missing,
    "file of another run": foreign,
    "clock back": clock_back,
    "two processes": two_processes,
}
