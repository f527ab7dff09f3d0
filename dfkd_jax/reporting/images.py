"""Pseudo samples as pixels, and as PNG inside a page."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

LARGEST_SIDE = 48  # Of a thumbnail, in pixels.


def to_pixels(images: np.ndarray, *, mean: Any, std: Any) -> np.ndarray:
    """Normalized images `[…, channels]` on the scale 0 to 1, clipped to it."""
    return np.clip(images * np.asarray(std) + np.asarray(mean), 0, 1)


def shrink(pixels: np.ndarray, *, largest: int) -> np.ndarray:
    """`[height, width, channels]` averaged over blocks until no side is too long."""
    side = -(-max(pixels.shape[:2]) // largest)
    height, width = (-(-length // side) for length in pixels.shape[:2])
    rows = np.stack([part.mean(0) for part in np.array_split(pixels, height)])
    columns = [part.mean(1) for part in np.array_split(rows, width, axis=1)]
    return np.stack(columns, axis=1)


def shown(pixels: np.ndarray) -> np.ndarray:
    """`[height, width, channels]` as pictures take it: without channels where gray.

    One channel is gray, three are color, four are color and opacity; of any other
    number the mean is shown.
    """
    if pixels.shape[-1] in (3, 4):
        return pixels
    return pixels.mean(-1)


def data_uri(pixels: np.ndarray) -> str:
    """A PNG of `[height, width, channels]` from 0 to 1 as a data URI; see `shown`."""
    values = np.round(255 * shown(pixels)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail_uri(pixels: np.ndarray) -> str:
    """`data_uri` of an image of any size, averaged down if it is a large one."""
    return data_uri(shrink(pixels, largest=LARGEST_SIDE))


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of `values`, evenly spread from the first to the last."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round()
    return [values[int(place)] for place in places]
