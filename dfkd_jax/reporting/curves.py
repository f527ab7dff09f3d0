"""What is drawn of `metrics.jsonl`: which numbers of which stage, and how smooth."""

import dataclasses
import pathlib

import numpy as np

from dfkd_jax.runtime import writers

# Stage, metric, name of the x axis, name of the y axis.
PANELS = (
    (
        "synthesis, first batch",
        "cross_entropy",
        "optimizer step",
        "cross-entropy",
    ),
    (
        "synthesis, first batch",
        "total_variation",
        "optimizer step",
        "total variation",
    ),
    ("distillation", "loss", "step", "distillation loss"),
    ("distillation", "agreement", "step", "agreement with teacher"),
    ("teacher training", "loss", "step", "training loss"),
    ("teacher training", "accuracy", "step", "training accuracy"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One number over the steps of one stage.

    Attributes:
        stage: As logged.
        metric: As logged.
        x_label: What a step is.
        y_label: What the number is.
        steps: `[n]`, increasing.
        values: `[n]`, finite.
    """

    stage: str
    metric: str
    x_label: str
    y_label: str
    steps: np.ndarray
    values: np.ndarray

    def smooth(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and running means over a twentieth of the curve."""
        width = max(1, len(self.values) // 20)
        means = np.convolve(self.values, np.ones(width) / width, mode="valid")
        return self.steps[width - 1 :], means


def read(path: pathlib.Path) -> list[Curve]:
    """The curves that `metrics.jsonl` has records for, in the order of `PANELS`.

    Values that are no finite numbers are left out.
    """
    found = []
    for stage, metric, x_label, y_label in PANELS:
        points = [
            (step, record[metric])
            for step, record in writers.read_scalars(path, stage=stage).items()
            if isinstance(record.get(metric), int | float)
            and np.isfinite(record[metric])
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found.append(
                Curve(
                    stage=stage,
                    metric=metric,
                    x_label=x_label,
                    y_label=y_label,
                    steps=np.array(steps),
                    values=np.array(values, float),
                )
            )
    return found
