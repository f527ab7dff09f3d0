"""`report.html` of a run, and the page that compares several: one file each.

The pages load nothing: style and charts are inside, images are data URIs, there is no
script, and a content security policy forbids all the rest. Names and settings are
escaped. A page is made from a work directory alone, the same each time.
"""

import functools
import importlib.util
import pathlib
import statistics
from collections.abc import Sequence

from dfkd_jax import __version__
from dfkd_jax.reporting import figures, run_files
from dfkd_jax.runtime import files, progress, records

INSTALL_HINT = 'pip install ".[plots]" in a clone of dfkd_jax'


def is_available() -> bool:
    """Whether pages are wanted and can be made; warns once where Jinja2 is missing."""
    return figures.are_wanted() and _has_jinja2()


@functools.cache
def _has_jinja2():
    if importlib.util.find_spec("jinja2") is None:
        progress.warn(f"No report.html without Jinja2: {INSTALL_HINT}.")
        return False
    return True


def write(workdir: pathlib.Path, output: pathlib.Path | None = None) -> None:
    """Writes `report.html` of the run in `workdir`, and says where it is.

    Without the extra `plots` there is a warning and no page.

    Args:
        workdir: Of a distillation run; it need not be finished.
        output: Where the page goes; `report.html` in `workdir` by default.

    Raises:
        CheckpointError: `workdir` holds no run, or a damaged one.
        StorageError: The page cannot be written.
    """
    if not is_available():
        return
    from dfkd_jax.reporting import report_page

    run = run_files.read(workdir)
    with records.as_written(workdir), progress.busy("Drawing the report"):
        page = _render("report.html", report_page.context(run))
    _write(output or workdir / "report.html", page)


def write_comparison(folders: Sequence[pathlib.Path], output: pathlib.Path) -> None:
    """Writes one page that compares the runs in `folders`, and says where it is.

    Without the extra `plots` there is a warning and no page.

    Raises:
        CheckpointError: A folder holds no run, or a damaged one.
        StorageError: The page cannot be written.
    """
    if not is_available():
        return
    from dfkd_jax.reporting import comparison_page

    runs = [run_files.read(folder) for folder in folders]
    names = ", ".join(map(str, folders))
    with records.as_written(names), progress.busy("Drawing the comparison"):
        page = _render("comparison.html", comparison_page.context(runs))
    _write(output, page)


def _render(template, context):
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "hundredths": hundredths,
        "unbroken": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
        "whole": lambda number: f"{number:,}",
        "duration": progress.duration,
        "spread": spread,
    }
    return environment.get_template(template).render(version=__version__, **context)


def _write(path, text):
    files.check_replaceable(path, '<meta name="generator" content="dfkd_jax')
    with files.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    progress.say(f"Report: {path}")


def percent(share: float | None, digits: int = 2) -> str:
    """A share as people read it, with a space that does not break."""
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def hundredths(share: float | None, digits: int = 1) -> str:
    """A share in percent, where the heading has the unit."""
    return "–" if share is None else f"{100 * share:.{digits}f}".replace("-", "−")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds of shares, in percent."""
    if not values:
        return "–"
    mean = f"{100 * statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        mean += f" ± {100 * statistics.stdev(values):.{digits}f}"
    return f"{mean}\N{NO-BREAK SPACE}%"
