"""Soft labels drawn for the report: the paper's distribution beside ZSKD's.

The report draws nothing itself, since it has no teacher; the run leaves it a sample.
"""

import io
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dfkd_jax.runtime import arrays, files, rng

NUM_DRAWS = 1_000  # Of each distribution.
BATCH_SIZE = 100  # Draws at a time: the features of a large teacher need memory.


def draw(draw_labels: Callable[[Any], Any], *, seed: int, count: int) -> np.ndarray:
    """`[count, classes]` soft labels, by keys that nothing else uses.

    Args:
        draw_labels: Keys `[batch]` to soft labels `[batch, classes]`.
        seed: Root of the keys.
        count: Number of labels.
    """
    root = rng.stream(jax.random.key(seed), "soft labels of the report")
    # The last batch is drawn whole: one shape is compiled once.
    index = np.arange(-(-count // BATCH_SIZE) * BATCH_SIZE).reshape(-1, BATCH_SIZE)
    batches = [draw_labels(rng.per_example(root, jax.numpy.asarray(i))) for i in index]
    return np.concatenate(batches)[:count].astype(np.float32)


def is_whole(path: pathlib.Path) -> bool:
    """Whether `path` holds what `save` wrote."""
    try:
        return bool(arrays.read_npz(path, ("gaussian", "dirichlet")))
    except (OSError, ValueError):
        return False


def save(path: pathlib.Path, labels: dict[str, np.ndarray]) -> None:
    """Writes `{distribution: [count, classes]}` as an `.npz` file."""
    content = io.BytesIO()  # NumPy's own writing does not say that a disk is full.
    np.savez_compressed(content, **labels)  # pyright: ignore[reportArgumentType]
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
