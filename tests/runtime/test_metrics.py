import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.runtime import metrics

# Predictions with odds 3:1:1, 1:1:8, 2:1:1, and padding.
LOGITS = jnp.log(jnp.array([[3.0, 1, 1], [1, 1, 8], [2, 1, 1], [1, 1, 98]]))
TEACHER = jnp.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]])
LABELS = jnp.array([0, 2, 1, 0])
MASK = jnp.array([1.0, 1, 1, 0])


@pytest.fixture
def totals():
    found = metrics.sums(LOGITS, TEACHER, LABELS, MASK)
    return {name: np.asarray(value) for name, value in found.items()}


def test_sums_by_hand(totals):
    assert totals["count"] == 3
    assert totals["agreement"] == 2
    np.testing.assert_allclose(
        totals["nll"], -np.log([0.6, 0.8, 0.25]).sum(), rtol=1e-6
    )
    np.testing.assert_array_equal(
        totals["confusion"], [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    )


def test_bins_by_hand(totals):
    # Confidences 0.6 (right), 0.8 (right) and 0.5 (wrong), in fifteenths.
    count = np.zeros(15)
    count[[7, 9, 12]] = 1
    confidence = np.zeros(15)
    confidence[[7, 9, 12]] = 0.5, 0.6, 0.8
    # 0.6 and 0.8 lie on borders; rounding decides, but both figures go one way.
    for name, expected in (("count", count), ("confidence", confidence)):
        found = totals[f"bin_{name}"]
        np.testing.assert_allclose(found[7], expected[7], rtol=1e-6)
        np.testing.assert_allclose(found[8:10].sum(), expected[9], rtol=1e-6)
        np.testing.assert_allclose(found[11:13].sum(), expected[12], rtol=1e-6)
        np.testing.assert_allclose(found.sum(), expected.sum(), rtol=1e-6)
    assert totals["bin_correct"].sum() == 2
    assert totals["bin_correct"][7] == 0


def test_full_confidence_is_in_the_last_bin():
    found = metrics.sums(
        jnp.array([[200.0, 0.0]]), jnp.zeros((1, 2)), jnp.array([0]), jnp.ones(1)
    )
    assert found["bin_count"][-1] == 1


def test_summary_by_hand(totals):
    found = metrics.summarize(totals, class_names=("a", "b", "c"))
    assert found["num_examples"] == 3
    assert found["num_correct"] == 2
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["agreement_with_teacher"] == pytest.approx(2 / 3)
    # |0.6 - 1|, |0.8 - 1| and |0.5 - 0|, each a third of the examples.
    assert found["expected_calibration_error"] == pytest.approx((0.4 + 0.2 + 0.5) / 3)
    assert found["per_class"] == [
        {"class": "a", "count": 1, "recall": 1, "precision": 0.5},
        {"class": "b", "count": 1, "recall": 0, "precision": None},
        {"class": "c", "count": 1, "recall": 1, "precision": 1},
    ]
    assert found["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_calibration_is_by_bin():
    """Two examples in one bin are averaged before they are compared."""
    logits = jnp.log(jnp.array([[0.74, 0.26], [0.76, 0.24]]))
    found = metrics.sums(logits, logits, jnp.array([0, 1]), jnp.ones(2))
    totals = {name: np.asarray(value) for name, value in found.items()}
    summary = metrics.summarize(totals, class_names=("a", "b"))
    assert summary["expected_calibration_error"] == pytest.approx(0.25, abs=1e-6)


def test_batches_add_up(totals):
    parts = [
        metrics.sums(
            LOGITS[i : i + 1], TEACHER[i : i + 1], LABELS[i : i + 1], MASK[i : i + 1]
        )
        for i in range(4)
    ]
    for name, total in totals.items():
        np.testing.assert_allclose(sum(part[name] for part in parts), total, rtol=1e-6)


def test_class_without_examples():
    found = metrics.sums(LOGITS[:1], TEACHER[:1], LABELS[:1], MASK[:1])
    totals = {name: np.asarray(value) for name, value in found.items()}
    rows = metrics.summarize(totals, class_names="abc")["per_class"]
    assert rows[1] == {"class": "b", "count": 0, "recall": None, "precision": None}


def test_nothing_counted(totals):
    with pytest.raises(ValueError, match="No example"):
        metrics.summarize({**totals, "count": np.zeros(())}, class_names="abc")


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        (8.0, 10.0, (0.4902, 0.9433)),
        (0.0, 10.0, (0.0, 0.2775)),
        (10.0, 10.0, (0.7225, 1.0)),
        (0.0, 0.0, (0.0, 1.0)),
    ],
)
def test_wilson_interval_of_known_cases(successes, trials, interval):
    found = metrics.wilson_interval(successes, trials)
    assert found == pytest.approx(interval, abs=1e-4)
