"""The test set of a run: a data set by name, or a file of the user's own."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dfkd_jax.data import datasets, tfds
from dfkd_jax.errors import CheckpointError, ConfigError, DataUnavailableError
from dfkd_jax.runtime import arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """Labelled images and what the labels mean.

    Attributes:
        name: Of the data set or file.
        images: `[num, height, width, channels]`, uint8, or floats from 0 to 1.
        labels: `[num]`, integers.
        class_names: One a class, if known.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of images and labels."""
        total = hashlib.sha256()
        for array in (self.images, self.labels):
            total.update(f"{array.dtype.str}:{array.shape};".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def check(self, description: Any, *, source: str) -> None:
        """Raises CheckpointError where a network has other images or fewer classes."""
        have = self.images.shape[1:], int(self.labels.max()) + 1
        shape = tuple(description.image_shape)
        if have[0] != shape or have[1] > description.num_classes:
            raise CheckpointError(
                f"{source} classifies {shape} images into {description.num_classes} "
                f"classes; {self.name} has {have[0]} images and labels up to "
                f"{have[1] - 1}: name another test set."
            )


def preflight(settings: Any) -> tfds.Availability:
    """Whether `load` would work, without reading an image.

    Args:
        settings: A `config.DataConfig`.

    Raises:
        ConfigError: The file of the user's own is not there.
    """
    if settings.file:
        path = pathlib.Path(settings.file).expanduser()
        if not path.is_file():
            raise ConfigError(f"config.data.file={settings.file}: no such file.")
        return tfds.Availability(True, True, f"{path} is there.")
    if not settings.dataset:
        return tfds.Availability(True, True, "No test set is asked for.")
    return tfds.preflight(
        settings.dataset, data_dir=settings.dir, raw_dir=settings.raw_dir
    )


def load(
    settings: Any, *, split: str, report: Callable[[str], None]
) -> HeldOutSet | None:
    """The images of `split`; None where no test set is asked for.

    Args:
        settings: A `config.DataConfig`.
        split: Of a data set by name; a file holds one set.
        report: Gets progress, a line at a time.

    Raises:
        DataUnavailableError: It cannot be had or is damaged.
    """
    if settings.file:
        return _read_file(pathlib.Path(settings.file).expanduser())
    if not settings.dataset:
        return None
    found = tfds.load(
        settings.dataset,
        split,
        data_dir=settings.dir,
        raw_dir=settings.raw_dir,
        report=report,
    )
    return HeldOutSet(
        name=settings.dataset,
        images=found.images,
        labels=found.labels,
        class_names=datasets.spec(settings.dataset).class_names,
    )


def _read_file(path):
    try:
        read = arrays.read_npz(path, ("images", "labels"))
        images, labels = read["images"], read["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise DataUnavailableError(
            f"{path} cannot be read ({error}): write it with "
            "numpy.savez(path, images=…, labels=…)."
        ) from error
    problem = _problem(images, labels)
    if problem:
        raise DataUnavailableError(f"{path}: {problem}.")
    return HeldOutSet(
        name=path.stem, images=images, labels=labels.astype(np.int32), class_names=()
    )


def _problem(images, labels):
    """What is wrong with the arrays of a file, or nothing."""
    if images.ndim != 4 or not len(images):
        return f"images are {images.shape} instead of [n, height, width, channels]"
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        return f"labels are {labels.dtype} {labels.shape} instead of integers [n]"
    if images.dtype == np.uint8:
        return ""
    if images.dtype.kind != "f":
        return f"images are {images.dtype} instead of uint8 or floats from 0 to 1"
    if not (images.min() >= 0 and images.max() <= 1):
        return f"images go from {images.min()} to {images.max()} instead of 0 to 1"
    return ""
