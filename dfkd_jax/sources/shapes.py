"""Procedural images: shapes one in front of another, drawn without any data.

Ellipses, polygons, strokes and arcs, filled with flat shades, gradients, gratings and
clouds; half of them symmetric, most on a dark ground. They look like nothing in
particular and a little like everything: unoptimised, such images distil where noise
does not (Nayak et al., WACV 2021; Frank and Davis, CVPR 2025). No number here was
chosen for a data set.

Lengths are in units of half of the image's shorter side, its middle is the origin.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

MAX_SHAPES = 6
MAX_CORNERS = 6
POINTS = 8  # Of the line that a stroke follows.
CLOUD = 5  # Random numbers each way behind a cloud.
SYMMETRIC = 0.5  # Share of images that are their own mirror image,
UPRIGHT = 0.1  # and of those that stay the same upside down.
DARK = 0.75  # Share of plain black grounds.
ALIKE = 0.6  # Share of images whose shapes are all of one kind.
_ELLIPSE, _POLYGON, _STROKE, _ARC = range(4)
_BASIS = np.stack(  # Of a cubic Bézier curve, `[4, points]`.
    [
        binomial * (1 - t) ** (3 - power) * t**power
        for t in [np.linspace(0, 1, POINTS)]
        for power, binomial in enumerate((1, 3, 3, 1))
    ]
)


def draw(
    keys: Key[Array, " batch"], *, image_shape: tuple[int, int, int]
) -> Float[Array, "batch height width channels"]:
    """Pixels in [0, 1], one image a key.

    Args:
        keys: An image depends on its key alone.
        image_shape: (height, width, channels).
    """
    return jax.vmap(functools.partial(_draw, image_shape=image_shape))(keys)


def _draw(key, *, image_shape):
    height, width, channels = image_shape
    ground_key, paint_key, kind_key, coin_key, stroke_key = jax.random.split(key, 5)
    coins = jax.random.uniform(coin_key, (6,))
    pixel = 2 / min(height, width)
    x = jnp.broadcast_to(_middle(width) * pixel, (height, width))
    y = jnp.broadcast_to(_middle(height)[:, None] * pixel, (height, width))
    number = 1 + jnp.floor(MAX_SHAPES * coins[2])
    softness = pixel * (0.2 + coins[3] / 2)
    kinds = jax.random.randint(kind_key, (MAX_SHAPES,), 0, 4)
    kinds = jnp.where(coins[4] < ALIKE, kinds[0], kinds)
    thickness = 0.1 * jnp.exp(0.5 * jax.random.normal(stroke_key))
    ground = _texture(ground_key, x, y, channels)
    ground = jnp.where(coins[5] < DARK, 0.0, ground)

    def paint(image, shape):
        place, key, kind = shape
        shape_key, fill_key = jax.random.split(key)
        distance = _distance(shape_key, x, y, kind, thickness)
        cover = jax.nn.sigmoid(-distance / softness)
        cover = jnp.where(place < number, cover, 0.0)[..., None]
        return image + cover * (_texture(fill_key, x, y, channels) - image), None

    keys = jax.random.split(paint_key, MAX_SHAPES)
    image, _ = jax.lax.scan(paint, ground, (jnp.arange(MAX_SHAPES), keys, kinds))
    is_kept = (x[..., None] <= 0) | (coins[0] > SYMMETRIC)
    image = jnp.where(is_kept, image, image[:, ::-1])
    is_kept = (y[..., None] <= 0) | (coins[1] > UPRIGHT)
    return jnp.where(is_kept, image, image[::-1])


def _middle(size):
    return np.arange(size, dtype=np.float32) - (size - 1) / 2


def _texture(key, x, y, channels):
    """`[height, width, channels]`: one colour, or from one colour to another."""
    number_key, cloud_key = jax.random.split(key)
    numbers = jax.random.uniform(number_key, (8 + 2 * channels,))
    kind, angle, offset, rate, phase = numbers[:5]
    # Colours between grey and any; one channel has shades alone.
    grey, saturation = numbers[5:7, None], numbers[7] if channels > 1 else 0.0
    low, high = (1 - saturation) * grey + saturation * numbers[8:].reshape(2, channels)
    low, high = (colour.reshape(1, 1, channels) for colour in (low, high))
    angle *= 2 * jnp.pi
    along = x * jnp.cos(angle) + y * jnp.sin(angle)
    gradient = jax.nn.sigmoid((along + offset - 0.5) * (1 + 4 * rate))
    grating = jnp.sin(2 * jnp.pi * (along * (0.5 + 4 * rate**2) + phase)) / 2 + 0.5
    clouds = jax.random.normal(cloud_key, (CLOUD, CLOUD))
    clouds = jax.nn.sigmoid(2 * jax.image.resize(clouds, x.shape, "cubic"))
    level = jnp.select([kind < 0.6, kind < 0.8], [gradient, grating], clouds)
    textured = low + level[..., None] * (high - low)
    return jnp.where(kind < 0.4, jnp.maximum(low, high), textured)


def _distance(key, x, y, kind, thickness):
    """Signed distance to a shape's outline, negative inside; about right near it."""
    keys = jax.random.split(key, 6)
    centre_x, centre_y = 0.4 * jax.random.normal(keys[0], (2,))
    tilt = jax.random.uniform(keys[2], maxval=2 * jnp.pi)
    sizes = 0.55 * jnp.exp(0.5 * jax.random.normal(keys[1], (2,)))
    cos, sin = jnp.cos(tilt), jnp.sin(tilt)
    u = ((x - centre_x) * cos + (y - centre_y) * sin) / sizes[0]
    v = ((y - centre_y) * cos - (x - centre_x) * sin) / sizes[1]
    ellipse = (jnp.sqrt(u**2 + v**2) - 1) * sizes.min()
    polygon = _polygon(keys[3], u, v) * sizes.min()

    line_x, line_y = 0.7 * jax.random.normal(keys[4], (2, 4)) @ _BASIS
    begin, extent = jax.random.uniform(keys[5], (2,))
    turns = begin + (0.3 + 0.7 * extent) * np.linspace(0, 1, POINTS)
    arc_u, arc_v = jnp.cos(2 * jnp.pi * turns), jnp.sin(2 * jnp.pi * turns)
    arc_x = sizes[0] * arc_u * cos - sizes[1] * arc_v * sin
    arc_y = sizes[0] * arc_u * sin + sizes[1] * arc_v * cos
    is_arc = kind == _ARC
    away = _distance_from_line(
        x,
        y,
        centre_x + jnp.where(is_arc, arc_x, line_x),
        centre_y + jnp.where(is_arc, arc_y, line_y),
    )
    return jnp.select(
        [kind == _ELLIPSE, kind == _POLYGON], [ellipse, polygon], away - thickness
    )


