"""Tables of committed results, in Markdown. Only what was measured is in them."""

import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dfkd_jax import config, settings_help
from dfkd_jax.reporting.settings import describe, short_text
from dfkd_jax.reporting.tables import in_percent
from dfkd_jax.runtime import progress
from docs.pages.results_files import (
    HEADLINE,
    STANDARD,
    USUAL_SEEDS,
    Collection,
)

NOTHING = "*Not measured yet.*"
LIBRARIES = {"jax": "JAX", "dfkd_jax": "dfkd_jax"}


def table(name: str, results: Collection, *, document: pathlib.Path) -> str | None:
    """The table called `name`, as Markdown; None if there can be no such table.

    Args:
        name: "main", "zoo", "settings/KIND", "methods/TASK", "sweeps/NAME" or
            "soft_labels/TASK".
        results: All of them.
        document: Where the table goes; links start from it.
    """
    kind, _, rest = name.partition("/")
    if name == "main":
        return headline(results, document=document)
    if name == "zoo":
        return zoo(results.zoo) if results.zoo else NOTHING
    if kind == "settings" and rest in config.KINDS:
        return settings_of(rest)
    if kind == "methods" and rest:
        return methods(results, rest) if rest in results.tasks else NOTHING
    if kind == "sweeps" and rest:
        return sweep(results.sweeps[rest]) if rest in results.sweeps else NOTHING
    if kind == "soft_labels" and rest:
        found = results.label_studies.get(rest)
        return soft_labels(found) if found else NOTHING
    return None


def settings_of(kind: str) -> str:
    """Every setting of a kind of config."""
    return markdown(
        ("`config.…`", "default", "possible", "what it is"),
        [
            [f"`{each.name}`", short_text(each.default), each.allowed, each.meaning]
            for each in settings_help.describe(
                config.KINDS[kind], config.defaults(kind)
            )
        ],
    )


def zoo(students: Sequence[Mapping[str, Any]]) -> str:
    """Students of the recipe as it is, one row a teacher."""
    usual = config.DistillationConfig().num_steps
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for student in students:
        if student["num_steps"] == usual:
            rows.setdefault(student["teacher"], []).append(student)
    order = sorted(rows.values(), key=lambda row: (row[0]["part"], row[0]["teacher"]))
    return markdown(
        (
            *("teacher", "part", "its accuracy, %", "student, %", "share of it, %"),
            *("agreement, %", "expected, %", "seconds"),
        ),
        [
            [
                row[0]["teacher"].replace("_", " "),
                row[0]["part"],
                f"{100 * row[0]['teacher_accuracy']:.2f}",
                spread([student["accuracy"] for student in row]),
                spread(
                    [each["accuracy"] / each["teacher_accuracy"] for each in row]
                ).partition(" ")[0],
                spread([student["agreement"] for student in row]).partition(" ")[0],
                in_percent(_expected(row[0])).replace(" %", ""),
                f"{statistics.mean(student['seconds'] for student in row):.0f}",
            ]
            for row in order
        ],
    )


