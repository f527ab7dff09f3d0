import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfkd_jax.runtime import optimization


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
    rate = optimization.warmup_then(
        schedule, 2.0, warmup_steps=warmup_steps, num_steps=100
    )
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6)


def weights_after(name, gradients, *, rate=0.1, decay=0.5, momentum=0.9):
    """A single weight that starts at 2, step by step."""
    optimizer = optimization.make_optimizer(
        name, optax.constant_schedule(rate), weight_decay=decay, momentum=momentum
    )
    weight, found = jnp.array(2.0), []
    state = optimizer.init(weight)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.array(gradient), state, weight)
        weight = optax.apply_updates(weight, updates)
        found.append(float(weight))
    return found


def test_sgd_by_hand():
    # PyTorch's, with Nesterov: g = 1 + 0.5 w; v = 0.9 v + g; w -= 0.1 (g + 0.9 v).
    first = 2 - 0.1 * (2 + 0.9 * 2)
    g = 1 + 0.5 * first
    second = first - 0.1 * (g + 0.9 * (0.9 * 2 + g))
    np.testing.assert_allclose(weights_after("sgd", [1.0, 1.0]), [first, second])


def test_adamw_by_hand():
    # The first step of Adam is the rate, whatever the gradient; decay is apart.
    [found] = weights_after("adamw", [7.0])
    np.testing.assert_allclose(found, 2 - 0.1 * 1 - 0.1 * 0.5 * 2, rtol=1e-6)


def test_momentum_is_of_sgd_alone():
    for name, same in (("sgd", False), ("adamw", True)):
        found = {weights_after(name, [1.0, 1.0], momentum=m)[1] for m in (0.0, 0.9)}
        assert (len(found) == 1) == same
