"""Figures of committed results. Each PNG file knows what it was drawn from.

A figure is up to date when the digest in its file is that of the results as they are
now; so a check needs neither matplotlib nor the runs.
"""

import dataclasses
import hashlib
import json
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dfkd_jax.errors import CheckpointError, MissingPackageError, ResultsError
from dfkd_jax.reporting import figures, images, run_files
from dfkd_jax.reporting.settings import describe, short_text
from dfkd_jax.runtime import records
from docs.pages.results_files import Collection, Row

LOGARITHMIC = 20  # Largest over smallest value from which an axis is logarithmic.
PER_CLASS = 2  # Pseudo samples of a class and method.
MAX_CLASSES = 10
NAME_WIDTH = 28  # Characters in a line of a method's name.
COLOURS = "tab10"
KINDS = ("sweeps", "soft_labels", "label_mismatch", "samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure that can be drawn, or whose file can be checked.

    Attributes:
        path: Its PNG file.
        alt: What it shows, in words.
        source: Digest of what it shows; for pictures of runs that are not committed,
            any of several will do.
        draw: Draws it to a path; None where only its file can be checked.
    """

    path: pathlib.Path
    alt: str
    source: str | Sequence[str]
    draw: Callable[[pathlib.Path], None] | None

    @property
    def is_current(self) -> bool:
        """Whether the file shows the results as they are now."""
        allowed = [self.source] if isinstance(self.source, str) else self.source
        return source_of(self.path) in allowed


def digest(value: Any) -> str:
    """Of a JSON value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_of(path: pathlib.Path) -> str:
    """What a PNG file says it was drawn from; empty where it says nothing."""
    if not path.is_file():
        return ""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Source", ""))
    except OSError as error:
        raise ResultsError(
            f"{path} cannot be read ({error}): draw it again."
        ) from error


def require_matplotlib() -> None:
    """Raises MissingPackageError where figures cannot be drawn."""
    if figures.pyplot() is None:
        raise MissingPackageError(
            'Figures need matplotlib: pip install ".[plots]" in a clone of dfkd_jax.'
        )


def find(
    results: Collection, folder: pathlib.Path, *, runs: Sequence[pathlib.Path] = ()
) -> dict[str, Figure]:
    """All figures that there are results for, by name.

    Names are "sweeps/NAME", "soft_labels/TASK", "label_mismatch/TASK" and
    "samples/TASK".

    Args:
        results: Committed ones.
        folder: Where figures lie.
        runs: Folders to look for the runs in whose pseudo samples are shown.
    """
    found = {}
    for name, sweep in results.sweeps.items():
        rows = [row for row in sweep["rows"] if row["runs"]]
        if len(rows) > 1:
            found[f"sweeps/{name}"] = Figure(
                path=folder / f"sweep_{name}.png",
                alt=f"{sweep['split'].title()} accuracy of the student by "
                + (", ".join(sweep["varied"]) or "setting"),
                source=digest([sweep["varied"], sweep["split"], rows]),
                draw=lambda path, sweep=sweep, rows=rows: draw_sweep(path, sweep, rows),
            )
    for task, study in results.label_studies.items():
        if study["map"]:
            found[f"soft_labels/{task}"] = Figure(
                path=folder / f"soft_labels_{task}.png",
                alt="Map (t-SNE) of soft labels: multivariate normal beside Dirichlet",
                source=digest([study["map"], study["distributions"]]),
                draw=lambda path, study=study: draw_map(path, study),
            )
        found[f"label_mismatch/{task}"] = Figure(
            path=folder / f"label_mismatch_{task}.png",
            alt="Share of soft labels that are not of the class they were drawn for",
            source=digest([study["distributions"], study["pseudo_samples"]]),
            draw=lambda path, study=study: draw_mismatch(path, study),
        )
    folders = find_transfer_sets(runs)
    for task, rows in results.tasks.items():
        if figure := _samples(results, task, rows, folder, folders):
            found[f"samples/{task}"] = figure
    return found


# Sweeps ---------------------------------------------------------------------------


def draw_sweep(
    path: pathlib.Path, sweep: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Mean accuracy with the standard deviation as error bars.

    A curve over one numeric setting, several curves over two, else a point a row.

    Args:
        path: PNG file.
        sweep: Contents of its results file.
        rows: Those with results.
    """
    keys = sweep["varied"]
    label = f"{sweep['split']} accuracy of the student, %"
    numeric = [key for key in keys if all(_is_number(row, key) for row in rows)]
    whole = all(list(row["settings"]) == keys for row in rows)
    if whole and len(numeric) == len(keys) in (1, 2):
        figure = _curves(rows, keys, label=label)
    else:
        figure = _points(rows, label=label)
    figures.save(
        figure, path, source=digest([sweep["varied"], sweep["split"], list(rows)])
    )


def _is_number(row, key):
    value = row["settings"].get(key)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _deviation(row):
    """In percent; NaN, of which no bar is drawn, where there is one seed."""
    return np.nan if row["std"] is None else 100 * row["std"]


def _curves(rows, keys, *, label):
    figure, axis = figures.pyplot().subplots(figsize=(5.2, 3.6), layout="constrained")
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        other = row["settings"][keys[1]] if len(keys) > 1 else None
        groups.setdefault(other, []).append(row)
    for other, members in groups.items():
        members = sorted(members, key=lambda row: row["settings"][keys[0]])
        axis.errorbar(
            [row["settings"][keys[0]] for row in members],
            [100 * row["mean"] for row in members],
            yerr=[_deviation(row) for row in members],
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.4,
            label=None if other is None else f"{keys[1]} = {short_text(other)}",
        )
    values = [row["settings"][keys[0]] for row in rows]
    if min(values) > 0 and max(values) / min(values) >= LOGARITHMIC:
        axis.set_xscale("log")
        places = sorted(set(values))
        axis.set_xticks(places, [f"{place:,.12g}" for place in places], fontsize=8)
        axis.minorticks_off()
    axis.set_xlabel(keys[0])
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    if len(keys) > 1:
        axis.legend(fontsize=8)
    return figure


def _points(rows, *, label):
    # A line a setting: where several are changed together, one is too long.
    names = [
        "\n".join(describe({key: row["settings"][key]}) for key in row["settings"])
        or describe({})
        for row in rows
    ]
    height = sum(0.2 + 0.16 * len(name.splitlines()) for name in names)
    figure, axis = figures.pyplot().subplots(
        figsize=(6.4, 0.9 + height), layout="constrained"
    )
    places = np.arange(len(rows))[::-1]
    axis.errorbar(
        [100 * row["mean"] for row in rows],
        places,
        xerr=[_deviation(row) for row in rows],
        fmt="o",
        markersize=5,
        capsize=3,
    )
    axis.set_yticks(places, names, fontsize=8)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
    axis.margins(y=0.5 / len(rows))
    return figure


# Soft labels ----------------------------------------------------------------------


def draw_map(path: pathlib.Path, study: Mapping[str, Any]) -> None:
    """Maps of both distributions side by side, a color a class.

    Of the multivariate normal it is the likeliest class; of the Dirichlet the one that
    the label was drawn for.
    """
    plots = figures.pyplot()
    figure, axes = plots.subplots(
        1, len(study["map"]), figsize=(8.4, 4.4), layout="constrained", squeeze=False
    )
    for axis, (name, drawn) in zip(axes[0], study["map"].items(), strict=True):
        places = np.array(drawn["places"].split(), int).reshape(-1, 2)
        classes = np.array(drawn["classes"].split(), int)
        found = study["distributions"][name]
        num_classes = len(found["class_shares"])
        points = axis.scatter(
            *places.T, c=classes, cmap=COLOURS, s=7, vmin=-0.5, vmax=num_classes - 0.5
        )
        by = "class drawn for" if found["drawn_for_another_class"] is not None else ""
        axis.set_title(f"{found['title']}\n{by or 'likeliest class'}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(points, ax=axes[0], ticks=range(num_classes), fraction=0.03)
    figures.save(figure, path, source=digest([study["map"], study["distributions"]]))


def draw_mismatch(path: pathlib.Path, study: Mapping[str, Any]) -> None:
    """Bars: soft labels of another class than drawn, and what the teacher says."""
    bars = [
        (f"{found['title']}:\nlabel of another class", [found[key]])
        for found in study["distributions"].values()
        if found[key := "drawn_for_another_class"] is not None
    ]
    by_name: dict[str, list[float]] = {}
    for sample in study["pseudo_samples"]:
        title = study["distributions"][sample["distribution"]]["title"]
        name = f"{sample['name']}, {title}:\nteacher answers otherwise"
        by_name.setdefault(name, []).append(sample["teacher_answers_otherwise"])
    bars += list(by_name.items())
    figure, axis = figures.pyplot().subplots(
        figsize=(6.8, 0.9 + 0.6 * len(bars)), layout="constrained"
    )
    places = np.arange(len(bars))[::-1]
    axis.barh(
        places,
        [100 * np.mean(values) for _, values in bars],
        xerr=[
            100 * np.std(values, ddof=1) if values[1:] else np.nan for _, values in bars
        ],
        color="tab:blue",
        height=0.6,
        capsize=3,
    )
    axis.set_yticks(places, [name for name, _ in bars], fontsize=8)
    axis.set_xlabel("%")
    axis.grid(alpha=0.3, axis="x")
    figures.save(
        figure, path, source=digest([study["distributions"], study["pseudo_samples"]])
    )


# Pseudo samples -------------------------------------------------------------------


def find_transfer_sets(folders: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Work directories in or below `folders`, by the digest of their transfer set."""
    found = {}
    for folder in folders:
        for path in sorted(folder.glob("**/results.json")):
            try:
                sha256 = records.read(path).get("transfer_set_sha256")
            except CheckpointError:
                continue
            if sha256:
                found.setdefault(sha256, path.parent)
    return found


def _samples(results, task, rows, folder, folders):
    """Of the methods whose pseudo samples are there, or were when it was drawn.

    Methods that share pseudo samples, with students of their own, are shown once.
    """
    path = folder / f"samples_{task}.png"
    digests = {
        row.method: [run.get("transfer_set_sha256") for run in row.runs] for row in rows
    }
    first = {}
    for row in rows:
        first.setdefault(digests[row.method][0], row)
    shown = {row: folders[sha256] for sha256, row in first.items() if sha256 in folders}
    alt = "Pseudo samples by method and likeliest class"
    if shown:
        source = _samples_source({row.method: digests[row.method][0] for row in shown})
        return Figure(
            path=path,
            alt=alt,
            source=source,
            draw=lambda path: draw_samples(path, results, shown, source=source),
        )
    if not path.exists():
        return None
    # Drawn before, of runs that are not at hand: are they still those of the table?
    try:
        claimed = json.loads(source_of(path))
        current = all(sha256 in digests.get(key, ()) for key, sha256 in claimed.items())
    except (ValueError, AttributeError):
        current = False
    return Figure(
        path=path, alt=alt, source=source_of(path) if current else "\n", draw=None
    )


def _samples_source(digests):
    return json.dumps(digests, sort_keys=True)


def draw_samples(
    path: pathlib.Path,
    results: Collection,
    shown: Mapping[Row, pathlib.Path],
    *,
    source: str,
) -> None:
    """Pseudo samples, a row of pictures a method, by likeliest class.

    Args:
        path: PNG file.
        results: For the names of methods.
        shown: Work directories.
        source: Kept in the file.
    """
    runs = [run_files.read(folder) for folder in shown.values()]
    classes = images.spread(range(len(runs[0].class_names)), MAX_CLASSES)
    figure, axes = figures.pyplot().subplots(
        len(runs),
        PER_CLASS * len(classes),
        figsize=(0.42 * PER_CLASS * len(classes) + 2.2, 0.48 * len(runs) + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)
    for line, row, run in zip(axes, shown, runs, strict=True):
        # A long name in one line would leave the pictures no width.
        name = textwrap.fill(results.method(row.method), NAME_WIDTH)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        likeliest = run.sample.pixel_labels.argmax(-1)
        for column, k in enumerate(classes):
            members = np.flatnonzero(likeliest == k)[:PER_CLASS]
            for place, member in enumerate(members):
                axis = line[PER_CLASS * column + place]
                pixels = images.shrink(
                    run.sample.pixels[member], largest=images.LARGEST_SIDE
                )
                axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1)
    for column, k in enumerate(classes):
        axes[0, PER_CLASS * column].set_title(runs[0].class_names[k], fontsize=8)
    figures.save(figure, path, source=source)
