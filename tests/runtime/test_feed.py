import threading

import numpy as np
import pytest

from dfkd_jax.runtime import feed, hosts


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def read(start, count, *, seed=0, stream="images", num_images=10):
    return feed.indices(seed, stream, num_images=num_images, start=start, count=count)


def test_every_epoch_is_a_permutation_of_its_own():
    epochs = read(0, 30).reshape(3, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    ("start", "count"), [(0, 4), (8, 4), (9, 21), (10, 10), (25, 1)]
)
def test_reading_can_start_anywhere(start, count):
    np.testing.assert_array_equal(
        read(start, count), read(0, 40)[start : start + count]
    )


def test_seeds_and_streams_differ():
    orders = {
        tuple(read(0, 10, seed=seed, stream=stream))
        for seed in (0, 1)
        for stream in ("images", "others")
    }
    assert len(orders) == 4


def test_batch_larger_than_the_set():
    assert np.bincount(read(3, 20, num_images=4)).tolist() == [5, 5, 5, 5]


def test_read_ahead_keeps_the_order():
    steps = range(5, 45)
    assert list(feed.read_ahead(lambda step: step**2, steps)) == [s**2 for s in steps]
    assert list(feed.read_ahead(lambda step: step, [])) == []


def test_read_ahead_stays_a_few_batches_ahead():
    started = []
    batches = feed.read_ahead(lambda step: started.append(step) or step, range(100))
    for step in range(3):
        assert next(batches) == step
    batches.close()  # As when the loop is left by an error.
    # Three taken, as many as wait, and one that is being handed over.
    assert len(started) <= 3 + feed.READ_AHEAD + 1


def test_error_of_the_thread_is_raised_in_place_of_its_batch():
    def fails_at_two(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    batches = feed.read_ahead(fails_at_two, range(10))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


def test_thread_ends_when_the_loop_raises():
    def loop():
        for step in feed.read_ahead(lambda step: step, range(1_000)):
            if step == 3:
                raise ValueError("NaN")

    with pytest.raises(ValueError, match="NaN"):
        loop()


def test_processes_share_a_batch(monkeypatch):
    whole = read(7, 12)
    parts = []
    monkeypatch.setattr(hosts, "_count", 3)
    for index in range(3):
        monkeypatch.setattr(hosts, "_index", index)
        parts.append(read(7, 12))
    assert [len(part) for part in parts] == [4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
