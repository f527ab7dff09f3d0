import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import precision


class Normalized(nn.Module):
    """A network with everything that could lose its precision."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(8, (3, 3))(images)
        x = nn.BatchNorm(use_running_average=not train)(x)
        self.sow("intermediates", "inside", x)
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(5)(x)


@pytest.fixture
def network():
    return Normalized()


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(1), (16, 8, 8, 3))


@pytest.fixture
def variables(network, images):
    return network.init(jax.random.key(0), images)


def test_moments_of_batch_norms_are_taken_in_float32(network, variables, images):
    """Of activations in bfloat16: the prior stays within their rounding."""

    def moments(dtype):
        model = precision.compute_in(Linen(network), dtype)
        return model.features_logits_and_moments(variables, images, layer="Dense_0")[2]

    [rounded], [exact] = moments("bfloat16"), moments("float32")
    for name in rounded._fields:
        ours, expected = getattr(rounded, name), getattr(exact, name)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=2e-2, atol=2e-3)


def test_float32_is_the_model_itself(network):
    model = Linen(network)
    assert precision.compute_in(model, "float32") is model


def test_cast_leaves_whole_numbers_and_keys_alone():
    tree = {"f": jnp.ones(2), "i": jnp.arange(2), "k": jax.random.key(0)}
    cast = precision.cast(tree, jnp.bfloat16)
    assert cast["f"].dtype == jnp.bfloat16
    assert cast["i"].dtype == jnp.int32
    assert cast["k"].dtype == tree["k"].dtype


def test_computes_in_bfloat16_and_returns_float32(network, variables, images):
    seen = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, images):
            seen.append(images.dtype)
            return nn.Dense(5)(images)

    spy = Spy()
    parameters = spy.init(jax.random.key(0), images)
    seen.clear()
    logits = precision.compute_in(Linen(spy), "bfloat16")(parameters, images)
    assert seen == [jnp.bfloat16]
    assert logits.dtype == jnp.float32

    rounded = precision.compute_in(Linen(network), "bfloat16")(variables, images)
    exact = network.apply(variables, images)
    assert rounded.dtype == jnp.float32
    assert not np.array_equal(rounded, exact)  # It did compute in bfloat16.
    np.testing.assert_allclose(rounded, exact, atol=0.02)


def test_statistics_and_gradients_stay_float32(network, variables, images):
    exactly = Linen(network)
    lowered = precision.compute_in(exactly, "bfloat16")

    def loss(params, model):
        logits, changed = model.train_logits(
            variables | {"params": params}, images, jax.random.key(0)
        )
        return jnp.square(logits - 1).mean(), changed

    gradient = jax.grad(loss, has_aux=True)
    found, changed = gradient(variables["params"], lowered)
    expected, exact = gradient(variables["params"], exactly)
    for leaf in jax.tree.leaves((found, changed)):
        assert leaf.dtype == jnp.float32
    for name, leaf in traverse_util.flatten_dict(exact, sep="/").items():
        np.testing.assert_allclose(
            traverse_util.flatten_dict(changed, sep="/")[name], leaf, atol=2e-3
        )
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(expected)))
    difference = jax.tree.map(jnp.subtract, found, expected)
    error = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(difference)))
    assert error < 0.02 * norm


def test_statistics_are_not_rounded_on_the_way_in(network, variables, images):
    """A running mean of 1000.5 is no bfloat16."""
    variables = jax.tree.map(lambda leaf: leaf, variables)
    mean = variables["batch_stats"]["BatchNorm_0"]["mean"]
    variables["batch_stats"]["BatchNorm_0"]["mean"] = mean + 1000.5
    asked = variables, images, jax.random.key(0)
    _, changed = precision.compute_in(Linen(network), "bfloat16").train_logits(*asked)
    _, exact = Linen(network).train_logits(*asked)
    np.testing.assert_allclose(
        changed["batch_stats"]["BatchNorm_0"]["mean"],
        exact["batch_stats"]["BatchNorm_0"]["mean"],
        atol=1e-2,
    )
