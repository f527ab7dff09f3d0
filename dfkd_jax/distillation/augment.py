"""Random changes of pseudo samples before teacher and student see them.

The teacher labels what comes out, so nothing here needs to keep a class: mixing two
pseudo samples, above all, shows the student the teacher between its targets.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray

CENTRING = 2.0  # Of a shape's level, drawn on a 4×4 grid from N(0, 1).
SYMMETRIC = 0.6  # Share of the shapes.
DARK = 0.6  # Share of the grounds.
SHARPNESS = 8.0  # Of their outlines.


def mix(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    other: Float[Array, "height width channels"],
    *,
    mixup: float,
    cutmix: float,
) -> Float[Array, "height width channels"]:
    """Mixup (Zhang et al., 2018), CutMix (Yun et al., 2019), or `image` unchanged.

    Args:
        key: For one image.
        image: The sample whose turn it is.
        other: Another sample of the transfer set.
        mixup: Probability of a convex combination with a weight from U(0, 1).
        cutmix: Probability of a rectangle of `other`, its area from U(0, 1).
    """
    choice_key, weight_key, center_key = jax.random.split(key, 3)
    choice = jax.random.uniform(choice_key)
    weight = jax.random.uniform(weight_key)
    height, width, _ = image.shape
    side = jnp.sqrt(weight)
    center = jax.random.uniform(center_key, (2,))
    rows = jnp.abs(jnp.arange(height) - center[0] * height) < side * height / 2
    columns = jnp.abs(jnp.arange(width) - center[1] * width) < side * width / 2
    patch = (rows[:, None] & columns[None, :])[..., None]
    blend = jnp.where(
        choice < mixup,
        weight,
        jnp.where((choice < mixup + cutmix) & patch, 1.0, 0.0),
    )
    return image + blend * (other - image)


def mirror(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    probability: float,
) -> Float[Array, "height width channels"]:
    """The image with its left half mirrored onto its right one; or `image`.

    Many things are symmetric, pseudo samples never are.

    Args:
        key: For one image.
        image: Any image.
        probability: Of the symmetric image.
    """
    width = image.shape[1]
    left = (jnp.arange(width) < width / 2)[None, :, None]
    mirrored = jnp.where(left, image, image[:, ::-1])
    return jnp.where(jax.random.uniform(key) < probability, mirrored, image)


def fill(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    probability: float,
) -> Float[Array, "height width channels"]:
    """A random smooth shape, filled with one shade, on a dark ground; or `image`.

    The image shows through shape and ground, with a weight from U(0, 1) each; `DARK` of
    the grounds are opaque. Shapes are rather in the middle, and `SYMMETRIC` of them are
    symmetric. Synthesis draws strokes; areas, which clothes consist of, students see
    here.

    Args:
        key: For one image.
        image: Any image; the shade is between its least and its greatest value.
        probability: Of the shape.
    """
    keys = jax.random.split(key, 7)
    height, width, channels = image.shape
    level = jax.image.resize(
        jax.random.normal(keys[0], (4, 4, 1)), (height, width, 1), "cubic"
    )
    rows = jnp.linspace(-1, 1, height)[:, None, None] ** 2
    columns = jnp.linspace(-1, 1, width)[None, :, None] ** 2
    # 1 in the middle, -1 along the border.
    bowl = 1 - 2 * jnp.maximum(rows, columns)
    level += CENTRING * jax.random.uniform(keys[1]) * bowl
    level = jnp.where(
        jax.random.uniform(keys[2]) < SYMMETRIC,
        (level + level[:, ::-1]) / jnp.sqrt(2.0),
        level,
    )
    low = image.min(axis=(0, 1), keepdims=True)
    high = image.max(axis=(0, 1), keepdims=True)
    shade = low + jax.random.uniform(keys[3], (1, 1, channels)) * (high - low)
    shade_weight, ground_weight = jax.random.uniform(keys[4], (2,))
    dark = jax.random.uniform(keys[5]) < DARK
    shape = image + shade_weight * (shade - image)
    ground = image + jnp.where(dark, 1.0, ground_weight) * (low - image)
    filled = ground + jax.nn.sigmoid(SHARPNESS * level) * (shape - ground)
    return jnp.where(jax.random.uniform(keys[6]) < probability, filled, image)


def warp(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    shift: float,
    affine: float,
    elastic: float,
) -> Float[Array, "height width channels"]:
    """The image seen through a random smooth map of the plane, borders repeated.

    Args:
        key: For one image.
        image: Any image.
        shift: Standard deviation of the translation, in pixels.
        affine: Standard deviation of the entries of the linear map minus identity
            (rotation, scaling and shear together).
        elastic: Standard deviation, in pixels, of a displacement drawn on a 4×4 grid
            and interpolated (Simard et al., 2003, with a coarser smoothing).
    """
    height, width, _ = image.shape
    shift_key, affine_key, elastic_key = jax.random.split(key, 3)
    center = jnp.array([height - 1, width - 1], image.dtype).reshape(2, 1, 1) / 2
    plane = jnp.stack(
        jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    )
    linear = jnp.eye(2) + affine * jax.random.normal(affine_key, (2, 2))
    source = jnp.tensordot(linear, plane - center, axes=1) + center
    source += shift * jax.random.normal(shift_key, (2, 1, 1))
    grid = elastic * jax.random.normal(elastic_key, (2, 4, 4))
    source += jax.image.resize(grid, (2, height, width), "cubic")
    return jax.vmap(
        lambda channel: map_coordinates(channel, list(source), order=1, mode="nearest"),
        in_axes=-1,
        out_axes=-1,
    )(image)


def jitter(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    contrast: float,
    brightness: float,
    noise: float,
) -> Float[Array, "height width channels"]:
    """Random contrast and brightness, then white noise, on the normalized scale.

    Args:
        key: For one image.
        image: Any image.
        contrast: Standard deviation of the logarithm of the factor.
        brightness: Standard deviation of the offset.
        noise: The noise's standard deviation is drawn from U(0, noise).
    """
    keys = jax.random.split(key, 4)
    factor = jnp.exp(contrast * jax.random.normal(keys[0]))
    offset = brightness * jax.random.normal(keys[1])
    level = noise * jax.random.uniform(keys[2])
    grain = jax.random.normal(keys[3], image.shape, image.dtype)
    return image * factor + offset + level * grain
