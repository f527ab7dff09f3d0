"""What is known of a network besides its weights; imports no JAX."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfkd_jax.errors import CheckpointError

MAX_CLASSES = 1_000_000
MAX_PIXELS = 2**28  # Numbers in an image.
MIN_STD = 1e-6  # Images that differ by less are one shade; float32 has no more digits.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What has to be known of a network besides its weights.

    Attributes:
        network: A name of `models/registry.py`, or "package.module:Class".
        num_classes: Number of logits.
        image_shape: (height, width, channels).
        mean: Per channel, on the pixel scale 0 to 1; images are normalized with it.
        std: Per channel, likewise.
        dataset: What the network was trained to classify; empty if that has no name.
        arguments: Fields of the linen module besides the number of classes.
        output: Name or index of the logits, where the network returns several things.
    """

    network: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    dataset: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output: str = ""

    def __hash__(self):
        return hash((self.network, self.num_classes, self.dataset))

    def to_json(self) -> dict[str, Any]:
        """JSON values, of which `describe` makes the same again."""
        fields = dataclasses.asdict(self)
        if not self.output:
            del fields["output"]  # As before there was one.
        return fields

    def normalize(self, pixels: Any) -> Any:
        """What the network is given of pixels, uint8 or from 0 to 1, channels last."""
        if pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32) / 255
        return (pixels - self._per_channel("mean", pixels)) / self._per_channel(
            "std", pixels
        )

    def denormalize(self, images: Any) -> Any:
        """Pixels from 0 to 1 of what a network is given."""
        return images * self._per_channel("std", images) + self._per_channel(
            "mean", images
        )

    def _per_channel(self, name, images):
        # With all axes, as traced arrays want it.
        shape = (1,) * (images.ndim - 1) + (-1,)
        return np.float32(getattr(self, name)).reshape(shape)


def describe(fields: Any, *, source: str) -> Description:
    """The description in a JSON value from a file, which may be anything.

    Raises:
        CheckpointError: It is none, or describes what cannot be.
    """
    try:
        fields = dict(fields)
        for name in ("image_shape", "mean", "std"):
            fields[name] = tuple(fields[name])
        found = Description(**fields)
        problem = problem_of(found)
    except (KeyError, TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        raise CheckpointError(f"{source}: its description is damaged ({problem}).")
    return found


def problem_of(found: Description) -> str:
    """What cannot be in a description, or nothing."""
    shape = found.image_shape
    if not all(
        isinstance(x, str) for x in (found.network, found.dataset, found.output)
    ):
        return "names must be texts"
    if not isinstance(found.arguments, Mapping):
        return "arguments must be an object"
    if type(found.num_classes) is not int or not 0 < found.num_classes <= MAX_CLASSES:
        return f"{found.num_classes!r} classes"
    if not all(type(size) is int and size > 0 for size in shape) or (
        len(shape) != 3 or math.prod(shape) > MAX_PIXELS
    ):
        return f"images of shape {shape!r}"
    return pixels_problem(found.mean, found.std, channels=shape[2])


def pixels_problem(mean: Sequence[Any], std: Sequence[Any], *, channels: int) -> str:
    """What is wrong with the mean and std of pixels from 0 to 1, or nothing."""
    if len(mean) != channels or len(std) != channels:
        return f"mean and std must be {channels} numbers each"
    numbers = (*mean, *std)
    if not all(type(x) in (int, float) and abs(x) < 1e9 for x in numbers):
        return "mean and std must be finite numbers"
    if min(std) < MIN_STD:
        return f"std must be above 0, got {tuple(std)}"
    if min(mean) >= 0 and max(mean) <= 1 and max(std) <= 1:
        return ""
    problem = f"pixels are from 0 to 1, got mean {tuple(mean)} and std {tuple(std)}"
    if max(mean) <= 255 and max(std) <= 255 and min(mean) >= 0:
        divided = [tuple(round(x / 255, 4) for x in values) for values in (mean, std)]
        problem += f"; of pixels from 0 to 255? Then divide by 255: {divided[0]} and "
        problem += f"{divided[1]}"
    return problem
