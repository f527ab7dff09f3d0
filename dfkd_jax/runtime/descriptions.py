"""What is known of a network besides its weights; imports no JAX."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dfkd_jax.errors import CheckpointError

MOST_CLASSES = 1_000_000
MOST_PIXELS = 2**28  # Numbers in an image.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What has to be known of a network besides its weights.

    Attributes:
        network: A name of `models/registry.py`, or "package.module:Class".
        num_classes: Number of logits.
        image_shape: (height, width, channels).
        mean: Per channel, on the pixel scale 0 to 1; images are standardised with it.
        std: Per channel, likewise.
        dataset: What the network was trained to classify; empty if that has no name.
        arguments: Fields of the linen module besides the number of classes.
    """

    network: str
    num_classes: int
    image_shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    dataset: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
        problem = _problem(found)
    except (KeyError, TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        raise CheckpointError(f"{source}: its description is damaged ({problem}).")
    return found


def _problem(found):
    """What cannot be in a description that was read, or nothing."""
    shape, numbers = found.image_shape, (*found.mean, *found.std)
    if not (isinstance(found.network, str) and isinstance(found.dataset, str)):
        return "names must be texts"
    if not isinstance(found.arguments, Mapping):
        return "arguments must be an object"
    if type(found.num_classes) is not int or not 0 < found.num_classes <= MOST_CLASSES:
        return f"{found.num_classes!r} classes"
    if not all(type(size) is int and size > 0 for size in shape) or (
        len(shape) != 3 or math.prod(shape) > MOST_PIXELS
    ):
        return f"images of shape {shape!r}"
    if len(found.mean) != shape[2] or len(found.std) != shape[2]:
        return f"mean and std must be {shape[2]} numbers each"
    if not all(type(x) in (int, float) and abs(x) < 1e9 for x in numbers):
        return "mean and std must be finite numbers"
    return "" if min(found.std) > 0 else "std must be above 0"
