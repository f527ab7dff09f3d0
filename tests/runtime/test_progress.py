import os
import pty
import subprocess
import sys

import pytest

from dfkd_jax.runtime import progress

TERMINAL = """
from dfkd_jax.runtime import progress
with progress.track("synthesis", total=8, done=2, unit="images", images=3) as update:
    update(8, cross_entropy=0.125)
"""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (8.4, "8 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (119.7, "2 min 00 s"),
        (185, "3 min 05 s"),
        (5_969, "99 min 29 s"),
        (5_970, "1 h 39 min"),
        (7_800, "2 h 10 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with progress.track("synthesis", total=2_000, done=500, unit="images") as update:
        update(1_000, cross_entropy=0.12345)
        update(2_000, cross_entropy=1e-5)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("  synthesis: 1,000 of 2,000 images, ")
    assert "cross entropy 0.123, ETA 0 s" in first
    assert last.startswith("  synthesis: 2,000 of 2,000 images, ")
    assert "cross entropy 1e-05, took 0 s" in last


def test_lines_are_rare_but_the_last_is_written(capsys):
    with progress.track("student", total=1_000, done=0, unit="steps") as update:
        for step in range(1, 1_001):
            update(step)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "1,000 of 1,000 steps" in lines[0]


def test_no_rate_no_eta(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with progress.track("student", total=10, done=4, unit="steps") as update:
        update(4)
    assert "4 of 10 steps, 0/s, ETA ?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "images", "text"),
    [
        (1_200, 64, "40/s, 2,560 images/s"),
        (6, 64, "0.2/s, 13 images/s"),
        (90, 0, "3/s"),
    ],
)
def test_rates_of_fast_and_slow_steps(capsys, monkeypatch, steps, images, text):
    clock = iter([0.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.track(
        "student", total=steps, done=0, unit="steps", images=images
    ) as update:
        update(steps)
    assert f"{steps:,} of {steps:,} steps, {text}, took" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "shown", "left_out"),
    [("120", ["images/s", "cross entropy 0.125"], []), ("68", ["ETA"], ["entropy"])],
)
def test_bar_on_a_terminal(columns, shown, left_out):
    """Count and time left are there at any width, numbers as there is room."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": columns}
    subprocess.run(
        [sys.executable, "-c", TERMINAL], stdout=theirs, env=environment, check=True
    )
    os.close(theirs)
    output = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "synthesis" in output
    assert "8/8" in output
    assert "…" not in output
    for text in shown:
        assert text in output
    for text in left_out:
        assert text not in output


def test_text_is_left_as_it_is(capsys):
    text = "see [bold]" + 100 * " word" + " :smile: /some/path"
    progress.say(text)
    progress.warn(text)
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    assert captured.err == f"WARNING: {text}\n"
