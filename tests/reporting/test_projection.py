import os
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

from dfkd_jax.reporting import projection


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(150, 5)) + 6 * np.eye(5)[np.arange(150) % 5]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_classes_lie_apart_and_both_sets_on_one_map(labels):
    first, second = projection.tsne([labels, labels[:100]])
    assert first.shape == (150, 2)
    assert second.shape == (100, 2)
    both = np.concatenate([first, second])
    np.testing.assert_allclose([both.min(0), both.max(0)], [[0, 0], [1, 1]])
    # The same label lies in the same place, whichever set it is of.
    apart = np.linalg.norm(first[:100] - second, axis=1)
    assert np.median(apart) < 0.05
    centers = np.array([np.median(first[k::5], axis=0) for k in range(5)])
    nearest = np.linalg.norm(first[:, None] - centers, axis=-1).argmin(1)
    assert np.mean(nearest == np.arange(150) % 5) > 0.9


def test_the_same_labels_make_the_same_map(labels):
    once, again = (projection.tsne([labels])[0] for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_no_program_is_started_and_the_environment_stays(labels, monkeypatch):
    """scikit-learn would have cores counted, and complain where nothing can."""
    started = []
    sys.addaudithook(
        lambda event, args: event == "subprocess.Popen" and (started.append(args))
    )
    monkeypatch.setitem(os.environ, "PATH", "")
    before = dict(os.environ)
    projection.tsne([labels])
    assert started == []
    assert dict(os.environ) == before


def test_no_map_of_labels_that_are_alike(labels):
    alike = np.repeat(labels[:3], 100, axis=0) + 1e-6
    assert projection.tsne([alike, alike]) is None


def test_without_scikit_learn_one_warning(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    projection.is_available.cache_clear()
    try:
        assert not projection.is_available()
        assert not projection.is_available()
    finally:
        projection.is_available.cache_clear()
    assert capsys.readouterr().err.count("scikit-learn") == 1
