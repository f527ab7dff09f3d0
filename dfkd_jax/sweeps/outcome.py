"""What came out of a sweep: `sweep.json`, and a table."""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.reporting.settings import short_text
from dfkd_jax.runtime import files, progress, records
from dfkd_jax.runtime.workdir import RECORD, compare
from dfkd_jax.settings import recorded
from dfkd_jax.sweeps import sharing
from dfkd_jax.sweeps.plan import Run

FORMAT = "dfkd_jax-sweep-1"


def results(run: Run) -> dict[str, Any]:
    """`results.json` of a run; empty where there is none yet."""
    path = run.workdir / "results.json"
    return records.read(path) if path.exists() else {}


def accuracy(run: Run) -> float | None:
    """Of the student on the part that the sweep reads; None if it is not known yet."""
    found, data = results(run), run.settings.data
    if found.get("dataset") != data.source:
        return None
    return found.get("student", {}).get(f"{data.split}_accuracy")


def is_finished(run: Run) -> bool:
    """Whether `run` has its student and the accuracy that the sweep is about."""
    return accuracy(run) is not None


def in_words(run: Run) -> str:
    """The accuracy of a finished run."""
    return f"{run.settings.data.split} accuracy {accuracy(run):.2%}"


def differences(run: Run) -> list[str]:
    """What differs between the settings of `run` and those of its work directory."""
    path = run.workdir / "run.json"
    if not path.exists():
        return []
    now = dataclasses.asdict(run.settings)
    with records.as_written(path):
        before = records.read(path)["config"]
        now = {key: now[key] for key in now if key in before}
        return compare(before, recorded(type(run.settings), now, before))


def check_workdirs(runs: Sequence[Run], output: pathlib.Path) -> None:
    """Before a sweep starts: whether its folders and `sweep.json` are its own.

    Raises:
        CheckpointError: A work directory was made with other settings.
        StorageError: One, or `output`, was not made by dfkd_jax.
    """
    if output.exists() and files.read_object(output).get("format") != FORMAT:
        raise StorageError(
            f"{output} is no sweep's and is left alone: choose another --workdir."
        )
    for run in runs:
        files.check_owned(run.workdir, RECORD)
        if found := differences(run):
            raise CheckpointError(
                f"{run.workdir} was made with other settings: {'; '.join(found[:5])}. "
                "Choose another --workdir, or delete that folder."
            )


def summarize(
    runs: Sequence[Run],
    failed: Mapping[Run, str],
    *,
    name: str,
    config_file: str,
    fixed: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """`sweep.json`: settings that vary, and what each combination of them gave.

    Args:
        runs: All runs.
        failed: Those that failed, with the reason.
        name: Of the sweep.
        config_file: Of all runs.
        fixed: Settings that were changed for all runs.
        command: The sweep's.
    """
    rows = [
        _row([run for run in runs if run.name == name], failed)
        for name in dict.fromkeys(run.name for run in runs)
    ]
    found = [results(run) for run in runs if is_finished(run)]
    return {
        "format": FORMAT,
        "sweep": name,
        "config": config_file,
        "fixed": dict(fixed),
        "varied": list(dict.fromkeys(key for run in runs for key in run.changes)),
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "split": runs[0].settings.data.split,
        "num_examples": _same(
            [each["student"]["evaluation"]["num_examples"] for each in found]
        ),
        "rows": rows,
        "machine": _same([each["machine"] for each in found]),
        "versions": _same([each["versions"] for each in found]),
        "command": command,
    }


def _same(values):
    """The value that all share; a list of the different ones where they do not."""
    different = [
        value for place, value in enumerate(values) if value not in values[:place]
    ]
    return different[0] if len(different) == 1 else different


def _row(runs, failed):
    """One combination of settings: figures of its runs, their mean and deviation."""
    finished = [run for run in runs if is_finished(run)]
    accuracies = [found for run in finished if (found := accuracy(run)) is not None]
    row = {
        "name": runs[0].name,
        "settings": dict(runs[0].changes),
        "mean": statistics.mean(accuracies) if accuracies else None,
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "runs": [_figures(run, runs[0].settings.data.split) for run in finished],
    }
    if reasons := {str(run.seed): failed[run] for run in runs if run in failed}:
        row["failed"] = reasons
    return row


def _figures(run, split):
    with records.as_written(run.workdir / "results.json"):
        return _figures_of(run, results(run), split)


def _figures_of(run, found, split):
    teacher, student = found["teacher"], found["student"]
    figures = {
        "seed": run.seed,
        "accuracy": accuracy(run),
        "agreement_with_teacher": student["evaluation"]["agreement_with_teacher"],
        "experiment": found["experiment"],
        "dataset": found["dataset"],
        "data_free": found["data_free"],
        "num_pseudo_samples": found.get("num_pseudo_samples"),
        "teacher": {
            key: teacher[key] for key in ("network", "weights", "sha256", "parameters")
        }
        | {"accuracy": teacher[f"{split}_accuracy"]},
        "student": {key: student[key] for key in ("network", "sha256", "parameters")},
        "transfer_set_sha256": found.get("transfer_set_sha256"),
        "seconds": dict(found["seconds"]),
    }
    if maker := sharing.origin(run):
        # The seconds are those that the run would have taken by itself.
        seconds = figures["seconds"]
        seconds["synthesis"] = seconds.get("synthesis", 0.0) + maker["seconds"]
        figures["transfer_set_of"] = maker["run"]
    return figures


def write(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Writes `sweep.json`, and says where it is."""
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, summary)
    progress.say(f"  {path}")


def print_table(summary: Mapping[str, Any]) -> None:
    """Prints mean and deviation of each combination of settings."""
    table = Table(
        title=f"{summary['sweep']}: {summary['split']} accuracy of the student"
    )
    keys = summary["varied"]
    alike = keys and all(list(row["settings"]) == keys for row in summary["rows"])
    for heading in keys if alike else ["changed"]:
        table.add_column(heading)
    for heading in ("mean", "std", "seeds", "time a run"):
        table.add_column(heading, justify="right")
    for row in summary["rows"]:
        settings = row["settings"]
        count, wanted = len(row["runs"]), len(summary["seeds"])
        table.add_row(
            *([short_text(settings[key]) for key in keys] if alike else [row["name"]]),
            "–" if row["mean"] is None else f"{row['mean']:.2%}",
            "–" if row["std"] is None else f"{100 * row['std']:.2f}",
            f"{count}" if count == wanted else f"{count} of {wanted}",
            progress.duration(mean_seconds(row["runs"])) if count else "–",
        )
    Console(highlight=False, soft_wrap=True).print(table)


def mean_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that a run takes, over all stages."""
    return statistics.mean(sum(run["seconds"].values()) for run in runs)
