"""What the page that compares several runs shows."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfkd_jax.reporting import charts, findings, images, settings
from dfkd_jax.reporting.run_files import Run

COMPARED_CLASSES = 10
COMPARED_PER_CLASS = 3
MAX_COMPARED = 12  # Experiments whose pseudo samples and curves are shown.
# Lines and the borders of their keys differ by more than color.
DASHES = ("", "6 3", "2 3")
BORDERS = ("solid", "dashed", "dotted")

IGNORED_SETTINGS = ("seed", "cpu_devices")  # They make no other experiment.


def group(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by experiment: the same teacher and settings, whatever the seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_identity(run), sort_keys=True), []).append(run)
    return [sorted(found, key=lambda run: run.seed) for found in groups.values()]


def _identity(run):
    identity = settings.flatten(run.config)
    for name in IGNORED_SETTINGS:
        identity.pop(name, None)
    return identity | {
        "data set": run.description["dataset"],
        "teacher (SHA-256)": run.teacher_sha256[:16],
        "evaluated on": run.split,
    }


def context(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page that compares `runs` shows."""
    groups = group(runs)
    keys = [_letters(index) for index in range(len(groups))]
    experiments = [
        _experiment(key, found)
        | {"color": _color(index, len(groups)), "border": BORDERS[index % 3]}
        for index, (key, found) in enumerate(zip(keys, groups, strict=True))
    ]
    return {
        "title": f"{len(runs)} runs of {len(groups)} "
        + ("experiment" if len(groups) == 1 else "experiments"),
        "experiments": experiments,
        "accuracies": _accuracies(experiments),
        "warnings": _warnings(keys, groups),
        "runs": [
            {"key": key, "run": run}
            for key, found in zip(keys, groups, strict=True)
            for run in found
        ],
        "differences": _differences(keys, groups),
        "curves": _overlays(keys[:MAX_COMPARED], groups[:MAX_COMPARED], len(groups)),
        "samples": _side_by_side(keys[:MAX_COMPARED], groups[:MAX_COMPARED]),
        "num_left_out": max(0, len(groups) - MAX_COMPARED),
    }


def _letters(index):
    """A, B, …, Z, AA, AB, …."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(65 + index % 26)


def _color(index, count):
    return charts.color(index, max(count, 3))


def _experiment(key, runs):
    evaluated = [run for run in runs if run.evaluation("student")]

    def values(role, name):
        return [run.evaluation(role)[name] for run in evaluated if run.evaluation(role)]

    seconds = [sum(run.seconds.values()) for run in runs if run.seconds]
    return {
        "key": key,
        "name": runs[0].name,
        "data_free": all(run.data_free for run in runs),
        "seeds": [run.seed for run in runs],
        "student": values("student", "accuracy"),
        "intervals": values("student", "accuracy_interval_95"),
        "teacher": values("teacher", "accuracy"),
        "gap": [
            teacher - student
            for teacher, student in zip(
                values("teacher", "accuracy"),
                values("student", "accuracy"),
                strict=True,
            )
        ],
        "agreement": values("student", "agreement_with_teacher"),
        "parameters": next(
            (
                run.results["student"]["parameters"]
                for run in runs
                if "student" in run.results
            ),
            None,
        ),
        "seconds": statistics.mean(seconds) if seconds else None,
    }


def _accuracies(experiments):
    """The main chart: students with their seeds, beside their teachers."""
    rows = [
        charts.Interval(
            name=f"{each['key']}  {each['name']}",
            share=statistics.mean(each["student"]),
            ends=tuple(map(statistics.mean, zip(*each["intervals"], strict=True))),
            color=each["color"],
            parts=each["student"],
            reference=each["teacher"][0] if each["teacher"] else None,
        )
        for each in experiments
        if each["student"]
    ]
    if not rows:
        return None
    text = "; ".join(f"{row.name} {row.share:.2%}" for row in rows)
    return charts.intervals(rows, label=f"Accuracy of the students: {text}")


def _warnings(keys, groups):
    """Titles of what was found, by experiment, with how many of its runs have it."""
    rows = []
    for key, found in zip(keys, groups, strict=True):
        titles = Counter(each.title for run in found for each in findings.find(run))
        parts = [
            title if count == len(found) else f"{title} ({count} of {len(found)} runs)"
            for title, count in titles.items()
        ]
        if parts:
            rows.append({"key": key, "name": found[0].name, "text": "; ".join(parts)})
    return rows


def _differences(keys, groups):
    """Settings that are not the same in all experiments that have them.

    Returns:
        By name, `[(keys, value)]`, experiments with the same value together.
    """
    identities = [_identity(found[0]) for found in groups]
    found = {}
    for name in dict.fromkeys(name for identity in identities for name in identity):
        by_value: dict[str, list[str]] = {}
        for key, identity in zip(keys, identities, strict=True):
            if name in identity:
                text = settings.as_text(identity[name])
                by_value.setdefault(text, []).append(key)
        if len(by_value) > 1:
            found[name] = [(held, value or "–") for value, held in by_value.items()]
    return found


def _overlays(keys, groups, count):
    panels: dict[tuple[str, str], dict[str, Any]] = {}
    for index, found in enumerate(groups):
        for run in found:
            for curve in run.curves:
                panel = panels.setdefault(
                    (curve.stage, curve.y_label), {"curve": curve, "lines": []}
                )
                steps, means = curve.smooth()
                panel["lines"].append(
                    charts.Line(
                        x=steps,
                        y=means,
                        color=_color(index, count),
                        dashes=DASHES[index % 3],
                    )
                )
    return [
        {
            "stage": panel["curve"].stage,
            "chart": charts.lines(
                panel["lines"],
                x_label=panel["curve"].x_label,
                y_label=panel["curve"].y_label,
                label=f"{panel['curve'].y_label} of {panel['curve'].stage}: "
                f"{len(panel['lines'])} runs of the experiments {', '.join(keys)}",
            ),
        }
        for panel in panels.values()
    ]


def _side_by_side(keys, groups):
    """Pseudo samples of each experiment's first run, a column a class."""
    blocks = []
    for key, found in zip(keys, groups, strict=True):
        run = found[0]
        if run.sample is None or not len(run.sample.pixels):
            continue
        likeliest = run.sample.pixel_labels.argmax(-1)
        columns = []
        for k in images.spread(range(len(run.class_names)), COMPARED_CLASSES):
            name = run.class_names[k]
            columns.append(
                {
                    "name": name,
                    "samples": [
                        {
                            "uri": images.thumbnail_uri(run.sample.pixels[i]),
                            "alt": f"Pseudo sample of {key}, likeliest class {name}",
                        }
                        for i in np.flatnonzero(likeliest == k)[:COMPARED_PER_CLASS]
                    ],
                }
            )
        blocks.append(
            {"key": key, "name": run.name, "seed": run.seed, "columns": columns}
        )
    return blocks
