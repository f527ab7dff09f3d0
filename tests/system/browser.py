"""Chromium without a window, steered through a pipe: no package is needed for it."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",  # Pages of our own, and containers have none.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--font-render-hinting=none",
    "--remote-debugging-pipe",
)
# It reads commands from 3 and answers on 4; `pass_fds` gives files no other numbers.
START = """
import os, sys
os.dup2({}, 3)
os.dup2({}, 4)
os.execv(sys.argv[1], sys.argv[1:])
"""
PATIENCE = 120.0  # Seconds; a busy machine is not a failure.


def find() -> str | None:
    """Path of Chromium or Chrome; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page at a time, in a window of any size."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO):
        self._commands, self._answers = commands, answers
        self._buffer, self._count, self._session = b"", 0, {}
        target = self._call("Target.createTarget", url="about:blank")
        self._session = self._call("Target.attachToTarget", flatten=True, **target)
        self._call("Page.enable")

    def open(self, page: pathlib.Path, *, width: int, dark: bool = False) -> None:
        """Loads `page` in a window of `width` pixels."""
        mode = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[mode])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self._call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        answer = self._call(
            "Page.captureScreenshot",
            captureBeyondViewport=True,
            clip=size | {"scale": 1},
        )
        return base64.b64decode(answer["data"])

    def _call(self, method, **params):
        self._count += 1
        sent = {"id": self._count, "method": method, "params": params} | self._session
        self._commands.write(json.dumps(sent).encode() + b"\0")
        self._commands.flush()
        answer = self._until(lambda message: message.get("id") == self._count)
        assert "result" in answer, (method, answer)
        return answer["result"]

    def _until(self, is_it):
        while not is_it(message := self._next()):
            pass
        return message

    def _next(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            part = os.read(self._answers.fileno(), 1 << 20) if ready else b""
            assert part, "Chromium does not answer."
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def running(program: str, profile: pathlib.Path) -> Iterator[Tab]:
    """Chromium with an empty `profile`; it ends with the context."""
    (read, commands), (answers, write) = os.pipe(), os.pipe()
    start = [sys.executable, "-c", START.format(read, write)]
    process = subprocess.Popen(
        [*start, program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(read, write),
        stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    try:
        with open(commands, "wb") as output, open(answers, "rb") as given:
            yield Tab(output, given)
        process.wait(PATIENCE)  # It ends when nobody commands any more.
    finally:
        process.kill()
        process.wait()
