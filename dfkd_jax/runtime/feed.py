"""Which examples a step gets, and reading them while the devices work."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dfkd_jax.runtime import hosts

READ_AHEAD = 2  # What waits while the devices work.


@functools.lru_cache(maxsize=8)
def _permutation(seed, stream, epoch, num_images):
    entropy = [seed, epoch, *stream.encode()]
    return np.random.default_rng(entropy).permutation(num_images)


def indices(
    seed: int, stream: str, *, num_images: int, start: int, count: int
) -> np.ndarray:
    """Which images come at positions `start` to `start + count` of a shuffled reading.

    Of these, where several processes share the batch, this process's part. Each pass
    over the images is a permutation of its own. Nothing is carried from one call to the
    next, so a run can go on anywhere.
    """
    positions = hosts.process_slice(np.arange(start, start + count))
    epochs, places = np.divmod(positions, num_images)
    chosen = np.empty(len(epochs), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = _permutation(seed, stream, int(epoch), num_images)[places[here]]
    return chosen


def read_ahead(read: Callable[[int], Any], steps: Sequence[int]) -> Iterator[Any]:
    """`read(step)` for each step, a few steps ahead in a thread.

    An error of the thread is raised here, in place of the batch.
    """
    waiting: queue.Queue = queue.Queue(maxsize=READ_AHEAD)
    stopped = threading.Event()

    def put(item):
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work():
        try:
            for step in steps:
                put((read(step), None))
                if stopped.is_set():
                    return
        except BaseException as error:  # Handed to the thread that asks for batches.
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in steps:
            batch, error = waiting.get()
            if error is not None:
                raise error
            yield batch
    finally:
        stopped.set()
        thread.join()
