"""What is known of images before any is seen: they are smooth, and may be shifted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def total_variation(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    """Sum of absolute differences between neighbours (Mahendran and Vedaldi, 2015)."""
    rows = jnp.abs(jnp.diff(images, axis=1)).sum(axis=(1, 2, 3))
    columns = jnp.abs(jnp.diff(images, axis=2)).sum(axis=(1, 2, 3))
    return rows + columns


def squared_norm(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    """Sum of squares of the standardised pixels: pulls towards the mean image."""
    return jnp.sum(images**2, axis=(1, 2, 3))


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
    margin = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
    padded = jnp.pad(images, margin, mode="edge")
    y, x = jax.random.randint(key, (2,), 0, 2 * max_shift + 1)
    return jax.lax.dynamic_slice(padded, (0, y, x, 0), images.shape)
