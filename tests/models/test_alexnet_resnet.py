"""AlexNets and ResNets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax import api
from dfkd_jax.config import TargetsConfig
from dfkd_jax.methods import soft_targets
from dfkd_jax.models import alexnet, registry, resnet
from dfkd_jax.runtime import weights

SHAPE = (32, 32, 3)
NETWORKS = [name for name in registry.NETWORKS if not name.startswith("lenet5")]
# The classes, small enough to be differentiated in a second.
SMALL = {
    "alexnet": alexnet.AlexNet((2, 4, 4, 4, 4), (8, 6)),
    "alexnet_wang": alexnet.AlexNetWang((2, 4, 4, 4, 4), (8, 6)),
    "resnet": resnet.ResNet((1, 2), (4, 8)),
}


def shapes(network):
    images = jnp.zeros((1, *SHAPE))
    return jax.eval_shape(network.init, jax.random.key(0), images)


def random_images(count):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def random_variables(network):
    """As NumPy arrays: quicker than to initialize them. Variances are above 0."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.uniform(0.1, 0.5, leaf.shape).astype(np.float32),
        shapes(network),
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # ZSKD's and ZSDB3KD's, with batch normalization's two tensors a layer.
        ("alexnet", 1_659_178),
        ("alexnet_half", 417_434),
        ("alexnet_wang", 23_290_954),
        ("alexnet_wang_half", 5_840_426),
        # What PyTorch counts for the usual CIFAR variants (test_pytorch.py).
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        # Ours alone.
        ("resnet18_narrow", 701_466),
        ("resnet10_narrow", 308_826),
    ],
)
def test_parameter_counts(name, parameters):
    assert weights.count(shapes(registry.create(name))) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_feature_layers(name):
    network = registry.create(name, num_classes=7)
    variables = shapes(network)

    def apply(variables, images):
        return network.apply(variables, images, capture_intermediates=True)

    logits, captured = jax.eval_shape(apply, variables, jnp.zeros((2, *SHAPE)))
    assert logits.shape == (2, 7)
    layers = ("pool",) if name.startswith("resnet") else ("dense_1", "dense_2")
    for layer in layers:
        (features,) = captured["intermediates"][layer]["__call__"]
        assert features.ndim == 2
        if layer == "pool":
            assert features.shape == (2, 128 if "narrow" in name else 512)
    assert set(variables["batch_stats"]["bn_1"]) == {"mean", "var"}


@pytest.mark.parametrize("name", ["alexnet", "alexnet_wang"])
def test_what_the_first_dense_layer_sees(name):
    half = shapes(registry.create(f"{name}_half"))["params"]["dense_1"]["kernel"]
    whole = shapes(registry.create(name))["params"]["dense_1"]["kernel"]
    expected = {"alexnet": (1152, 576), "alexnet_wang": (1024, 512)}
    assert (whole.shape[0], half.shape[0]) == expected[name]


@pytest.mark.full
@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
def test_training_and_evaluation_differ(network):
    variables = random_variables(network)
    images = random_images(4)

    @jax.jit
    def both(variables, images, key):
        """Logits and statistics in training; the same in evaluation."""
        trained = network.apply(
            variables, images, train=True, mutable="batch_stats", rngs={"dropout": key}
        )
        return trained, network.apply(variables, images, mutable="batch_stats")

    def outputs(images, seed):
        return both(variables, images, jax.random.key(seed))

    (logits, moved), (quiet, kept) = outputs(images, 1)
    before = variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], before)
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved["batch_stats"], before)
    assert min(jax.tree.leaves(moves)) > 0
    assert np.abs(logits - quiet).max() > 1e-3

    # Dropout, where there is any, follows its key in training alone.
    (again, _), (quiet_again, _) = outputs(images, 2)
    assert (np.abs(again - logits).max() > 1e-3) == hasattr(network, "dropout_rate")
    np.testing.assert_array_equal(quiet_again, quiet)

    # Other images of a batch, here black ones, count in training alone.
    images[1:] = 0
    (beside_others, _), (alone, _) = outputs(images, 1)
    assert np.abs(beside_others[0] - logits[0]).max() > 1e-3
    np.testing.assert_array_equal(alone[0], quiet[0])


@pytest.mark.full
@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
def test_gradients_are_finite_and_reach_every_tensor(network):
    variables = random_variables(network)

    @jax.jit
    def gradients(variables, images):
        def loss(params, images):
            logits = network.apply(variables | {"params": params}, images)
            return jnp.sum(jnp.sin(logits))

        return jax.grad(loss, argnums=(0, 1))(variables["params"], images)

    for leaf in jax.tree.leaves(gradients(variables, random_images(2))):
        assert np.all(np.isfinite(leaf))
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize(
    "window", ["flatten", pytest.param("average", marks=pytest.mark.full)]
)
def test_soft_labels_from_the_pooled_features_of_a_resnet(window):
    """Their log-odds have the covariance that kernels of the last convolution give."""
    module = SMALL["resnet"]
    images = jnp.zeros((1, *SHAPE))
    variables = jax.jit(module.init)(jax.random.key(0), images)
    teacher = api.from_linen(module, variables, image_shape=SHAPE, mean=0.5, std=0.25)
    teacher = dataclasses.replace(teacher, variables=variables)  # On the devices.
    targets = TargetsConfig(sigma=2.0, candidates=1, window=window)
    layer = soft_targets.find_feature_layer(targets, teacher)
    assert layer.name == "pool"
    draw = soft_targets.make_targets(targets, teacher, layer)
    log_labels = np.log(draw(jax.random.split(jax.random.key(1), 20_000)))

    kernel = variables["params"]["stage_2_block_2"]["conv_2"]["kernel"]
    if window == "average":
        kernel = kernel.mean((0, 1))
    vectors = kernel.reshape(-1, 8).T
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    output = variables["params"]["output"]["kernel"]
    odds = output[:, 1:] - output[:, :1]
    expected = odds.T @ (2 * vectors @ vectors.T) @ odds
    found = np.cov((log_labels[:, 1:] - log_labels[:, :1]).T)
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.max())


@pytest.mark.full
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_resnets_take_other_image_sizes(size):
    images = jnp.zeros((1, *size, 1))
    network = SMALL["resnet"]
    logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (1, 10)
