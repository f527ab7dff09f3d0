"""Procedural images: shapes one in front of another, drawn without any data.

Ellipses, polygons, strokes and arcs, filled with flat shades, gradients, gratings and
clouds; half of them symmetric, most on a dark ground. They look like nothing in
particular and a little like everything: unoptimized, such images distil where noise
does not (Nayak et al., WACV 2021; Frank and Davis, CVPR 2025). No number here was
chosen for a data set.

Lengths are in units of half of the image's shorter side, its middle is the origin. All
numbers of an image are drawn at once and dealt out: many small draws compile slowly.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Key

MAX_SHAPES = 6
MAX_CORNERS = 6
POINTS = 8  # Of the line that a stroke follows.
CLOUD = 5  # Random numbers each way behind a cloud.
SYMMETRIC = 0.5  # Share of images that are their own mirror image,
UPRIGHT = 0.1  # and of those that stay the same upside down.
DARK = 0.75  # Share of plain black grounds.
ALIKE = 0.3  # Share of images whose shapes are all of one kind,
PAINTED = 0.7  # and of those whose shapes share a texture, like parts of one thing.
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


class _Texture(struct.PyTreeNode):
    """Numbers behind a texture."""

    even: Any  # From U(0, 1), `[8 + 2 · channels]`.
    clouds: Any  # From N(0, 1), `[CLOUD, CLOUD]`.


class _Shape(struct.PyTreeNode):
    """Numbers behind a shape: from U(0, 1), or from N(0, 1)."""

    kind: Any
    texture: _Texture
    even: Any  # Tilt, corners, and begin and extent of an arc.
    center: Any  # `[2]`.
    sizes: Any  # `[2]`.
    line: Any  # `[2, 4]`.
    angles: Any  # `[MAX_CORNERS]`.
    depths: Any  # `[MAX_CORNERS]`.


def _numbers(key, *, channels):
    """Seven numbers from U(0, 1), one from N(0, 1), shapes, and the ground's texture.

    Shapes come as one of which every number has an axis of shapes.
    """
    even_sizes = {"texture": 8 + 2 * channels, "kind": 1, "shape": 4}
    normal_sizes = {
        "clouds": CLOUD**2,
        "center": 2,
        "sizes": 2,
        "line": 8,
        "angles": MAX_CORNERS,
        "depths": MAX_CORNERS,
    }
    rows = MAX_SHAPES + 1  # One for the ground.
    even_key, normal_key = jax.random.split(key)
    coins, even = _deal(jax.random.uniform, even_key, 7, rows, even_sizes)
    stroke, normal = _deal(jax.random.normal, normal_key, 1, rows, normal_sizes)
    textures = _Texture(even["texture"], normal["clouds"].reshape(rows, CLOUD, CLOUD))
    every = _Shape(
        kind=jnp.floor(4 * even["kind"][:, 0]),
        texture=textures,
        even=even["shape"],
        center=normal["center"],
        sizes=normal["sizes"],
        line=normal["line"].reshape(rows, 2, 4),
        angles=normal["angles"],
        depths=normal["depths"],
    )
    drawn = jax.tree.map(lambda leaf: leaf[:-1], every)
    return coins, stroke[0], drawn, jax.tree.map(lambda leaf: leaf[-1], textures)


def _deal(draw, key, first, rows, sizes):
    """`[first]` numbers, and `[rows, size]` by name, of one draw."""
    numbers = draw(key, (first + rows * sum(sizes.values()),))
    table = numbers[first:].reshape(rows, -1)
    ends = np.cumsum(list(sizes.values()))
    parts = jnp.split(table, ends[:-1], axis=1)
    return numbers[:first], dict(zip(sizes, parts, strict=True))


def _draw(key, *, image_shape):
    height, width, channels = image_shape
    coins, stroke, drawn, ground = _numbers(key, channels=channels)
    symmetric, upright, crowd, blur, alike, dark, painted = coins
    pixel = 2 / min(height, width)
    x = jnp.broadcast_to(_middle(width) * pixel, (height, width))
    y = jnp.broadcast_to(_middle(height)[:, None] * pixel, (height, width))
    number = 1 + jnp.floor(MAX_SHAPES * crowd)
    softness = pixel * (0.2 + blur / 2)
    thickness = 0.1 * jnp.exp(0.5 * stroke)

    def as_first(numbers, is_so):
        return jax.tree.map(lambda leaf: jnp.where(is_so, leaf[:1], leaf), numbers)

    drawn = drawn.replace(
        kind=as_first(drawn.kind, alike < ALIKE),
        texture=as_first(drawn.texture, painted < PAINTED),
    )

    def paint(image, placed):
        place, shape = placed
        distance = _distance(shape, x, y, thickness)
        cover = jax.nn.sigmoid(-distance / softness)
        cover = jnp.where(place < number, cover, 0.0)[..., None]
        return image + cover * (_texture(shape.texture, x, y, channels) - image), None

    image = jnp.where(dark < DARK, 0.0, _texture(ground, x, y, channels))
    image, _ = jax.lax.scan(paint, image, (jnp.arange(MAX_SHAPES), drawn))
    is_kept = (x[..., None] <= 0) | (symmetric > SYMMETRIC)
    image = jnp.where(is_kept, image, image[:, ::-1])
    is_kept = (y[..., None] <= 0) | (upright > UPRIGHT)
    return jnp.where(is_kept, image, image[::-1])


def _middle(size):
    return np.arange(size, dtype=np.float32) - (size - 1) / 2


def _texture(numbers, x, y, channels):
    """`[height, width, channels]`: one color, or from one color to another."""
    kind, angle, offset, rate, phase = numbers.even[:5]
    # Colors between gray and any; one channel has shades alone.
    gray, saturation = numbers.even[5:7, None], numbers.even[7] if channels > 1 else 0.0
    colors = numbers.even[8:].reshape(2, channels)
    low, high = (1 - saturation) * gray + saturation * colors
    low, high = (color.reshape(1, 1, channels) for color in (low, high))
    angle *= 2 * jnp.pi
    along = x * jnp.cos(angle) + y * jnp.sin(angle)
    gradient = jax.nn.sigmoid((along + offset - 0.5) * (1 + 4 * rate))
    grating = jnp.sin(2 * jnp.pi * (along * (0.5 + 4 * rate**2) + phase)) / 2 + 0.5
    clouds = jax.nn.sigmoid(2 * jax.image.resize(numbers.clouds, x.shape, "cubic"))
    level = jnp.select([kind < 0.6, kind < 0.8], [gradient, grating], clouds)
    textured = low + level[..., None] * (high - low)
    return jnp.where(kind < 0.4, jnp.maximum(low, high), textured)


def _distance(shape, x, y, thickness):
    """Signed distance to a shape's outline, negative inside; about right near it."""
    tilt, corners, begin, extent = shape.even
    center_x, center_y = 0.4 * shape.center
    sizes = 0.55 * jnp.exp(0.5 * shape.sizes)
    tilt *= 2 * jnp.pi
    cos, sin = jnp.cos(tilt), jnp.sin(tilt)
    u = ((x - center_x) * cos + (y - center_y) * sin) / sizes[0]
    v = ((y - center_y) * cos - (x - center_x) * sin) / sizes[1]
    ellipse = (jnp.sqrt(u**2 + v**2) - 1) * sizes.min()
    corners = 3 + jnp.floor((MAX_CORNERS - 2) * corners)
    polygon = _polygon(shape, u, v, corners) * sizes.min()

    line_x, line_y = 0.7 * shape.line @ _BASIS
    turns = begin + (0.3 + 0.7 * extent) * np.linspace(0, 1, POINTS)
    arc_u, arc_v = jnp.cos(2 * jnp.pi * turns), jnp.sin(2 * jnp.pi * turns)
    arc_x = sizes[0] * arc_u * cos - sizes[1] * arc_v * sin
    arc_y = sizes[0] * arc_u * sin + sizes[1] * arc_v * cos
    is_arc = shape.kind == _ARC
    away = _distance_from_line(
        x,
        y,
        center_x + jnp.where(is_arc, arc_x, line_x),
        center_y + jnp.where(is_arc, arc_y, line_y),
    )
    return jnp.select(
        [shape.kind == _ELLIPSE, shape.kind == _POLYGON],
        [ellipse, polygon],
        away - thickness,
    )


def _polygon(shape, u, v, corners):
    """Where three to six half-planes meet; of the unit circle's size."""
    places = np.arange(MAX_CORNERS)
    angles = 2 * jnp.pi * places / corners + 0.3 * shape.angles
    depths = 0.8 * jnp.exp(0.2 * shape.depths)
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
