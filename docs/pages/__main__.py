"""Writes tables and figures of committed results into README.md and docs/*.md.

    python -m docs.pages results/
    python -m docs.pages results/ --check
    python -m docs.pages results/ --runs=runs

Reads results/TASK/METHOD/seed<n>.json (results.json of runs), results/sweeps/NAME.json
(sweep.json of sweeps), results/soft_labels/TASK.json (docs.pages.label_study),
results/zoo/students.json (configs.zoo.calibrate)
and results/published.json, and nothing else: what has no results file is left out. Rows
of a table must be of one teacher and one test set; fewer than three seeds are said in
the row.

Documents are README.md and docs/*.md beside the folder of results. What stands between
these markers is written anew:

    <!-- table: NAME -->  NAME: main, zoo, settings/KIND, methods/TASK,
                                 sweeps/NAME, soft_labels/TASK
    <!-- end -->
    <!-- figure: NAME --> NAME: sweeps/NAME, soft_labels/TASK, label_mismatch/TASK,
    <!-- end -->                samples/TASK

Figures go to docs/figures; they need the extra `plots`. Pseudo samples are in no
results file: --runs names folders to look for the runs in.

--check writes nothing: exit status 1 where a table or figure is not what the results
say.
"""

import pathlib

from absl import flags

from dfkd_jax import command_line
from dfkd_jax.errors import ConfigError, ResultsError
from dfkd_jax.runtime import files, progress, records
from docs.pages import documents, result_figures, result_tables, results_files

FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Reads the results, then writes or checks documents and figures."""
    if len(argv) != 2:
        raise ConfigError("Name the folder of results: python -m docs.pages results/.")
    folder = pathlib.Path(argv[1])
    runs = [pathlib.Path(name) for name in FLAGS.runs]
    for path in runs:
        if not path.is_dir():
            raise ConfigError(f"--runs={path}: no such folder.")
    with records.as_written(folder):
        update(folder, runs=runs, check=FLAGS.check)
    return 0


def update(folder: pathlib.Path, *, runs: list[pathlib.Path], check: bool) -> None:
    """Makes documents and figures beside `folder` anew, or checks that they are.

    Args:
        folder: Of results.
        runs: Folders to look for runs in.
        check: Whether to write nothing.

    Raises:
        ResultsError: Results do not fit together, a marker is not known, or, with
            `check`, something is not up to date.
        MissingPackageError: There are figures to draw, and no matplotlib.
    """
    results = results_files.read(folder)
    root = folder.absolute().parent
    pictures = root / "docs" / "figures"
    figures = result_figures.find(results, pictures, runs=runs)
    stale = []
    if check:
        stale += [
            f"{_shown(figure.path, root)} shows other results"
            for figure in figures.values()
            if not figure.is_current
        ]
        known = {figure.path for figure in figures.values()}
        stale += [
            f"{_shown(path, root)} has no results"
            for path in sorted(pictures.glob("*.png"))
            if path not in known
        ]
    else:
        _draw(figures, pictures)

    def fill(kind, name, document):
        if kind == "figure":
            if name.partition("/")[0] not in result_figures.KINDS:
                raise _unknown(kind, name, document)
            figure = figures.get(name)
            if figure is None:
                return ""
            return f"![{figure.alt}]({_shown(figure.path, document.parent)})"
        text = result_tables.table(name, results, document=document)
        if text is None:
            raise _unknown(kind, name, document)
        return text

    for document in documents.paths(root):
        text, changed = documents.filled(document, fill)
        if check:
            stale += [f"{_shown(document, root)}: {block}" for block in changed]
        elif changed:
            documents.write(document, text)
            progress.say(f"  {document}: {', '.join(changed)}")
    if stale:
        raise ResultsError(
            f"Not what the results say: {'; '.join(stale)}. Make them anew: "
            f"python -m docs.pages {folder}."
        )


def _draw(figures, folder):
    to_draw = {name: figure for name, figure in figures.items() if figure.draw}
    for figure in figures.values():
        if figure.draw is None and not figure.is_current:
            progress.warn(
                f"{figure.path} shows other runs than the results: name the folder of "
                "the runs with --runs."
            )
    if not to_draw:
        return
    result_figures.require_matplotlib()
    with files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for figure in to_draw.values():
        figure.draw(figure.path)
        progress.say(f"  {figure.path}")


def _shown(path, start):
    return pathlib.PurePath(path).relative_to(start).as_posix()


def _unknown(kind, name, document):
    return ResultsError(
        f"{document}: there is no {kind} {name!r}; see python -m docs.pages --help."
    )


if __name__ == "__main__":
    flags.DEFINE_boolean("check", False, "Write nothing; 1 where something differs.")
    flags.DEFINE_multi_string("runs", [], "Folders with runs, for pseudo samples.")
    command_line.run(main, positional=True)
