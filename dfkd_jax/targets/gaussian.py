"""Soft labels from a multivariate normal over the teacher's feature space.

Stage 1 and 2 of Wang (AAAI 2021): the covariance of the feature layer's units is built
from the teacher's weights alone, features are drawn for all classes at once, and the
rest of the teacher turns them into soft labels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
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


def feature_normal(
    params: Any,
    *,
    layer: str,
    next_layer: str | None,
    sigma: float,
    scale: str = "variance",
    weights: str = "incoming",
    window: str = "flatten",
    mean: str = "zero",
) -> Normal:
    """The normal over the units of `layer`, from the teacher's parameters alone.

    Args:
        params: Parameters of the teacher by layer.
        layer: The feature layer.
        next_layer: The layer after it, read when `weights` is "outgoing".
        sigma: Scale of the covariance; see `covariance`.
        scale: See `covariance`.
        weights: See `unit_vectors`.
        window: See `unit_vectors`.
        mean: "zero", or "bias" for the feature layer's bias.
    """
    source = next_layer if weights == "outgoing" else layer
    vectors = unit_vectors(params[source]["kernel"], weights=weights, window=window)
    bias = params[layer]["bias"]
    return Normal(
        mean=bias if mean == "bias" else jnp.zeros_like(bias),
        factor=factor(covariance(correlation(vectors), sigma=sigma, scale=scale)),
    )


def soft_labels(
    teacher: nn.Module, variables: Any, normal: Normal
) -> Callable[[Key[Array, " batch"]], Float[Array, "batch classes"]]:
    """Draws soft labels: features of `normal` through the rest of the teacher."""

    def draw(keys):
        features = sample(keys, normal.mean, normal.factor)
        return jax.nn.softmax(teacher.apply(variables, features, method="head"))

    return jax.jit(draw)
