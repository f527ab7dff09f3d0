import numpy as np
import pytest

from dfkd_jax.runtime import optimisation


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("cosine", 0, {0: 2.0, 50: 1.0, 100: 0.0}),
        ("cosine", 20, {0: 0.0, 10: 1.0, 20: 2.0, 60: 1.0, 100: 0.0}),
        ("constant", 0, {0: 2.0, 1: 2.0, 100: 2.0}),
        ("constant", 20, {0: 0.0, 10: 1.0, 20: 2.0, 21: 2.0, 100: 2.0}),
    ],
)
def test_learning_rates_by_hand(schedule, warmup_steps, expected):
    rate = optimisation.warmup_then(
        schedule, 2.0, warmup_steps=warmup_steps, num_steps=100
    )
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6)
