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
from dfkd_jax.runtime import arrays, progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """Labeled images and what the labels mean.

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
        try:
            arrays.labeled(
                self.images,
                self.labels,
                image_shape=description.image_shape,
                num_classes=description.num_classes,
            )
        except ValueError as error:
            raise CheckpointError(
                f"{source} classifies {tuple(description.image_shape)} images into "
                f"{description.num_classes} classes; of {self.name}, {error}. Name "
                "another test set, or mend this one."
            ) from error


def check_flags(*, dataset: str, data_dir: str, raw_dir: str, data_file: str) -> None:
    """Checks what commands are told of a test set, before anything is read.

    Raises:
        ConfigError: A flag without effect, or a data set that is not known.
    """
    given = {"dataset": dataset, "data_dir": data_dir, "raw_dir": raw_dir}
    for name, value in given.items():
        if data_file and value:
            raise ConfigError(f"--{name} has no effect with --data_file: leave it out.")
    if dataset:
        datasets.spec(dataset, data_dir)


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


def require(config: Any, availability: tfds.Availability) -> None:
    """Before work starts: says that there is no test set, where one is asked for.

    Args:
        config: Of the run.
        availability: What `preflight` found.

    Raises:
        DataUnavailableError: The run learns from real data, and cannot have it.
    """
    if availability.obtainable:
        return
    if config.reads_real_data:
        raise DataUnavailableError(availability.message)
    progress.warn(
        f"The held-out test set cannot be had: {availability.message} The student "
        "will be made all the same and the exit status will be 3."
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
        class_names=datasets.spec(settings.dataset, settings.dir).class_names,
    )


def _read_file(path):
    try:
        read = arrays.read_npz(path, ("images", "labels"))
    except OSError as error:
        raise DataUnavailableError(
            f"{path} cannot be read ({error.strerror}): check the path, its "
            "permissions and the disk."
        ) from error
    except ValueError as error:
        raise DataUnavailableError(
            f"{path} is no .npz file of numbers ({error}): write it with "
            "numpy.savez(path, images=…, labels=…)."
        ) from error
    if missing := {"images", "labels"} - read.keys():
        raise DataUnavailableError(
            f"{path} has no array called {' or '.join(sorted(missing))}: write it with "
            "numpy.savez(path, images=…, labels=…)."
        )
    try:
        images, labels = arrays.labeled(read["images"], read["labels"])
    except ValueError as error:
        raise DataUnavailableError(f"{path}: {error}.") from error
    return HeldOutSet(name=path.stem, images=images, labels=labels, class_names=())
