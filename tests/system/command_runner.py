"""Commands of the package in processes of their own, without paying for each start.

A server process imports JAX and the package once and forks a child for every command:
the module runs as `__main__`, with its own flags, devices and exit status, and can be
killed. What is about starting itself is tested with `python -m`.
"""

import multiprocessing
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PRELOADED = (
    "dfkd_jax.pipeline",
    "dfkd_jax.methods.soft_targets",
    "dfkd_jax.baselines.dafl",
    "dfkd_jax.baselines.dfad",
    "dfkd_jax.teachers.pipeline",
)
PATIENCE = 300.0  # Seconds; a busy machine is not a failure.


class Command:
    """A command that was started; what it prints goes to two files in `folder`."""

    def __init__(self, process: Any, folder: pathlib.Path):
        self._process = process
        self._folder = folder
        process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    def _read(self, name):
        path = self._folder / name  # Made when the process has begun.
        return path.read_text() if path.exists() else ""

    @property
    def running(self) -> bool:
        return self._process.exitcode is None

    def kill(self) -> None:
        """SIGKILL, and waits until it is dead."""
        self._process.kill()
        self._process.join()

    def kill_when(self, condition: Callable[[], bool]) -> None:
        """Kills it as soon as `condition` holds; fails if it ends before."""
        self._wait_for(condition)
        self.kill()

    def interrupt_when(
        self, condition: Callable[[], bool], number: int = signal.SIGINT
    ) -> None:
        """The signal as soon as `condition` holds; fails if it ends before."""
        self._wait_for(condition)
        os.kill(self.pid, number)

    def _wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.running, f"ended too early:\n{self.stdout}{self.stderr}"
            assert time.monotonic() < deadline, self.stdout + self.stderr
            time.sleep(0.002)

    def wait(self) -> int:
        """The exit status."""
        self._process.join(PATIENCE)
        if self.running:
            self.kill()
            raise TimeoutError(self.stdout + self.stderr)
        return self._process.exitcode


class Runner:
    """Starts commands in one environment, with one compilation cache."""

    def __init__(self, environment: Mapping[str, str], folder: pathlib.Path):
        self.environment = dict(environment)
        self._folder = folder
        self._count = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def call(self, function: Callable[..., Any], *args: Any, **environment: str):
        """Starts `function(*args)`; an exception is status 1 and on stderr."""
        self._count += 1
        folder = self._folder / f"command{self._count}"
        folder.mkdir()
        process = self._context.Process(
            target=_call,
            args=(self.environment | environment, folder, function, args),
        )
        return Command(process, folder)

    def start(self, module: str, *arguments: Any) -> Command:
        """Starts `python -m dfkd_jax.<module> arguments`."""
        return self.call(run_module, module, [str(a) for a in arguments])


def _call(environment, folder, function, args):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    # A shell that starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with open(folder / name, "wb", buffering=0) as file:
            os.dup2(file.fileno(), number)
    try:
        function(*args)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Runs a module of the package as a command, without its pictures."""
    for library in ("matplotlib", "sklearn"):
        sys.modules[library] = None  # They take seconds and are tested elsewhere.
    sys.modules.pop(f"dfkd_jax.{module}", None)  # Imported beforehand, or not.
    sys.argv = [f"dfkd_jax.{module}", *arguments]
    runpy.run_module(f"dfkd_jax.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":  # As a process of its own: where a mount is needed.
    run_module(sys.argv[1], sys.argv[2:])
