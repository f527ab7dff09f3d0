"""Pictures of a run. They need the extra `plots` and are left out without it."""

import functools
import importlib.util
import os
import pathlib
from typing import Any

import numpy as np

from dfkd_jax.reporting import curves
from dfkd_jax.reporting.images import shown, spread, to_pixels
from dfkd_jax.runtime import files, progress

PER_CLASS = 6  # Pseudo samples of a class.
MAX_CLASSES = 24  # Of which pseudo samples are shown.
SWITCH = "DFKD_JAX_PICTURES"  # Variable of the environment: "off" draws none.


def are_wanted() -> bool:
    """Whether runs draw pictures and write report.html; sweeps can do without."""
    return os.environ.get(SWITCH) != "off"


def pyplot() -> Any:
    """matplotlib's, for files; None where no pictures are wanted or it is missing."""
    return _pyplot() if are_wanted() else None


@functools.cache
def _pyplot():
    """matplotlib's, or None after one warning."""
    if importlib.util.find_spec("matplotlib") is None:
        progress.warn(
            "No pictures without matplotlib: "
            'pip install ".[plots]" in a clone of dfkd_jax.'
        )
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: Any, path: pathlib.Path, *, source: str = "") -> None:
    """Writes a PNG file and closes the figure.

    Args:
        figure: Of matplotlib.
        path: PNG file.
        source: What it was drawn from, kept in the file.
    """
    with files.atomic_write(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            dpi=110,
            metadata={"Source": source} if source else {},
        )
    pyplot().close(figure)


def sample_grid(
    path: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    mean: Any,
    std: Any,
    class_names: Any,
) -> None:
    """Pseudo samples by likeliest class, each above the bars of its soft label.

    Args:
        path: PNG file.
        images: `[n, height, width, channels]`, normalized.
        labels: `[n, classes]`.
        mean: Per channel, to undo the normalization.
        std: Per channel, likewise.
        class_names: One a class; a column each, or each of MAX_CLASSES of many.
    """
    plots = pyplot()
    if plots is None:
        return
    pixels = to_pixels(images, mean=mean, std=std)
    likeliest = labels.argmax(-1)
    classes = range(len(class_names))
    columns = spread(classes, MAX_CLASSES)
    width, height = 1.1 * len(columns), 1.5 * PER_CLASS + 0.6  # Inches.
    figure = plots.figure(figsize=(width, height))
    # By hand: a layout that is fitted takes as long as all the drawing.
    grid = figure.add_gridspec(
        3 * PER_CLASS,  # Image, bars, and a space below their numbers.
        len(columns),
        height_ratios=[3, 1, 0.4] * PER_CLASS,
        left=0.05 / width,
        right=1 - 0.05 / width,
        bottom=0.02 / height,
        top=1 - 0.5 / height,
        wspace=0.08,
        hspace=0.06,
    )
    for column, k in enumerate(columns):
        colors = ["tab:orange" if other == k else "0.6" for other in classes]
        heading = figure.add_subplot(grid[0, column])
        heading.set_title(class_names[k], fontsize=10)
        heading.axis("off")
        for row, member in enumerate(np.flatnonzero(likeliest == k)[:PER_CLASS]):
            image_axis = figure.add_subplot(grid[3 * row, column])
            image_axis.imshow(shown(pixels[member]), cmap="gray", vmin=0, vmax=1)
            image_axis.axis("off")
            bar_axis = figure.add_subplot(grid[3 * row + 1, column])
            bar_axis.set_ylim(0, 1)
            bar_axis.set_yticks([])
            if len(classes) > MAX_CLASSES:  # One artist for all of them.
                bar_axis.vlines(classes, 0, labels[member], colors=colors)
                bar_axis.set_xticks([])
                continue
            bar_axis.bar(classes, labels[member], color=colors)
            bar_axis.set_xticks(classes, classes, fontsize=5)
            bar_axis.tick_params(length=0, pad=1)
    figure.suptitle(
        "Pseudo samples and the soft labels they were made for",
        y=1 - 0.05 / height,
        verticalalignment="top",
    )
    save(figure, path)


def loss_curves(workdir: pathlib.Path) -> None:
    """`loss_curves.png` in `workdir` from its `metrics.jsonl`, a panel a stage."""
    plots = pyplot()
    if plots is None:
        return
    found = curves.read(workdir / "metrics.jsonl")
    if not found:
        return
    figure, axes = plots.subplots(
        1,
        len(found),
        figsize=(4.4 * len(found), 3.3),
        layout="constrained",
        squeeze=False,
    )
    for axis, curve in zip(axes[0], found, strict=True):
        axis.plot(curve.steps, curve.values, linewidth=0.8, alpha=0.4)
        axis.plot(*curve.smooth(), linewidth=1.5, color="tab:blue")
        axis.set_title(curve.stage)
        axis.set_xlabel(curve.x_label)
        axis.set_ylabel(curve.y_label)
        axis.grid(alpha=0.3)
    save(figure, workdir / "loss_curves.png")
