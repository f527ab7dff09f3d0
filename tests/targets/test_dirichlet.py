import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.targets import dirichlet

KERNEL = jax.random.normal(jax.random.key(0), (20, 5))


def test_concentrations_by_hand(strict_dtypes):
    # Columns (1, 0), (3, 4), (0, 2): cosines 0.6, 0 and 0.8; each row from 0 to 1.
    kernel = jnp.array([[1.0, 3.0, 0.0], [0.0, 4.0, 2.0]])
    expected = [[1, 0.6, 0], [0, 1, 0.5], [0, 0.8, 1]]
    np.testing.assert_allclose(dirichlet.concentrations(kernel), expected, atol=1e-6)


def test_concentrations_of_opposite_classes(strict_dtypes):
    # Opposite columns and one between: cosines -1, -0.6 and 0.6.
    kernel = jnp.array([[1.0, -2.0, 3.0], [0.0, 0.0, 4.0]])
    expected = [[1, 0, 0.8], [0, 1, 0.2], [0.75, 0, 1]]
    np.testing.assert_allclose(dirichlet.concentrations(kernel), expected, atol=1e-6)


def test_concentrations_range_and_invariance():
    rows = dirichlet.concentrations(KERNEL)
    np.testing.assert_array_equal(rows.min(1), np.zeros(5))
    np.testing.assert_allclose(np.diag(rows), np.ones(5), rtol=1e-6)
    np.testing.assert_allclose(dirichlet.concentrations(7 * KERNEL), rows, atol=1e-5)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(1), 6_000)


@pytest.fixture(scope="module")
def draw():
    return dirichlet.soft_labels(KERNEL, betas=(1.0, 0.1))


def test_labels_are_distributions_whatever_the_batch(keys, draw):
    labels = draw(keys)
    assert labels.min() >= 0
    np.testing.assert_allclose(labels.sum(1), np.ones(len(keys)), atol=1e-5)
    np.testing.assert_allclose(draw(keys[7:9]), labels[7:9], atol=1e-6)


def test_mean_label_is_the_mean_of_the_rows(keys, draw):
    """E[Dir(a)] = a / Σa, and classes are drawn evenly."""
    rows = np.asarray(dirichlet.concentrations(KERNEL))
    expected = (rows / rows.sum(1, keepdims=True)).mean(0)
    # The standard deviation of an entry is below 0.5: standard errors below 0.0065.
    np.testing.assert_allclose(draw(keys).mean(0), expected, atol=0.027)


def test_small_scalings_give_labels_close_to_one_class(keys, draw):
    """β scales the concentration: at a tenth of it labels are close to one-hot."""
    sharp = dirichlet.soft_labels(KERNEL, betas=(0.1,))(keys).max(1).mean()
    mixed = draw(keys).max(1).mean()
    # Half of `mixed` is as `sharp`, half at β = 1.
    assert sharp > 0.85 > mixed > sharp / 2
    assert 2 * mixed - sharp < 0.75
