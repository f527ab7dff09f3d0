import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.models import lenet, registry
from dfkd_jax.runtime import weights

SHAPE = (1, 28, 28, 1)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(SHAPE))


def random_case(name):
    """Images, and variables as NumPy arrays: quicker than to initialise them."""
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: random.normal(0, leaf.size**-0.25, leaf.shape).astype(np.float32),
        shapes(registry.create(name)),
    )
    return random.normal(size=(2, *SHAPE[1:])).astype(np.float32), variables


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet5", 61_706), ("lenet5_half", 35_820), ("lenet5_half_dafl", 15_738)],
)
def test_parameter_counts_of_the_papers(name, parameters):
    assert weights.count(shapes(registry.create(name))) == parameters


def test_registry_knows_the_feature_layers_of_every_network():
    assert set(registry.NETWORKS) == set(registry.FEATURE_LAYERS)


@pytest.mark.parametrize("name", registry.NETWORKS)
def test_head_after_features_is_the_network(name):
    images, variables = random_case(name)

    @jax.jit
    def outputs(variables, images):
        found = {}
        for layer in registry.FEATURE_LAYERS[name]:
            network = registry.create(name, feature_layer=layer)
            features = network.apply(variables, images, method="features")
            found[layer] = (
                features,
                network.apply(variables, features, method="head"),
                network.apply(variables, images),
            )
        return found

    for layer, (features, logits, whole) in outputs(variables, images).items():
        assert features.shape == (2, variables["params"][layer]["bias"].size)
        np.testing.assert_allclose(logits, whole, rtol=1e-6, atol=1e-6)
        # The rest of the network by hand: features are pre-activations.
        hidden = np.asarray(features)
        for later in lenet.DENSE_LAYERS[lenet.DENSE_LAYERS.index(layer) + 1 :]:
            assert hidden.min() < 0 < hidden.max()
            weights_of = variables["params"][later]
            hidden = np.maximum(hidden, 0) @ weights_of["kernel"] + weights_of["bias"]
        np.testing.assert_allclose(whole, hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", registry.NETWORKS)
def test_feature_layers_are_layers_in_order(name):
    assert registry.FEATURE_LAYERS[name] == lenet.DENSE_LAYERS
    assert set(registry.FEATURE_LAYERS[name]) < set(
        shapes(registry.create(name))["params"]
    )


def test_overrides_replace_fields():
    network = registry.create("lenet5_half", num_classes=7)
    assert shapes(network)["params"]["output"]["bias"].shape == (7,)
