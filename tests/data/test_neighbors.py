import numpy as np

from dfkd_jax.data import neighbors


def test_distance_to_the_nearest_by_hand():
    references = np.array([[0, 0], [255, 255], [51, 0]], np.uint8).reshape(3, 1, 2, 1)
    queries = np.float32([[0.1, 0.0], [1.0, 1.0], [0.2, 0.0]]).reshape(3, 1, 2, 1)
    found = neighbors.nearest(queries, references)
    np.testing.assert_allclose(found, [np.sqrt(0.01 / 2), 0, 0], atol=1e-7)


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    queries, references = random.random((7, 5)), random.random((11, 5))
    whole = neighbors.nearest(queries, references)
    monkeypatch.setattr(neighbors, "CHUNKS", (2, 3))
    np.testing.assert_array_equal(neighbors.nearest(queries, references), whole)
    every = np.sqrt(((queries[:, None] - references[None]) ** 2).mean(-1)).min(1)
    np.testing.assert_allclose(whole, every, rtol=1e-5)


def test_copies_are_counted():
    pseudo = np.array([0.0, 0.05, 0.3, 0.4])
    found = neighbors.summarize(pseudo, np.linspace(0.1, 0.2, 101))
    assert found["num_equal"] == 1
    assert found["num_nearer_than_near"] == 2
    np.testing.assert_allclose(found["near"], 0.101)
    assert found["pseudo_samples"][0] == 0.0
    assert found["pseudo_samples"][-1] == 0.4
    assert found["held_out_images"][3] == 0.15