def _expected(student):
    from dfkd_jax.methods import referee  # And JAX with it.

    return referee.estimate(student["referee"], student["teacher_accuracy"])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that are empty in all rows."""
    kept = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    lines = [[headings[place] for place in kept], ["---"] * len(kept)]
    lines += [[row[place] or "–" for place in kept] for row in rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def spread(shares: Sequence[float]) -> str:
    """Mean ± standard deviation in percent; how many seeds, if not the usual number."""
    text = f"{100 * statistics.mean(shares):.2f}"
    if len(shares) > 1:
        text += f" ± {100 * statistics.stdev(shares):.2f}"
    if len(shares) != USUAL_SEEDS:
        text += f" ({len(shares)} seed{'s' if len(shares) > 1 else ''})"
    return text


def headline(results: Collection, *, document: pathlib.Path) -> str:
    """A row a task: the teacher, and the student of this package's own recipe."""
    rows = [
        row for task in results.tasks.values() for row in task if row.method == HEADLINE
    ]
    if not rows:
        return NOTHING
    lines = []
    for row in rows:
        link = os.path.relpath(row.folder, document.parent)
        with_data = [
            f"{spread(other.accuracies)} %"
            for other in results.tasks[row.task]
            if other.method == STANDARD
        ]
        lines.append(
            [
                results.task(row.task),
                f"{100 * row.first['teacher']['test_accuracy']:.2f} %",
                f"{spread(row.accuracies)} %",
                with_data[0] if with_data else "",
                duration(row.seconds),
                f"[results]({pathlib.PurePath(link).as_posix()})",
            ]
        )
    headings = (
        *("data, teacher → student", "teacher", "student", "student *with* the data"),
        *("whole run", "files"),
    )
    note = (
        "Test accuracy after the last step, "
        f"{_over_seeds([seed['seed'] for row in rows for seed in row.runs])}; "
        f"{_circumstances([run for row in rows for run in row.runs])}."
    )
    return f"{markdown(headings, lines)}\n\n{note}"


def methods(results: Collection, task: str) -> str:
    """A row a method, of one task and one teacher."""
    rows = results.tasks[task]
    lines = [
        [
            results.method(row.method),
            "yes" if row.first["data_free"] is True else _real_data(row.first),
            f"{row.first['student']['network']} "
            f"({row.first['student']['parameters']:,})",
            spread(row.accuracies),
            _gap(row, rows),
            _published(results.published, row),
            duration(row.seconds),
            f"`{results.arguments(row)}`",
        ]
        for row in rows
    ]
    headings = (
        "method",
        "data-free",
        "student (parameters)",
        "test accuracy, %",
        "gap to standard KD",
        "published, %",
        "whole run",
        "`python -m dfkd_jax.main` with",
    )
    runs = [run for row in rows for run in row.runs]
    teacher = runs[0]["teacher"]
    note = (
        f"{_over_seeds([run['seed'] for run in runs])}; teacher "
        f"`{teacher['weights']}`, {100 * teacher['test_accuracy']:.2f} %; "
        f"{_circumstances(runs)}."
    )
    note = note[0].upper() + note[1:]
    if any(row.method == STANDARD for row in rows):
        note += " The gap, in percentage points, is to standard KD of the same student."
    return f"{markdown(headings, lines)}\n\n{note}"


def _real_data(run):
    what = run.get("real_data")
    return f"**no**: {what}" if what else "**no**"


def _gap(row, rows):
    standard = [
        other
        for other in rows
        if other.method == STANDARD
        and other.first["student"]["parameters"] == row.first["student"]["parameters"]
    ]
    if row.method == STANDARD or not standard:
        return ""
    gap = statistics.mean(standard[0].accuracies) - statistics.mean(row.accuracies)
    return f"{100 * gap:.2f}".replace("-", "−")


def _published(published, row):
    cells = []
    for number in published.get("numbers", ()):
        if (number["task"], number["method"]) == (row.task, row.method):
            source = published["sources"][number["source"]]
            note = f", {number['note']}" if number.get("note") else ""
            link = f"[{source['text']}]({source['url']})"
            cells.append(f"{number['accuracy']:.2f} ({link}{note})")
    return "; ".join(cells)


def sweep(found: Mapping[str, Any]) -> str:
    """A row a combination of settings."""
    rows = [row for row in found["rows"] if row["runs"]]
    if not rows:
        return NOTHING
    keys = found["varied"]
    alike = all(list(row["settings"]) == keys for row in rows)
    lines = [
        [
            *(
                [f"{short_text(row['settings'][key])}" for key in keys]
                if alike
                else [describe(row["settings"])]
            ),
            spread([run["accuracy"] for run in row["runs"]]),
            spread_of_gap(row),
            duration(mean_seconds(row)),
        ]
        for row in rows
    ]
    headings = [
        *([f"`{key}`" for key in keys] if alike else ["changed"]),
        f"{found['split']} accuracy, %",
        "gap to the teacher",
        "whole run",
    ]
    runs = [run for row in rows for run in row["runs"]]
    teacher = runs[0]["teacher"]
    fixed = f" with {describe(found['fixed'])}" if found["fixed"] else ""
    note = (
        f"{found['num_examples']:,} {found['split']} images; "
        f"{_over_seeds([run['seed'] for run in runs])}; `{found['config']}`{fixed}; "
        f"teacher `{teacher['weights']}`, {100 * teacher['accuracy']:.2f} %; "
        f"{_circumstances([found])}."
    )
    failed = sum(len(row.get("failed", {})) for row in found["rows"])
    if failed:
        note += f" {failed} runs failed."
    return f"{markdown(headings, lines)}\n\n{note}"


