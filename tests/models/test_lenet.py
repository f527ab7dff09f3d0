import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.models import lenet, registry
from dfkd_jax.runtime import weights

SHAPE = (1, 28, 28, 1)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(SHAPE))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet5", 61_706), ("lenet5_half", 35_820), ("lenet5_half_dafl", 15_738)],
)
def test_parameter_counts_of_the_papers(name, parameters):
    assert weights.count(shapes(registry.create(name))) == parameters


def test_registry_knows_the_feature_layers_of_every_network():
    assert set(registry.NETWORKS) == set(registry.FEATURE_LAYERS)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (name, layer)
        for name in registry.NETWORKS
        for layer in registry.FEATURE_LAYERS[name]
    ],
)
def test_head_after_features_is_the_network(name, layer):
    network = registry.create(name, feature_layer=layer)
    images = jax.random.normal(jax.random.key(0), (2, *SHAPE[1:]))
    variables = network.init(jax.random.key(1), images)

    features = network.apply(variables, images, method="features")
    logits = network.apply(variables, features, method="head")

    assert features.shape == (2, variables["params"][layer]["bias"].size)
    np.testing.assert_array_equal(logits, network.apply(variables, images))


def test_features_are_pre_activations():
    """Both signs occur, and what follows applies the ReLU itself."""
    network = registry.create("lenet5_half", feature_layer="dense_2")
    images = jax.random.normal(jax.random.key(0), (4, *SHAPE[1:]))
    variables = network.init(jax.random.key(1), images)
    output = variables["params"]["output"]

    features = np.asarray(network.apply(variables, images, method="features"))
    by_hand = np.maximum(features, 0) @ np.asarray(output["kernel"]) + output["bias"]

    assert features.min() < 0 < features.max()
    np.testing.assert_allclose(network.apply(variables, images), by_hand, atol=1e-5)


@pytest.mark.parametrize("name", registry.NETWORKS)
def test_feature_layers_are_layers_in_order(name):
    assert registry.FEATURE_LAYERS[name] == lenet.DENSE_LAYERS
    assert set(registry.FEATURE_LAYERS[name]) < set(
        shapes(registry.create(name))["params"]
    )


def test_overrides_replace_fields():
    network = registry.create("lenet5_half", num_classes=7)
    assert shapes(network)["params"]["output"]["bias"].shape == (7,)


def test_training_does_not_change_the_network():
    network = registry.create("lenet5_half")
    images = jax.random.normal(jax.random.key(0), SHAPE)
    variables = network.init(jax.random.key(1), images)
    np.testing.assert_array_equal(
        network.apply(variables, images, train=True), network.apply(variables, images)
    )