def _polygon(key, u, v):
    """Where three to six half-planes meet; of the unit circle's size."""
    corner_key, angle_key, depth_key = jax.random.split(key, 3)
    corners = jax.random.randint(corner_key, (), 3, MAX_CORNERS + 1)
    places = np.arange(MAX_CORNERS)
    angles = 2 * jnp.pi * places / corners
    angles += 0.3 * jax.random.normal(angle_key, (MAX_CORNERS,))
    depths = 0.8 * jnp.exp(0.2 * jax.random.normal(depth_key, (MAX_CORNERS,)))
    result = -jnp.inf
    for place in places:
        side = u * jnp.cos(angles[place]) + v * jnp.sin(angles[place]) - depths[place]
        result = jnp.maximum(result, jnp.where(place < corners, side, -jnp.inf))
    return result


def _distance_from_line(x, y, points_x, points_y):
    """Of every pixel, from the nearest of the segments between points `[points]`."""
    nearest: Any = jnp.inf
    for place in range(POINTS - 1):
        along_x = points_x[place + 1] - points_x[place]
        along_y = points_y[place + 1] - points_y[place]
        from_x, from_y = x - points_x[place], y - points_y[place]
        square = along_x**2 + along_y**2 + 1e-6
        share = jnp.clip((from_x * along_x + from_y * along_y) / square, 0, 1)
        nearest = jnp.minimum(
            nearest, (from_x - share * along_x) ** 2 + (from_y - share * along_y) ** 2
        )
    return jnp.sqrt(nearest)
