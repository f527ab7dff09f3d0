"""SIGTERM and SIGINT: stop soon and in order; at once when asked a second time.

Commands call `install`. From then on the first signal raises `StopRequested` in the
main thread, which unwinds like Ctrl-C. Loops that save what they have run under
`deferred`: there the signal is only noted, the loop asks `wanted` after each step,
saves, and leaves. Whoever has not left after `GRACE_SECONDS` is ended: what was saved
before stays, since files are whole or not there.

A thread watches the clock and the second signal, because native code (a compilation,
a long step) keeps the main thread from both.

Python drops what is raised in destructors and in callbacks of the garbage collector,
of which JAX has one. A request that fell there is raised again a moment later.
"""

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

GRACE_SECONDS = 9.0
AGAIN_SECONDS = 0.005
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DROPPED = (
    "Stopped at once: work since the last checkpoint is dropped. The same command "
    "goes on from there."
)

_installed = False
_wakeup: tuple[int, int] | None = None
_number = 0  # Of the signal that asked to stop.
_deferrals = 0
_finished = False


class StopRequested(KeyboardInterrupt):
    """SIGINT or SIGTERM came; no `Exception`, so that nothing takes it for a failure.

    Attributes:
        status: The exit status that says so: 130 or 143.
        name: "Interrupted" or "Terminated".
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.status = 128 + number
        self.name = "Terminated" if number == signal.SIGTERM else "Interrupted"


def install() -> None:
    """Takes over SIGINT and SIGTERM; in the main thread of a command."""
    global _installed
    _installed = True
    for number in SIGNALS:
        signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _again)
    sys.unraisablehook = functools.partial(_dropped, sys.unraisablehook)


def watch() -> None:
    """Starts the thread; not before a process forks, for it would not survive.

    Without effect where `install` was not called: in notebooks, say.
    """
    global _wakeup
    if not _installed or _wakeup:
        return
    _wakeup = os.pipe()
    for end in _wakeup:
        os.set_blocking(end, False)
    signal.set_wakeup_fd(_wakeup[1], warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(_wakeup[0],), daemon=True).start()


def wanted() -> bool:
    """Whether this process was asked to stop."""
    return _number != 0


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Around a loop that asks `wanted` and saves; raises StopRequested at its end."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1
    if wanted():
        leave()


def finish() -> None:
    """From now on a first signal changes nothing: the command is done."""
    global _finished
    _finished = True


def leave() -> NoReturn:
    """Raises StopRequested where a loop has saved."""
    raise StopRequested(_number or signal.SIGTERM)


def _handle(number, frame):
    global _number
    del frame
    if _number:
        _end(number, "")
    _number = number
    if _finished:
        return
    if not _deferrals:
        raise StopRequested(number)
    _tell("Stopping: saving what there is. The same signal again stops at once.")


def _dropped(otherwise, unraisable):
    """Where Python reports an exception that nobody can catch."""
    if issubclass(unraisable.exc_type, StopRequested):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
    else:
        otherwise(unraisable)


def _again(number, frame):
    del number
    while frame is not None:
        if frame.f_code is _dropped.__code__:
            return  # What is raised in there is lost; the next time will do.
        frame = frame.f_back
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not _finished and not _deferrals:
        leave()


def _watch(source):
    """Ends the process on the second signal, or when its time is up."""
    first, deadline = 0, None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([source], [], [], left)[0]:
            _end(first, DROPPED)
        for number in os.read(source, 64):
            if number not in SIGNALS:
                continue
            if first:
                _end(number, "")
            first, deadline = number, time.monotonic() + GRACE_SECONDS


def _end(number, text):
    _tell(text)
    os._exit(128 + number)


def _tell(text):
    """Writes past Python's buffers, which may be in use where the signal came."""
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # A progress bar hides it.
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), (cursor + (f"{text}\n" if text else "")).encode())
