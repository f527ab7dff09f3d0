"""How a pseudo sample is written down while it is optimised.

Optimising pixels gives noise that fools the teacher; optimising a sum of coarse to fine
grids gives strokes (in our trials the largest single gain of the student).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key


class Parameterisation(NamedTuple):
    """Two pure functions.

    Attributes:
        init: `keys [batch]` to parameters, a tree of `[batch, …]`.
        render: Parameters to standardised images `[batch, height, width, channels]`.
    """

    init: Callable[[Any], Any]
    render: Callable[[Any], Any]


def grids(
    shape: tuple[int, int, int], *, factors: Sequence[int], init_scale: float
) -> Parameterisation:
    """A sum of grids, the k-th `factors[k]` times coarser than the image.

    `factors=(1,)` is the plain pixel parameterisation. Grids start as white noise of
    standard deviation `init_scale`; coarse ones are interpolated linearly.
    """
    height, width, channels = shape
    sizes = [(-(-height // f), -(-width // f)) for f in factors]

    def init(keys: Key[Array, " batch"]):
        def one(key):
            subkeys = jax.random.split(key, len(sizes))
            return tuple(
                init_scale * jax.random.normal(subkey, (*size, channels))
                for subkey, size in zip(subkeys, sizes, strict=True)
            )

        return jax.vmap(one)(keys)

    def render(params):
        full = (params[0].shape[0], height, width, channels)
        image = 0.0
        for grid, size in zip(params, sizes, strict=True):
            image += (
                jax.image.resize(grid, full, "linear") if size != full[1:3] else grid
            )
        return image

    return Parameterisation(init, render)


def bounded(
    inner: Parameterisation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    offset: float = 0.0,
) -> Parameterisation:
    """`inner` through a sigmoid onto the pixel range [0, 1], then standardised.

    Args:
        inner: What is bounded.
        mean: Per channel, on the pixel scale.
        std: Per channel, on the pixel scale.
        offset: Added before the sigmoid: below 0 images start dark.
    """
    means = np.float32(mean).reshape(1, 1, 1, -1)
    stds = np.float32(std).reshape(1, 1, 1, -1)

    def render(params):
        return (jax.nn.sigmoid(inner.render(params) + offset) - means) / stds

    return Parameterisation(inner.init, render)
