import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from dfkd_jax.synthesis import losses

LOGITS = jax.random.normal(jax.random.key(0), (4, 5))
LABELS = jax.nn.softmax(jax.random.normal(jax.random.key(1), (4, 5)))


def test_cross_entropy_by_hand(strict_dtypes):
    # At τ = 2 the prediction is (1/4, 3/4).
    logits = 2 * jnp.log(jnp.array([[1.0, 3.0]] * 3))
    labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    result = losses.soft_cross_entropy(logits, labels, temperature=2.0)
    entropy = 0.25 * np.log(4) + 0.75 * np.log(4 / 3)
    np.testing.assert_allclose(result, [np.log(4), np.log(4 / 3), entropy], rtol=1e-6)


def test_cross_entropy_gradient(strict_dtypes):
    @jax.jit  # NumPy arrays, which finite differences are taken with, become JAX's.
    def loss(logits):
        return losses.soft_cross_entropy(logits, LABELS, temperature=3.0)

    check_grads(loss, (LOGITS,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    gradient = jax.grad(lambda logits: loss(logits).sum())(LOGITS)
    np.testing.assert_allclose(
        gradient, (jax.nn.softmax(LOGITS / 3) - LABELS) / 3, atol=1e-6
    )


def test_cross_entropy_ignores_a_shift_of_all_logits():
    shift = jnp.array([[1.0], [-2.0], [30.0], [0.0]])
    np.testing.assert_allclose(
        losses.soft_cross_entropy(LOGITS + shift, LABELS, temperature=2.0),
        losses.soft_cross_entropy(LOGITS, LABELS, temperature=2.0),
        rtol=1e-5,
    )


def test_activation_loss(strict_dtypes):
    features = jnp.array([[1.0, -3.0], [0.0, 0.5]])
    np.testing.assert_allclose(losses.activation_loss(features), [-2, -0.25])
    np.testing.assert_allclose(
        losses.activation_loss(-features[:, ::-1]), losses.activation_loss(features)
    )
    loss = jax.jit(losses.activation_loss)
    check_grads(loss, (LOGITS,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
