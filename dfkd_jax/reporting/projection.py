"""A map of soft labels on which alike ones lie close together: t-SNE."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Sequence

import numpy as np

from dfkd_jax.runtime import progress

MIN_DISTINCT = 100  # Rows; of fewer there is no map worth looking at.
PERPLEXITY = 30.0


@functools.cache
def is_available() -> bool:
    """Whether scikit-learn is there; warns once where it is not."""
    if importlib.util.find_spec("sklearn") is None:
        progress.warn(
            "No map of soft labels without scikit-learn: "
            'pip install ".[plots]" in a clone of dfkd_jax.'
        )
        return False
    return True


def tsne(sets: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """One map of several sets of soft labels; the same place means the same in each.

    t-SNE (van der Maaten and Hinton, 2008) of all rows together, from the principal
    components, with a fixed seed.

    Args:
        sets: `[n_i, classes]` each.

    Returns:
        `[n_i, 2]` each, on the scale 0 to 1; None where the rows hardly differ.
    """
    from sklearn.manifold import TSNE

    rows = np.concatenate(sets).astype(np.float32)
    if len(np.unique(rows.round(4), axis=0)) < MIN_DISTINCT:
        return None
    with _one_thread():
        places = TSNE(
            perplexity=PERPLEXITY, init="pca", max_iter=500, random_state=0
        ).fit_transform(rows)
    low, high = places.min(0), places.max(0)
    places = (places - low) / np.maximum(high - low, 1e-12)
    return np.split(places, np.cumsum([len(part) for part in sets])[:-1])


@contextlib.contextmanager
def _one_thread():
    """OpenMP with one thread: several wait for each other actively, and on a busy
    machine are ten times slower. With the variable set, scikit-learn starts no program
    that counts cores either, and prints no traceback where there is none.
    """
    from threadpoolctl import threadpool_limits

    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with threadpool_limits(1):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
