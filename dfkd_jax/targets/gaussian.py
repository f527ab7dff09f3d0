"""Soft labels from a multivariate normal over the teacher's feature space.

Stage 1 and 2 of Wang (AAAI 2021): the covariance of the feature layer's units is built
from the teacher's weights alone, features are drawn for all classes at once, and the
rest of the teacher turns them into soft labels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key


class Normal(struct.PyTreeNode):
    """A multivariate normal over `units` features.

    Attributes:
        mean: `[units]`.
        factor: `[units, units]`; factor · factorᵀ is the covariance.
    """

    mean: Any
    factor: Any


def unit_vectors(
    kernel: Float[Array, "..."], *, weights: str = "incoming", window: str = "flatten"
) -> Float[Array, "units weights"]:
    """One row of weights per unit of a feature layer.

    Args:
        kernel: `[inputs, units]` of a dense or `[rows, columns, inputs, units]` of a
            convolutional layer.  For outgoing weights: the *next* layer's kernel.
        weights: "incoming" takes columns, "outgoing" the rows of the next kernel.
        window: Whether a convolution's window is "flatten"ed or "average"d.
    """
    if kernel.ndim == 4 and window == "average":
        kernel = kernel.mean(axis=(0, 1))
    if weights == "outgoing":
        units = kernel.shape[-2]
        return jnp.moveaxis(kernel, -2, 0).reshape(units, -1)
    return kernel.reshape(-1, kernel.shape[-1]).T


def correlation(vectors: Float[Array, "units weights"]) -> Float[Array, "units units"]:
    """R_ij = cos(w_i, w_j). A unit whose weights are all zero correlates with none."""
    # Squares of numbers above 1e19 or below 1e-23 are infinite or 0 in float32.
    largest = jnp.abs(vectors).max(axis=1, keepdims=True)
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    lost = (jnp.isinf(norms) | (norms == 0)) & (largest > 0)
    vectors = vectors / jnp.where(lost, largest, 1)
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / jnp.where(norms > 0, norms, 1)
    cosines = jnp.clip(directions @ directions.T, -1, 1)
    # The diagonal is 1 by definition; rounding must not leave it at 0.9999999.
    return cosines + jnp.diag(1 - jnp.diag(cosines))


def covariance(
    correlation: Float[Array, "units units"], *, sigma: float, scale: str = "variance"
) -> Float[Array, "units units"]:
    """Σ = σ R if sigma is a "variance" (as in the paper), σ² R if it is a "std"."""
    return (sigma if scale == "variance" else sigma**2) * correlation


def factor(covariance: Float[Array, "units units"]) -> Float[Array, "units units"]:
    """F with F Fᵀ = Σ. Unlike Cholesky's, it exists for a rank-deficient Σ too."""
    eigenvalues, eigenvectors = jnp.linalg.eigh(covariance)
    return eigenvectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[None, :]


def sample(
    keys: Key[Array, " batch"],
    mean: Float[Array, " units"],
    factor: Float[Array, "units units"],
) -> Float[Array, "batch units"]:
    """One draw of N(mean, factor · factorᵀ) per key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape, mean.dtype))(keys)
    return mean[None, :] + noise @ factor.T


# As one program: operation by operation it takes seconds to compile.
@functools.partial(jax.jit, static_argnames=("sigma", "scale", "weights", "window"))
def feature_normal(
    kernel: Float[Array, "..."],
    *,
    sigma: float,
    scale: str = "variance",
    weights: str = "incoming",
    window: str = "flatten",
    mean: Float[Array, " units"] | None = None,
    std: Float[Array, " units"] | None = None,
) -> Normal:
    """The normal over the units of a layer, from the teacher's parameters alone.

    Args:
        kernel: See `unit_vectors`.
        sigma: Scale of the covariance; see `covariance`.
        scale: See `covariance`.
        weights: See `unit_vectors`.
        window: See `unit_vectors`.
        mean: Of the units; zero if not given.
        std: Standard deviations that scale the units, as far as they are known (of a
            BatchNorm, say): the covariance is then D · covariance · D with D their
            diagonal matrix.
    """
    vectors = unit_vectors(kernel, weights=weights, window=window)
    root = factor(covariance(correlation(vectors), sigma=sigma, scale=scale))
    return Normal(
        mean=jnp.zeros(len(vectors)) if mean is None else mean,
        factor=root if std is None else std[:, None] * root,
    )


def sample_maps(
    keys: Key[Array, " batch"], normal: Normal, *, shape: Sequence[int], grid: int
) -> Float[Array, "batch height width units"]:
    """Feature maps: draws at `grid × grid` places, interpolated to the whole map.

    Args:
        keys: One a map.
        normal: Of the units at a place.
        shape: (height, width, units).
        grid: With 1, all places share one draw; from the map's size on, every place
            has a draw of its own.
    """
    rows, columns = (min(grid, size) for size in shape[:2])

    def one(key):
        places = jax.random.split(key, rows * columns)
        drawn = sample(places, normal.mean, normal.factor)
        drawn = drawn.reshape(rows, columns, shape[2])
        return jax.image.resize(drawn, tuple(shape), "linear")

    return jax.vmap(one)(keys)


def soft_labels(
    head: Callable[[Any], Any],
    normal: Normal,
    *,
    shape: Sequence[int],
    grid: int = 1,
    candidates: int = 1,
) -> Callable[[Key[Array, " batch"]], Float[Array, "batch classes"]]:
    """Draws soft labels: features of `normal` through the rest of the teacher.

    The normal may favor some classes. With several candidates, each soft label is of
    a class drawn evenly: the candidate that gives it the highest probability is kept.

    Args:
        head: Features `[batch, …, units]` to logits `[batch, classes]`.
        normal: Of the feature layer's units.
        shape: Of the feature layer's output: (units,) or (height, width, units).
        grid: Of a convolutional feature layer; see `sample_maps`.
        candidates: Draws for each soft label; 1 takes what comes, as in the paper.
    """

    def draw(keys):
        if len(shape) == 1:
            features = sample(keys, normal.mean, normal.factor)
        else:
            features = sample_maps(keys, normal, shape=shape, grid=grid)
        return jax.nn.softmax(head(features))

    def draw_best(keys):
        several = jax.vmap(lambda key: jax.random.split(key, candidates + 1))(keys)
        labels = draw(several[:, 1:].reshape(-1))
        labels = labels.reshape(len(keys), candidates, -1)
        wanted = jax.vmap(lambda key: jax.random.randint(key, (), 0, labels.shape[2]))(
            several[:, 0]
        )
        chosen = jnp.take_along_axis(labels, wanted[:, None, None], 2).argmax(1)
        return jnp.take_along_axis(labels, chosen[..., None], 1)[:, 0]

    return jax.jit(draw if candidates == 1 else draw_best)
