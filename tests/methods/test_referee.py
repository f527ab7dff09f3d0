"""What is told of a student without data."""

import json

import described
import jax
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.methods import referee

SHAPE = (8, 8, 1)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


def network(seed):
    variables = Linear().init(jax.random.key(seed), np.zeros((1, *SHAPE)))
    return described.network(Linear(), variables, SHAPE, num_classes=3)


@pytest.mark.parametrize("shape", [SHAPE, (5, 4, 2)])
def test_probes_are_pixels_of_three_kinds(shape):
    found = referee.probes(shape)
    assert set(found) == {"shapes", "mixed", "noise"}
    for pixels in found.values():
        assert pixels.shape == (referee.NUM_PROBES, *shape)
        assert pixels.min() >= 0 and pixels.max() <= 1
        assert pixels.std(0).min() > 0.05  # No two kinds of pixel, no image twice.
    assert np.abs(found["shapes"] - found["mixed"]).mean() > 0.01


def test_a_copy_follows_and_a_stranger_does_not():
    teacher = network(0)
    copy, stranger = (referee.judge(teacher, network(seed)) for seed in (0, 1))
    for kind in ("shapes", "mixed", "noise"):
        spread = copy[kind].pop("spread")
        assert copy[kind] == {"agreement": 1.0, "plain": 1.0, "explained": 1.0}
        assert spread == stranger[kind]["spread"] > 0  # The teacher's.
        assert stranger[kind]["explained"] < 0.5
    assert referee.score(copy) == 1 > referee.score(stranger)


def test_figures_by_hand():
    theirs = np.array([0] * 8 + [1] * 8 + [2] * 5)
    own = np.array([0] * 8 + [0] * 2 + [1] * 6 + [0] * 5)
    # Class 2 is rare: it does not count.
    assert referee._balanced_agreement(theirs, own) == (1 + 6 / 8) / 2
    # What is added to all classes of an image says nothing.
    theirs = np.array([[1.0, -1.0], [2.0, -2.0]])
    own = theirs + np.array([[3.0], [4.0]])
    assert referee._explained(theirs, own) == 1
    assert referee._explained(theirs, 0 * theirs) == 0


def test_estimate_by_hand(monkeypatch, tmp_path):
    path = tmp_path / "calibration.json"
    known = {"figure": "noise.explained", "offset": 1.0, "slope": 0.5}
    known |= {"hardness": 0.5, "typical_accuracy": 0.98}
    known |= {"margin": 0.1, "margin_assumed": 0.2}
    known |= {"score_range": [0.4, 0.8], "spread_range": [1.0, 4.0]}
    path.write_text(json.dumps(known))
    monkeypatch.setattr(referee, "CALIBRATION", path)

    def told(explained, agreement, *accuracy, spread=2.0):
        each = {"agreement": agreement, "explained": explained, "spread": spread}
        kinds = dict.fromkeys(("shapes", "mixed", "noise"), each)
        return referee.estimate(kinds, *accuracy)

    share = 1 / (1 + np.exp(-1))
    # A teacher that errs on a fifth, half of which counts; on a fiftieth, if unknown.
    for accuracy, loss, factor in (((0.8,), 0.1, 0.1), ((), 0.01, 0.2)):
        found, expected = told(0.5, 0.6, *accuracy), share - loss
        margin = factor * np.sqrt(expected * (1 - expected) + 0.001)
        assert found["agreement"] == pytest.approx(expected)
        assert found["low"] == pytest.approx(expected - margin)
        assert found["high"] == pytest.approx(expected + margin)
        assert found["assumed_accuracy"] == (None if accuracy else 0.98)
        assert found["is_known"] and found["is_poor"]
    assert not told(0.99, 0.6)["is_poor"]
    assert not told(0.5, 0.3)["is_known"] and not told(0.5, 0.9)["is_known"]
    assert not told(0.5, 0.6, spread=0.9)["is_known"]


@pytest.mark.parametrize("accuracy", [None, 0.9, 0.99])
def test_the_calibration_that_is_shipped(accuracy):
    """A better student is never told to be a worse one."""
    known = json.loads(referee.CALIBRATION.read_text())
    assert known["teachers"] and known["num_students"] >= len(known["teachers"])
    found = []
    for share in (0.1, 0.5, 0.9, 1.0):
        each = {"agreement": share, "explained": share}
        kinds = dict.fromkeys(("shapes", "mixed", "noise"), each)
        told = referee.estimate(kinds, accuracy)
        assert 0 <= told["low"] <= told["agreement"] <= told["high"] <= 1
        found.append(told["agreement"])
    assert found == sorted(found)
    assert found[0] < 0.8 and found[-1] > 0.85
