"""How a pseudo sample is written down while it is optimized.

Optimizing pixels gives noise that fools the teacher; optimizing a sum of coarse to fine
grids gives strokes (in our trials the largest single gain of the student).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

EDGE = 0.02  # Pixels begin at least so far from black and white: there they can move.


def _unchanged(params):
    return params


class Parameterization(NamedTuple):
    """Pure functions.

    Attributes:
        init: `keys [batch]` to parameters, a tree of `[batch, …]`.
        render: Parameters to normalized images `[batch, height, width, channels]`.
        project: Parameters after an optimizer step to those that are gone on from.
        begin: Pixels `[batch, …]` from 0 to 1 to the parameters that render them.
    """

    init: Callable[[Any], Any]
    render: Callable[[Any], Any]
    project: Callable[[Any], Any] = _unchanged
    begin: Callable[[Any], Any] = _unchanged


def grids(
    shape: tuple[int, int, int],
    *,
    factors: Sequence[int],
    init_scale: float,
    init: str = "normal",
) -> Parameterization:
    """A sum of grids, the k-th `factors[k]` times coarser than the image.

    `factors=(1,)` is the plain pixel parameterization. Coarse grids are interpolated
    linearly.

    Args:
        shape: (height, width, channels) of an image.
        factors: One a grid; to `begin` with images the last must be 1.
        init_scale: Of the white noise that grids start as.
        init: "normal": of standard deviation `init_scale`; "uniform": U(0, init_scale).
    """
    height, width, channels = shape
    sizes = [(-(-height // f), -(-width // f)) for f in factors]
    draw = {"normal": jax.random.normal, "uniform": jax.random.uniform}[init]

    def start(keys: Key[Array, " batch"]):
        def one(key):
            subkeys = jax.random.split(key, len(sizes))
            return tuple(
                init_scale * draw(subkey, (*size, channels))
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

    def begin(images):
        coarse = [jnp.zeros((len(images), *size, channels)) for size in sizes[:-1]]
        return (*coarse, images)

    return Parameterization(start, render, begin=begin)


def bounded(
    inner: Parameterization, *, normalize: Callable[[Any], Any]
) -> Parameterization:
    """`inner` through a sigmoid onto the pixel range [0, 1], then normalized.

    Args:
        inner: What is bounded.
        normalize: Pixels to what the network is given.
    """

    def render(params):
        return normalize(jax.nn.sigmoid(inner.render(params)))

    def begin(pixels):
        return inner.begin(jax.scipy.special.logit(jnp.clip(pixels, EDGE, 1 - EDGE)))

    return Parameterization(inner.init, render, begin=begin)


def rescaled(
    inner: Parameterization, *, normalize: Callable[[Any], Any]
) -> Parameterization:
    """Plain pixels whose range in each image is made [0, 1] after every step.

    As ZSKD's authors do (Nayak et al., 2019), who take the range of a whole batch; here
    images stay independent. No gradient passes through the rescaling.

    Args:
        inner: One grid, as fine as the image.
        normalize: Pixels to what the network is given.
    """

    def project(params):
        return jax.tree.map(_unit_range, params)

    def init(keys):
        return project(inner.init(keys))

    def render(params):
        return normalize(inner.render(params))

    return Parameterization(init, render, project)


def _unit_range(images):
    """Each of `[batch, …]` moved and scaled to go from 0 to 1; a plain one to 0."""
    axes = tuple(range(1, images.ndim))
    low = images.min(axes, keepdims=True)
    extent = images.max(axes, keepdims=True) - low
    return (images - low) / jnp.where(extent > 0, extent, 1)
