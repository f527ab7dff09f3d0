"""Random changes of an image that keep its class: for teacher and student alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def shift(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    max_shift: int,
) -> Float[Array, "height width channels"]:
    """The image moved by up to `max_shift` whole pixels each way.

    What moves in at the border repeats the border. With 4 it is the random crop usual
    on CIFAR-10, which repeats the border in place of black.
    """
    margin = ((max_shift, max_shift), (max_shift, max_shift), (0, 0))
    padded = jnp.pad(image, margin, mode="edge")
    y, x = jax.random.randint(key, (2,), 0, 2 * max_shift + 1)
    return jax.lax.dynamic_slice(padded, (y, x, 0), image.shape)


def flip(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    probability: float,
) -> Float[Array, "height width channels"]:
    """With `probability`, the image mirrored, left to right."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def cutout(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    size: int,
) -> Float[Array, "height width channels"]:
    """The image with a square of `size` pixels a side set to 0, the mean color.

    Its place is anywhere that leaves its middle in the image, so that it may reach
    beyond the border (DeVries and Taylor, 2017).
    """
    height, width, _ = image.shape
    middle = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    first = middle - size // 2
    rows, columns = (
        (jnp.arange(length) >= start) & (jnp.arange(length) < start + size)
        for length, start in zip((height, width), first, strict=True)
    )
    covered = (rows[:, None] & columns[None, :])[..., None]
    return jnp.where(covered, 0, image)
