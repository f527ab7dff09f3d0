"""What is known of images before any is seen.

They are smooth, may be shifted and mirrored, and a batch of them has the statistics
that the teacher's BatchNorms keep.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dfkd_jax.runtime import augmentation


def total_variation(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    """Sum of absolute differences between neighbors (Mahendran and Vedaldi, 2015)."""
    rows = jnp.abs(jnp.diff(images, axis=1)).sum(axis=(1, 2, 3))
    columns = jnp.abs(jnp.diff(images, axis=2)).sum(axis=(1, 2, 3))
    return rows + columns


def squared_norm(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    """Sum of squares of the normalized pixels: pulls towards the mean image."""
    return jnp.sum(images**2, axis=(1, 2, 3))


def statistics_distance(
    mean: Float[Array, "*features"],
    var: Float[Array, "*features"],
    running_mean: Float[Array, "*features"],
    running_var: Float[Array, "*features"],
    *,
    relative: bool,
) -> Float[Array, ""]:
    """‖mean − running mean‖₂ + ‖var − running var‖₂ of what a BatchNorm gets.

    R_feature of DeepInversion (Yin et al., 2020, equation 4) is the sum over layers.

    Args:
        mean: Of the batch.
        var: Likewise.
        running_mean: As the BatchNorm keeps it.
        running_var: Likewise.
        relative: Whether the norms are divided by those of the running deviation and
            of the running variance, where these are not 0. Layers of large responses
            then count no more than others.
    """
    mean_distance = _norm(mean - running_mean)
    var_distance = _norm(var - running_var)
    if relative:
        # A layer that is dead altogether keeps zeros, which must not make NaN.
        dead = jnp.all(running_var == 0)
        mean_distance /= jnp.where(dead, 1, _norm(jnp.sqrt(running_var)))
        var_distance /= jnp.where(dead, 1, _norm(running_var))
    return mean_distance + var_distance


def _norm(vector):
    """Euclidean. Its gradient at 0 is 0, where that of the root would be NaN."""
    squares = jnp.sum(vector**2)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def random_flip(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    *,
    probability: float,
) -> Float[Array, "batch height width channels"]:
    """With `probability`, all images mirrored, left to right."""
    if not probability:
        return images
    return _alike(augmentation.flip, key, images, probability=probability)


def random_shift(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    *,
    max_shift: int,
) -> Float[Array, "batch height width channels"]:
    """All images moved by one random offset of up to `max_shift` pixels each way.

    What moves in at the border repeats the border (edge padding).
    """
    if not max_shift:
        return images
    return _alike(augmentation.shift, key, images, max_shift=max_shift)


def _alike(change, key, images, **settings):
    """The same random change of every image: they share the key."""
    return jax.vmap(functools.partial(change, **settings), (None, 0))(key, images)
