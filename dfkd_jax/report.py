"""Makes the report of a run again, or one page that compares several runs.

    python -m dfkd_jax.report runs/mnist/seed0
    python -m dfkd_jax.report runs/mnist/seed* --output=comparison.html

Of one work directory of `dfkd_jax.main`, finished or not: `report.html` in it. Of
several: one page with a table (mean and standard deviation over the seeds of an
experiment), the settings that differ, loss curves and pseudo samples side by side.
Everything comes from the work directories: no teacher is asked, no real data is read.
Needs the extra `plots`.
"""

import pathlib

from absl import flags

from dfkd_jax import command_line
from dfkd_jax.errors import ConfigError, MissingPackageError

FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Reads the work directories and writes the page."""
    folders = list(dict.fromkeys(map(pathlib.Path, argv[1:])))
    if not folders:
        raise ConfigError(
            "Name a work directory: python -m dfkd_jax.report runs/mnist/seed0."
        )
    from dfkd_jax.reporting import pages

    if not pages.is_available():
        raise MissingPackageError(f"A report needs Jinja2: {pages.INSTALL_HINT}.")
    output = pathlib.Path(FLAGS.output) if FLAGS.output else None
    if len(folders) == 1:
        pages.write(folders[0], output)
    else:
        pages.write_comparison(folders, output or pathlib.Path("comparison.html"))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(
        "output",
        "",
        "The page; default report.html in the work directory, or comparison.html here.",
    )
    command_line.run(main, positional=True)
