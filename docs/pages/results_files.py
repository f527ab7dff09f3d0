"""Committed results: read, and checked to fit together before they share a table.

results/TASK/METHOD/seed<n>.json   `results.json` of a run
results/sweeps/NAME.json           `sweep.json` of a sweep
results/soft_labels/TASK.json      what `docs.pages.label_study` wrote
results/zoo/students.json          what `configs.zoo.calibrate` collected
results/published.json             numbers of others, with their sources
"""

import dataclasses
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dfkd_jax.errors import ResultsError
from dfkd_jax.reporting.settings import flatten, short_text
from dfkd_jax.runtime import files, records

REQUIRED = (
    "experiment",
    "seed",
    "data_free",
    "dataset",
    "teacher",
    "student",
    "seconds",
    "command",
    "machine",
    "versions",
    "config",
)
USUAL_SEEDS = 3  # A cell says how many there are where there are fewer, or more.
STANDARD = "kd"  # The method that others are compared with.
HEADLINE = "default"  # This package's own.
# Seeds of a row may differ in these alone.
OWN_SETTINGS = ("seed",)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """The runs of one method on one task: the same in all but their seeds.

    Attributes:
        task: Folder in `results`.
        method: Folder in that.
        runs: Contents of the files, by seed.
        folder: Where they are.
    """

    task: str
    method: str
    runs: Sequence[Mapping[str, Any]]
    folder: pathlib.Path

    @property
    def accuracies(self) -> list[float]:
        """Of the student on the test set, one a seed."""
        return [run["student"]["test_accuracy"] for run in self.runs]

    @property
    def first(self) -> Mapping[str, Any]:
        """The run with the lowest seed."""
        return self.runs[0]

    @property
    def seconds(self) -> float:
        """That a whole run takes, mean over seeds."""
        return statistics.mean(sum(run["seconds"].values()) for run in self.runs)

    @property
    def arguments(self) -> str:
        """Of the command that makes the runs again, without seed and folder."""
        words = self.first["command"].split()
        kept = [
            word
            for word in words
            if not re.match(r"--(config\.(seed|data\.\w+)|workdir)=", word)
        ]
        return " ".join(kept).removeprefix("python -m dfkd_jax.main ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """All committed results.

    Attributes:
        folder: Where they are.
        tasks: Rows by task, in the order of the tables.
        sweeps: By name.
        label_studies: By task.
        published: Contents of `published.json`.
        zoo: Students of the zoo, as `configs/zoo/calibrate.py` collects them.
    """

    folder: pathlib.Path
    tasks: Mapping[str, Sequence[Row]]
    sweeps: Mapping[str, Mapping[str, Any]]
    label_studies: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, Any]
    zoo: Sequence[Mapping[str, Any]]

    def method(self, name: str) -> str:
        """A method as tables call it."""
        return self.published.get("methods", {}).get(name, name.replace("_", " "))

    def arguments(self, row: Row) -> str:
        """Of the command that makes a row again, where the config has changed since."""
        now = self.published.get("commands", {})
        return now.get(f"{row.task}/{row.method}", row.arguments)

    def task(self, name: str) -> str:
        """A task as tables call it."""
        return self.published.get("tasks", {}).get(name, name.replace("_", " "))


def read(folder: pathlib.Path) -> Collection:
    """All results in `folder`.

    Raises:
        ResultsError: Files do not fit together; names them.
        CheckpointError: One is no JSON.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: there is no such folder of results.")
    path = folder / "published.json"
    published = records.read(path) if path.exists() else {}
    order = list(published.get("methods", {}))
    tasks: dict[str, list[Row]] = {}
    found = {path.parent for path in folder.glob("*/*/seed*.json")}
    for parent in sorted(found, key=lambda parent: _rank(parent.name, order)):
        tasks.setdefault(parent.parent.name, []).append(_read_row(parent))
    for rows in tasks.values():
        _check_task(rows)
    return Collection(
        folder=folder,
        tasks=dict(
            sorted(tasks.items(), key=lambda t: _rank(t[0], tasks_of(published)))
        ),
        sweeps={
            path.stem: _read_sweep(path)
            for path in sorted((folder / "sweeps").glob("*.json"))
        },
        label_studies={
            path.stem: _read_study(path)
            for path in sorted((folder / "soft_labels").glob("*.json"))
        },
        published=published,
        zoo=_read_zoo(folder / "zoo/students.json"),
    )


def tasks_of(published: Mapping[str, Any]) -> list[str]:
    """Names of tasks, in the order of the tables."""
    return list(published.get("tasks", {}))


def _rank(name, order):
    return (order.index(name) if name in order else len(order), name)


def _read_row(folder):
    runs = []
    for path in sorted(folder.glob("seed*.json"), key=lambda path: _seed(path)):
        with records.as_written(path):
            runs.append(_read_run(path))
    row = Row(task=folder.parent.name, method=folder.name, runs=runs, folder=folder)
    for run in runs[1:]:
        for key in ("config", "versions", "dataset", "data_free"):
            _check_alike(folder, row.first, run, key)
    return row


def _read_run(path):
    run = records.read(path)
    missing = [key for key in REQUIRED if key not in run]
    if missing:
        raise ResultsError(f"{path} is no results.json of a run: no {missing[0]!r}.")
    if run["seed"] != _seed(path):
        raise ResultsError(f"{path} is of seed {run['seed']}: rename it.")
    if run.get("split", "test") != "test":
        raise ResultsError(
            f"{path} is of the {run['split']} part; tables of methods are of the "
            "test set: evaluate with --config.data.split=test."
        )
    if run["student"]["test_accuracy"] is None:
        raise ResultsError(f"{path} has no test accuracy: evaluate that run.")
    return run


def _seed(path):
    digits = path.stem.removeprefix("seed")
    if not digits.isdecimal():
        raise ResultsError(f"{path}: name it after its seed, as in seed0.json.")
    return int(digits)


def _check_alike(folder, one, other, key):
    """Seeds of a row must differ in nothing else."""
    pair = [
        flatten(run[key]) if isinstance(run[key], Mapping) else {"": run[key]}
        for run in (one, other)
    ]
    for name in dict.fromkeys([*pair[0], *pair[1]]):
        values = [values.get(name) for values in pair]
        if name not in OWN_SETTINGS and values[0] != values[1]:
            path = f"{key}.{name}" if name else key
            shown = ", ".join(map(short_text, values))
            raise ResultsError(
                f"{folder}: seeds {one['seed']} and {other['seed']} differ in {path} "
                f"({shown}): make all seeds of a row alike."
            )


def _check_task(rows):
    """Rows of a table are of one teacher and one test set."""
    runs = [(row, run) for row in rows for run in row.runs]
    row, first = runs[0]
    for other, run in runs[1:]:
        for what, one, two in (
            ("teacher", first["teacher"]["sha256"][:16], run["teacher"]["sha256"][:16]),
            ("data set", first["dataset"], run["dataset"]),
        ):
            if one != two:
                raise ResultsError(
                    f"{other.folder}/seed{run['seed']}.json has another {what} than "
                    f"{row.folder}/seed{first['seed']}.json ({two}, {one}): they "
                    "cannot share a table."
                )


def _read_sweep(path):
    sweep = records.read(path)
    if not str(sweep.get("format", "")).startswith("dfkd_jax-sweep-"):
        raise ResultsError(f"{path} is no sweep.json of dfkd_jax.sweep.")
    if isinstance(sweep.get("versions"), list) and sweep["versions"]:
        raise ResultsError(
            f"{path}: its runs were made with different versions: make them alike."
        )
    with records.as_written(path):
        teachers = {
            run["teacher"]["sha256"][:16]
            for row in sweep["rows"]
            for run in row["runs"]
        }
    if len(teachers) > 1:
        raise ResultsError(
            f"{path}: its runs have different teachers "
            f"({', '.join(sorted(teachers))}): they cannot share a table."
        )
    return sweep


def _read_zoo(path):
    return files.read_object(path)["students"] if path.exists() else []


def _read_study(path):
    study = records.read(path)
    if not str(study.get("format", "")).startswith("dfkd_jax-label-study-"):
        raise ResultsError(f"{path} was not written by docs.pages.label_study.")
    return study
