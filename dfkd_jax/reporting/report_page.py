"""What `report.html` shows of one run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dfkd_jax.reporting import (
    charts,
    findings,
    images,
    projection,
    settings,
    tables,
)
from dfkd_jax.reporting.figures import MAX_CLASSES, PER_CLASS
from dfkd_jax.reporting.run_files import Run

MAX_TABLE = 12  # Classes of a confusion matrix with numbers.
# Percent of the color in a cell from which white (in light mode) or black (in dark
# mode) is the text color with more contrast; computed from the colors in style.css.
WHITE_IN_LIGHT = {"hit": 85, "error": 91}
BLACK_IN_DARK = {"hit": 63, "error": 61}
MAX_ROWS = 20  # Classes of an open table.
MAX_BARS = 30  # Classes of a bar chart.

# What each stage is given. `data_free` runs read no real data before the last.
READS = {
    "prepare": "the teacher's weights",
    "synthesis": "the teacher",
    "distillation": "pseudo samples and the teacher",
}
DISTRIBUTION_NAMES = {
    "gaussian": "Multivariate normal",
    "dirichlet": "Dirichlet (ZSKD)",
}


def context(run: Run) -> dict[str, Any]:
    """What `report.html` shows of a run."""
    student, teacher = run.evaluation("student"), run.evaluation("teacher")
    told = run.results.get("expected")
    expected, _, margin = tables.in_percent(told).partition(" (") if told else 3 * ("",)
    return {
        "title": f"{run.name}, seed {run.seed}",
        "run": run,
        "findings": findings.find(run),
        "student": student,
        "teacher": teacher,
        "expected": expected,
        "margin": f"({margin}",
        "assumption": tables.assumption(told) if told else "",
        "pilot": _pilot(run.results.get("pilot")),
        "label_gap": findings.label_gap(run),
        "ratio": _ratio(run.results),
        "intervals": _intervals(run, student, teacher),
        "classes": _classes(run, student, teacher),
        "confusion": _confusion(run, student),
        "reliability": _reliability(student),
        "curves": _curves(run),
        "samples": _samples(run),
        "labels": _labels(run),
        "stages": _stages(run, student),
        "total_seconds": sum(run.seconds.values()),
        "changed": _changed(run),
        "origin": _origin(run.results),
        "settings": _sections(run.config),
        "digests": _digests(run),
    }


def _ratio(results):
    counts = [
        results.get(role, {}).get("parameters") for role in ("teacher", "student")
    ]
    return counts[0] / counts[1] if all(counts) else None


def _pilot(found):
    """What was measured on the teacher, as in "τ 5.3, σ 0.004"."""
    symbols = {"temperature": "τ", "sigma": "σ"}
    known = (found or {}).items()
    return ", ".join(f"{symbols[k]} {v:g}" for k, v in known if k in symbols)


def _intervals(run, student, teacher):
    if not (student and teacher):
        return None
    rows = [
        charts.Interval(
            name=name,
            share=found["accuracy"],
            ends=tuple(found["accuracy_interval_95"]),
            color=f"var(--{color})",
        )
        for name, found, color in (
            ("teacher", teacher, "muted"),
            ("student", student, "accent"),
        )
    ]
    text = "; ".join(
        f"{row.name} {row.share:.2%}, from {row.ends[0]:.2%} to {row.ends[1]:.2%}"
        for row in rows
    )
    return charts.intervals(
        rows, label=f"{run.split.title()} accuracy with 95 % intervals: {text}"
    )


def _classes(run, student, teacher):
    """Rows of the table by class; those with the lowest recall if there are many."""
    if not student:
        return None
    rows = []
    teachers = teacher["per_class"] if teacher else [None] * len(student["per_class"])
    for name, own, other in zip(
        run.class_names, student["per_class"], teachers, strict=True
    ):
        recall, compared = own["recall"], other and other["recall"]
        rows.append(
            {
                "name": name,
                "count": own["count"],
                "student": recall,
                "teacher": compared,
                "gap": None if None in (recall, compared) else compared - recall,
                "precision": own["precision"],
            }
        )
    if len(rows) <= MAX_ROWS:
        return {"first": rows, "all": None}
    by_recall = sorted(rows, key=lambda row: (row["student"] is None, row["student"]))
    return {"first": by_recall[:MAX_ROWS], "all": rows}


def _confusion(run, student):
    if not student:
        return None
    confusion = np.asarray(student["confusion"])
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:5]
    worst = [
        {
            "true": run.class_names[row],
            "predicted": run.class_names[column],
            "count": int(errors[row, column]),
            "share": shares[row, column],
        }
        for row, column in zip(*np.unravel_index(order, errors.shape), strict=True)
        if errors[row, column]
    ]
    longest = max(map(len, run.class_names))
    found = {
        "worst": worst,
        "rows": None,
        "image": None,
        "names_width": 9 if longest < 3 else 19,
    }
    if len(confusion) > MAX_TABLE:
        found["image"] = images.data_uri(charts.confusion_pixels(confusion))
        return found
    found["rows"] = [
        [
            _cell(int(count), float(share), is_hit=row == column)
            for column, (count, share) in enumerate(zip(*pair, strict=True))
        ]
        for row, pair in enumerate(zip(confusion, shares, strict=True))
    ]
    return found


def _cell(count, share, *, is_hit):
    # Errors are few: their root makes them visible.
    strength = round(100 * (share if is_hit else min(1, 2 * share**0.5)))
    kind = "hit" if is_hit else "error"
    return {
        "count": count,
        "kind": kind if count else "none",
        "strength": strength,
        "white_in_light": strength >= WHITE_IN_LIGHT[kind],
        "black_in_dark": strength >= BLACK_IN_DARK[kind],
    }


def _reliability(student):
    bins = student.get("reliability")
    if not bins:
        return None
    text = "; ".join(
        f"{row['confidence']:.0%} confident, {row['accuracy']:.0%} right"
        for row in bins
        if row["count"]
    )
    return charts.reliability(bins, label=f"Calibration of the student: {text}")


def _curves(run):
    panels = []
    for curve in run.curves:
        steps, means = curve.smooth()
        panels.append(
            {
                "stage": curve.stage,
                "chart": charts.lines(
                    [
                        charts.Line(x=curve.steps, y=curve.values, faint=True),
                        charts.Line(x=steps, y=means),
                    ],
                    x_label=curve.x_label,
                    y_label=curve.y_label,
                    label=f"{curve.y_label} of {curve.stage}, by {curve.x_label}: from "
                    f"{curve.values[0]:.4g} to {curve.values[-1]:.4g}",
                ),
            }
        )
    return panels


def _samples(run):
    """Blocks of pseudo samples by likeliest class, with their soft labels."""
    if run.sample is None or not len(run.sample.pixels):
        return None
    likeliest = run.sample.pixel_labels.argmax(-1)
    shown = images.spread(range(len(run.class_names)), MAX_CLASSES)
    blocks = [
        {
            "name": run.class_names[k],
            "samples": [
                {
                    "uri": images.thumbnail_uri(run.sample.pixels[i]),
                    "alt": f"Pseudo sample, likeliest class {run.class_names[k]} "
                    f"({run.sample.pixel_labels[i, k]:.2f})",
                    "bars": charts.soft_label(
                        run.sample.pixel_labels[i], run.class_names
                    ),
                }
                for i in np.flatnonzero(likeliest == k)[:PER_CLASS]
            ],
        }
        for k in shown
    ]
    return {"blocks": blocks, "num_classes": len(run.class_names)}


def _labels(run):
    """Class balance, entropy and map of the soft labels."""
    if run.sample is None or not len(run.sample.labels):
        return None
    labels = run.sample.labels
    num_classes = labels.shape[1]
    shares = np.bincount(labels.argmax(-1), minlength=num_classes) / len(labels)
    means = labels.mean(0)
    shown = np.arange(num_classes)
    if num_classes > MAX_BARS:
        order = np.argsort(-shares, kind="stable")
        shown = np.r_[order[: MAX_BARS // 2], order[-MAX_BARS // 2 :]]
    limit = float(np.log(num_classes))
    entropies = findings.entropy(labels)
    extremes = (int(shares.argmax()), int(shares.argmin()))
    return {
        "count": len(labels),
        "is_part": len(labels) < run.sample.num_made,
        "all_shown": num_classes <= MAX_BARS,
        "limit": limit,
        "balance": charts.class_balance(
            [run.class_names[k] for k in shown],
            shares[shown],
            means[shown],
            label="Share of pseudo samples by likeliest class: most often "
            f"{run.class_names[extremes[0]]} ({shares[extremes[0]]:.1%}), least often "
            f"{run.class_names[extremes[1]]} ({shares[extremes[1]]:.1%})",
        ),
        "entropy": charts.histogram(
            entropies,
            limits=(0.0, limit),
            x_label=f"entropy in nats, at most log {num_classes} = {limit:.2f}",
            label=f"Entropy of the soft labels: mean {entropies.mean():.2f}, from "
            f"{entropies.min():.2f} to {entropies.max():.2f} nats",
        ),
        "map": _map(run),
    }


def _map(run):
    if len(run.drawn) < 2 or not projection.is_available():
        return None
    # That of the run comes first.
    own = run.distribution
    names = sorted(run.drawn, key=lambda name: name != own)
    places = projection.tsne([run.drawn[name] for name in names])
    if places is None:
        return None
    panels = []
    for index, name in enumerate(names):
        classes = run.drawn[name].argmax(-1)
        panels.append(
            {
                "title": DISTRIBUTION_NAMES[name],
                "is_own": name == own,
                "chart": charts.places(
                    places[index],
                    places[1 - index],
                    classes,
                    run.class_names,
                    label=f"Map of {len(classes):,} soft labels of "
                    f"{DISTRIBUTION_NAMES[name]}, {len(np.unique(classes))} of "
                    f"{len(run.class_names)} classes; the other distribution in gray",
                ),
            }
        )
    return panels


def _stages(run, student):
    """Stages with their seconds, and what each was given to read."""
    total = sum(run.seconds.values()) or 1.0
    known = [*READS, "evaluation"]
    order = sorted(
        run.seconds, key=lambda name: known.index(name) if name in known else len(known)
    )
    stages = []
    for index, name in enumerate(order):
        reads, is_real = READS.get(name, ""), False
        if name == "evaluation" and student:
            dataset = run.results.get("dataset", run.description["dataset"])
            count = f"{student['num_examples']:,}"
            reads, is_real = f"{count} real {run.split} images of {dataset}", True
        elif name == "evaluation":
            reads = "nothing yet"
        stages.append(
            {
                "name": name,
                "seconds": run.seconds[name],
                "share": run.seconds[name] / total,
                "reads": reads,
                "is_real": is_real,
                "tone": index % 5,
            }
        )
    return stages


def _sections(config):
    """Settings by section, as text."""
    sections = {"experiment": {}}
    for key, value in config.items():
        if isinstance(value, Mapping):
            sections[key] = {
                k: settings.as_text(v) for k, v in settings.flatten(value).items()
            }
        else:
            sections["experiment"][key] = settings.as_text(value)
    return sections


def _changed(run):
    """Settings that differ from the defaults of their kind."""
    values = settings.flatten(run.config)
    return [
        {
            "name": name,
            "value": settings.as_text(values[name]),
            "default": settings.as_text(default),
        }
        for name, default in run.results.get("changed_from_default", {}).items()
        if name in values
    ]


def _origin(results):
    """Day and commit of the results, as far as they are known."""
    source = results.get("source")
    commit = source.get("commit", "")[:10] if isinstance(source, Mapping) else ""
    parts = [results.get("date", "")[:10], f"commit {commit}" if commit else ""]
    return ", ".join(part for part in parts if part)


def _digests(run):
    results = run.results
    return {
        "teacher": run.teacher_sha256,
        "student": results.get("student", {}).get("sha256"),
        "transfer set": results.get("transfer_set_sha256"),
    }
