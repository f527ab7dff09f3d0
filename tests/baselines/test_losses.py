import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfkd_jax.baselines import losses

LOGITS = jax.random.normal(jax.random.key(0), (4, 5))


def test_one_hot_by_hand(strict_dtypes):
    # Probabilities (1/4, 3/4), (1/2, 1/2) and nearly (1, 0).
    logits = jnp.log(jnp.array([[1.0, 3.0], [2.0, 2.0], [1e9, 1.0]]))
    expected = [np.log(4 / 3), np.log(2), 0]
    np.testing.assert_allclose(losses.one_hot(logits), expected, atol=1e-6)


def test_one_hot_pushes_towards_the_likeliest_class(strict_dtypes):
    def loss(logits):
        return losses.one_hot(logits).sum()

    check_grads(jax.jit(loss), (LOGITS,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    likeliest = jax.nn.one_hot(LOGITS.argmax(1), 5)
    expected = jax.nn.softmax(LOGITS) - likeliest
    np.testing.assert_allclose(jax.grad(loss)(LOGITS), expected, atol=1e-6)


def test_one_hot_ignores_a_shift_and_the_order_of_classes():
    shift = jnp.array([[1.0], [-2.0], [30.0], [0.0]])
    found = losses.one_hot((LOGITS + shift)[:, ::-1])
    np.testing.assert_allclose(found, losses.one_hot(LOGITS), rtol=1e-5)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ([0.1] * 10, -1.0),
        ([1.0, 0.0, 0.0], 0.0),
        ([0.5, 0.5, 0.0], -np.log10(2)),
        ([0.1, 0.9], 0.1 * np.log10(0.1) + 0.9 * np.log10(0.9)),
    ],
)
def test_information_entropy_by_hand(strict_dtypes, probs, expected):
    found = losses.information_entropy(jnp.array(probs))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_information_entropy_gradient(strict_dtypes):
    probs = jnp.array([0.2, 0.3, 0.5])
    loss = jax.jit(losses.information_entropy)
    check_grads(loss, (probs,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    expected = np.log10(probs) + 1 / np.log(10)
    np.testing.assert_allclose(jax.grad(loss)(probs), expected, rtol=1e-5)


def test_a_class_that_never_comes_leaves_the_gradient_finite():
    gradient = jax.grad(losses.information_entropy)(jnp.array([1.0, 0.0]))
    assert np.isfinite(gradient).all()


def test_information_entropy_ignores_the_order_of_classes():
    probs = jnp.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(
        losses.information_entropy(probs[::-1]),
        losses.information_entropy(probs),
        rtol=1e-6,
    )
