"""Real training images in the place of pseudo samples."""

import numpy as np

from dfkd_jax.config import DataConfig
from dfkd_jax.data import datasets, tfds
from dfkd_jax.errors import ConfigError
from dfkd_jax.runtime import progress
from dfkd_jax.runtime.descriptions import Description


class RealImages:
    """Images of the training part with their labels, as `distillation.loop` reads them.

    Attributes:
        classes: `[n]`, the label of each image.
    """

    def __init__(
        self, images: np.ndarray, classes: np.ndarray, description: Description
    ):
        """Holds `images`, `[n, height, width, channels]` uint8, and `classes`, `[n]`.

        Args:
            images: Pixels.
            classes: Labels.
            description: Of the teacher: how its images are normalized, its classes.
        """
        self.classes = classes
        self._images = images
        self._one_hot = np.eye(description.num_classes, dtype=np.float32)
        self._normalize = description.normalize

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalized images and one-hot labels at `indices`."""
        images = self._normalize(self._images[indices])
        return images, self._one_hot[self.classes[indices]]


def count(data: DataConfig, *, images_per_class: int = 0) -> int:
    """How many training images `load` gives, known without reading one."""
    spec = datasets.spec(data.dataset, data.dir)
    if images_per_class:
        return images_per_class * spec.num_classes
    _, start, stop = spec.bounds("train")
    return stop - start


def load(
    data: DataConfig, *, description: Description, seed: int, images_per_class: int = 0
) -> RealImages:
    """Images of the training part: all that were published but the validation part.

    Args:
        data: Which set, and where it is.
        description: Of the teacher: how its images are normalized, its classes.
        seed: Draws the images of each class.
        images_per_class: How many; 0 for all images there are.

    Raises:
        ConfigError: A class has not so many.
        DataUnavailableError: The set cannot be had or is damaged.
    """
    found = tfds.load(
        data.dataset,
        "train",
        data_dir=data.dir,
        raw_dir=data.raw_dir,
        report=progress.say,
    )
    images, classes = found.images, found.labels
    if images_per_class:
        chosen = draw(classes, images_per_class=images_per_class, seed=seed)
        images, classes = images[chosen], classes[chosen]
    return RealImages(images, classes, description)


def draw(classes: np.ndarray, *, images_per_class: int, seed: int) -> np.ndarray:
    """Places of `images_per_class` images of each class, drawn by `seed`, in order.

    Raises:
        ConfigError: A class has not so many.
    """
    random = np.random.default_rng([seed, *b"real images"])
    chosen = []
    for label in np.unique(classes):
        places = np.flatnonzero(classes == label)
        if len(places) < images_per_class:
            raise ConfigError(
                f"config.images_per_class={images_per_class}: class {label} has only "
                f"{len(places)} training images."
            )
        chosen.append(random.choice(places, images_per_class, replace=False))
    return np.sort(np.concatenate(chosen))
