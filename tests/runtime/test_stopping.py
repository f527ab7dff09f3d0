"""Signals of small programs; those of whole runs are in `system/test_resume.py`."""

import signal
import subprocess
import sys
import time

import pytest

from dfkd_jax.runtime import stopping

PROGRAM = """
import hashlib, sys, time
from dfkd_jax.runtime import stopping

def native(iterations):
    # Native code, which no Python signal handler interrupts.
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", iterations)

stopping.GRACE_SECONDS = {grace}
stopping.install()
stopping.watch()
try:
    {body}
except stopping.StopRequested as request:
    print(request.name, flush=True)
    sys.exit(request.status)
"""
NAMES = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
FOREVER = 10**9  # Minutes.


def start(body, *, grace=1.0):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body, grace=grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", list(NAMES))
def test_the_first_signal_unwinds(number):
    process = start(
        """
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up")
"""
    )
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out.split("\n") == ["cleaned up", NAMES[number], ""]
    assert (process.returncode, err) == (128 + number, "")


@pytest.mark.parametrize("number", list(NAMES))
def test_a_loop_saves_before_it_leaves(number):
    process = start(
        """
    with stopping.deferred():
        print("ready", flush=True)
        while not stopping.wanted():
            time.sleep(0.01)
        print("saved")
    print("never")
"""
    )
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out.split("\n") == ["saved", NAMES[number], ""]
    assert process.returncode == 128 + number
    assert err.startswith("Stopping: ")


@pytest.mark.parametrize("deferred", [False, True])
def test_a_second_signal_ends_at_once(deferred):
    body = f"native({FOREVER})"
    body = f"with stopping.deferred(): {body}" if deferred else body
    process = start(body, grace=600)
    time.sleep(0.3)  # It says that it is ready just before native code has it.
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    process.communicate(timeout=60)  # Before its time is up.
    assert process.returncode == 128 + signal.SIGINT


def test_time_is_limited():
    process = start(f"with stopping.deferred(): native({FOREVER})")
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - started > 0.9
    assert stopping.DROPPED in err


def test_a_command_that_is_done_is_not_stopped():
    process = start(
        """
    stopping.finish()
    print("ready", flush=True)
    time.sleep(0.5)
    print("done")
"""
    )
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "done\n", "")


@pytest.mark.parametrize("slow", [0, 0.05], ids=["", "on a slow machine"])
@pytest.mark.parametrize("place", ["destructor", "garbage collector"])
def test_a_request_that_python_drops_is_raised_again(place, slow):
    """Signals wait for the main thread, here until it is in `dropped`."""
    process = start(
        f"""
    import gc, os, signal
    set_timer = signal.setitimer
    signal.setitimer = lambda *args: (set_timer(*args), time.sleep({slow}))
    def dropped(*args):
        if args or {place == "destructor"}:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(1000))  # The handler runs here, and what it raises is lost.
    class Cell:
        def __del__(self):
            dropped()
    print("ready", flush=True)
    if {place == "destructor"}:
        cell = Cell()
        del cell
    else:
        gc.callbacks.append(lambda phase, info: phase == "stop" or dropped(phase))
        gc.collect()
        gc.callbacks.clear()
    time.sleep(60)
"""
    )
    out, err = process.communicate(timeout=30)
    assert out == "Terminated\n"
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")


def test_other_exceptions_that_python_drops_are_still_reported():
    process = start(
        """
    class Cell:
        def __del__(self):
            raise ValueError("of mine")
    print("ready", flush=True)
    cell = Cell()
    del cell
"""
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "of mine" in err


def test_without_a_command_nothing_changes():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    stopping.watch()
    with stopping.deferred():
        assert not stopping.wanted()
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert stopping._wakeup is None
