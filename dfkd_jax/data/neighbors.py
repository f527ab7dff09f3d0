"""How near pseudo samples come to real images: distances to the nearest one."""

from typing import Any

import numpy as np

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
CHUNKS = 1_000, 10_000  # Queries and references at a time: 40 MB of distances.


def nearest(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Root mean squared difference of pixels to the nearest reference, `[n]`.

    Args:
        queries: `[n, ...]`, pixels from 0 to 1.
        references: `[m, ...]`, uint8, or pixels from 0 to 1.
    """
    queries = _rows(queries)
    best = np.full(len(queries), np.inf, np.float32)
    place = np.zeros(len(queries), np.int64)
    for start in range(0, len(references), CHUNKS[1]):
        part = _rows(references[start : start + CHUNKS[1]])
        norms = (part**2).sum(1)
        for first in range(0, len(queries), CHUNKS[0]):
            rows = slice(first, first + CHUNKS[0])
            # |q - r|² without |q|², which is the same for all references.
            squares = norms[None, :] - 2 * queries[rows] @ part.T
            found = squares.argmin(1)
            least = squares[np.arange(len(found)), found]
            nearer = least < best[rows]
            best[rows] = np.where(nearer, least, best[rows])
            place[rows] = np.where(nearer, start + found, place[rows])
    # Exactly, for the nearest alone: the differences above lose digits.
    distances = np.empty(len(queries), np.float32)
    for first in range(0, len(queries), CHUNKS[0]):
        rows = slice(first, first + CHUNKS[0])
        difference = queries[rows] - _rows(references[place[rows]])
        distances[rows] = np.sqrt((difference**2).mean(1))
    return distances


def summarize(pseudo: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """What distances of pseudo samples say beside those of unseen real images.

    Args:
        pseudo: `[n]`, of pseudo samples to the nearest training image.
        held_out: `[k]`, of real images that were not trained on, likewise.
    """
    near = float(np.quantile(held_out, 0.01))
    return {
        "quantiles": list(QUANTILES),
        "pseudo_samples": np.quantile(pseudo, QUANTILES).round(6).tolist(),
        "held_out_images": np.quantile(held_out, QUANTILES).round(6).tolist(),
        "num_pseudo_samples": len(pseudo),
        "num_held_out_images": len(held_out),
        "near": near,
        "num_nearer_than_near": int((pseudo < near).sum()),
        "num_equal": int((pseudo < 0.5 / 255).sum()),
    }


def _rows(images):
    scale = 255 if images.dtype == np.uint8 else 1
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(scale)
