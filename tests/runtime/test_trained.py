"""One value: what it answers of pixels, how devices take it, what it says of itself."""

import described
import jax
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import parallel
from dfkd_jax.runtime.trained import TrainedNetwork

SHAPE = (4, 4, 2)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


class Net(nn.Module):
    sizes: list  # No hash.

    @nn.compact
    def __call__(self, images):
        hidden = images.reshape(images.shape[0], -1)
        for size in self.sizes:
            hidden = nn.relu(nn.Dense(size)(hidden))
        return nn.Dense(3, name="output")(hidden)


@pytest.fixture(scope="module")
def network():
    module = Net([6])
    variables = module.init(jax.random.key(0), np.zeros((1, *SHAPE), np.float32))
    variables = jax.tree.map(np.asarray, variables)
    return described.network(
        module, variables, SHAPE, num_classes=3, mean=(0.1, 0.5), std=(0.2, 0.4)
    )


def test_pixels_are_normalized_once_and_for_all(network):
    images = network.normalize(PIXELS)
    expected = (PIXELS / 255 - [0.1, 0.5]) / [0.2, 0.4]
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
    assert images.dtype == np.float32
    traced = jax.jit(network.normalize)(PIXELS)
    np.testing.assert_allclose(traced, images, rtol=1e-6, atol=1e-6)
    pixels = network.description.denormalize(images)
    np.testing.assert_allclose(pixels, PIXELS / 255, atol=1e-6)


def test_answers_of_pixels(network):
    logits = np.asarray(network.logits(network.normalize(PIXELS)), np.float64)
    odds = np.exp(logits)
    found = network.predict_proba(PIXELS)
    np.testing.assert_allclose(found, odds / odds.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(network.predict(PIXELS), logits.argmax(1))
    as_floats = (PIXELS / 255).astype(np.float32)
    np.testing.assert_allclose(network.predict_proba(as_floats), found, atol=1e-6)
    with pytest.raises(CheckpointError, match="255"):
        network.predict(PIXELS.astype(np.float32))


def test_head_of_features_is_the_network(network):
    images = network.normalize(PIXELS)
    for layer in network.layers():
        features = network.features(images, layer=layer)
        np.testing.assert_allclose(
            network.head(features, layer=layer), network.logits(images), atol=1e-5
        )


def test_kernels_and_biases_are_those_that_it_was_given(network):
    for name in network.layers():
        given = network.variables["params"][name]
        np.testing.assert_array_equal(network.kernel(name), given["kernel"])
        np.testing.assert_array_equal(network.bias(name), given["bias"])


def test_steps_and_devices_take_it_whole(network):
    there = parallel.replicate(network)
    assert type(there) is TrainedNetwork
    assert there.model == network.model
    assert there.description == network.description
    asked = jax.jit(lambda network, images: network.logits(images))
    images = network.normalize(PIXELS)
    np.testing.assert_allclose(asked(there, images), network.logits(images), atol=1e-6)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, network)
    assert doubled.sha256 != network.sha256


def test_a_few_lines_say_what_it_is(network):
    lines = repr(network).splitlines()
    assert lines[0] == "net: 219 parameters"
    assert "4 × 4 × 2" in lines[1]
    assert lines[2] == "  3 classes; layers: Dense_0, output"
