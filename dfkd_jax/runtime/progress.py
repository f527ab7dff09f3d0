"""What a person sees while a stage runs: a bar on a terminal, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator

from rich import progress
from rich.console import Console

PLAIN_SECONDS = 15.0  # Between two plain lines.
BAR_WIDTH = 12

_muted = False


def mute() -> None:
    """Says, warns and shows nothing from now on: another process does."""
    global _muted
    _muted = True


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Says, warns and shows nothing meanwhile."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


def say(text: str) -> None:
    """One line for the person who waits."""
    Console(highlight=False, soft_wrap=True, quiet=_muted).print(
        text, markup=False, emoji=False
    )


def warn(text: str) -> None:
    """One line that should not be missed; on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True, quiet=_muted).print(
        f"WARNING: {text}", markup=False, emoji=False, style="bold yellow"
    )


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """Tells a person at a terminal what takes a while, and that it goes on."""
    if _muted or not sys.stdout.isatty():
        yield
        return
    with Console().status(f"{text} …"):
        yield


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    seconds = round(seconds)  # First, or 119.7 s become 1 min 60 s.
    if seconds < 5_970:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


@contextlib.contextmanager
def track(
    description: str, *, total: int, done: int, unit: str, images: int = 0
) -> Iterator[Callable[..., None]]:
    """Shows how far a stage is, at what rate, and when it will be done.

    Args:
        description: Of the stage, a word or two.
        total: Units of work in all.
        done: Units that an earlier run finished; they do not count towards the rate.
        unit: What a unit is called, in the plural.
        images: In a unit, where their rate is worth showing too.

    Yields:
        `update(done, **values)`, to be called with the units done so far and numbers
        worth showing.
    """
    bar = _bar if _shows_bars() and not _muted else _lines
    with bar(description, total, done, unit, images) as update:
        yield update


def _shows_bars():
    """Whether this is a terminal, or a notebook that can change what it shows."""
    if sys.stdout.isatty():
        return True
    return Console().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


@contextlib.contextmanager
def _bar(description, total, done, unit, images):
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=BAR_WIDTH),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[values]}"),
    )
    with progress.Progress(*columns, speed_estimate_period=120) as display:
        task = display.add_task(description, total=total, completed=done, values="")
        start = time.monotonic()
        taken = len(f"{description} {total}/{total} {unit} ETA 0:00:00  ") + BAR_WIDTH

        def update(now_done: int, **values: float) -> None:
            rate = (now_done - done) / max(time.monotonic() - start, 1e-9)
            per_second, *of_images = _rates(rate, images)
            texts = per_second, *_format(values), *of_images
            shown = _that_fit(texts, display.console.width - taken)
            display.update(task, completed=now_done, values=shown)

        yield update


def _that_fit(texts, width):
    """As many of `texts`, from the first on, as there is room for."""
    shown = ""
    for text in texts:
        longer = f"{shown}  {text}" if shown else text
        if len(longer) > width:
            break
        shown = longer
    return shown


@contextlib.contextmanager
def _lines(description, total, done, unit, images):
    start = time.monotonic()
    last = start

    def update(now_done: int, **values: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_SECONDS and now_done < total:
            return
        last = now
        rate = (now_done - done) / max(now - start, 1e-9)
        left = duration((total - now_done) / rate) if rate else "?"
        parts = [
            f"{now_done:,} of {total:,} {unit}",
            *_rates(rate, images),
            *_format(values),
        ]
        parts.append(
            f"ETA {left}" if now_done < total else f"took {duration(now - start)}"
        )
        say(f"  {description}: {', '.join(parts)}")

    yield update


def _rates(rate, images):
    """Of units, slow ones to two figures, and of the images in them."""
    shown = [f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"]
    return shown + ([f"{rate * images:,.0f} images/s"] if images else [])


def _format(values):
    return [f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items()]