def mean_seconds(row: Mapping[str, Any]) -> float:
    """Seconds that a run of a sweep's row takes."""
    return statistics.mean(sum(run["seconds"].values()) for run in row["runs"])


def spread_of_gap(row: Mapping[str, Any]) -> str:
    """How far the students of a sweep's row are below their teacher, in points."""
    gaps = [run["teacher"]["accuracy"] - run["accuracy"] for run in row["runs"]]
    return f"{100 * statistics.mean(gaps):.2f}".replace("-", "−")


def soft_labels(study: Mapping[str, Any]) -> str:
    """A row a distribution of soft labels, then one a transfer set made from it."""
    lines = []
    for found in study["distributions"].values():
        other = found["drawn_for_another_class"]
        lines.append(
            [
                found["title"],
                "–: none is drawn" if other is None else f"{100 * other:.1f}",
                f"{100 * found['top_probability']:.1f}",
                f"{found['entropy']:.2f}",
                f"{100 * min(found['class_shares']):.1f}",
            ]
        )
    headings = (
        "soft labels",
        "of another class than drawn for, %",
        "mean probability of the likeliest class, %",
        "mean entropy, nats",
        "rarest class, %",
    )
    text = markdown(headings, lines)
    if study["pseudo_samples"]:
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for found in study["pseudo_samples"]:
            by_name.setdefault(found["name"], []).append(found)
        titles = {key: each["title"] for key, each in study["distributions"].items()}
        samples = [
            [
                f"`{name}`, {titles[runs[0]['distribution']]}",
                f"{runs[0]['num_images']:,}",
                spread([run["teacher_answers_otherwise"] for run in runs]),
            ]
            for name, runs in by_name.items()
        ]
        headings = (
            "finished pseudo samples of",
            "number",
            "teacher answers otherwise than the soft label, %",
        )
        text += f"\n\n{markdown(headings, samples)}"
    draws = next(iter(study["distributions"].values()))["num_draws"]
    note = (
        f"{draws:,} soft labels of each distribution from the weights of "
        f"`{study['teacher']['weights']}`, seed {study['seed']}; "
        f"`{study['command']}`; {_circumstances([study])}."
    )
    return f"{text}\n\n{note}"


def duration(seconds: float) -> str:
    """Seconds as tables have them."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else progress.duration(seconds)


def _over_seeds(seeds):
    found = sorted(set(seeds))
    if len(found) == 1:
        return f"seed {found[0]}"
    return f"mean ± standard deviation over seeds {', '.join(map(str, found))}"


def _circumstances(found):
    """Machines and versions of runs, each once: "Xeon, 2 cores; JAX 0.10.2, …"."""
    machines, versions = [], []
    for each in found:
        machine = each["machine"]
        for one in machine if isinstance(machine, list) else [machine]:
            machines.append(_machine(one))
        versions.append(
            ", ".join(f"{LIBRARIES[key]} {each['versions'][key]}" for key in LIBRARIES)
        )
    return "; ".join(
        " or ".join(dict.fromkeys(values)) for values in (machines, versions)
    )


def _machine(machine):
    if machine["backend"] == "cpu":
        return f"{machine['cpu']}, {machine['cpu_cores']} cores"
    count = machine["num_devices"]
    return (
        f"{count} × {machine['device_kind']}" if count > 1 else machine["device_kind"]
    )
