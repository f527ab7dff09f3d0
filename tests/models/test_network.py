import custom_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.errors import ConfigError
from dfkd_jax.models import network, registry
from dfkd_jax.runtime import weights

SHAPE = (8, 6, 2)
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
NETS = {
    "SmallCnn": custom_nets.SmallCnn(),
    "AllConvolutional": custom_nets.AllConvolutional(),
    "Shared": custom_nets.Shared(),
    "LeNet5": registry.create("lenet5"),
}


def case(name):
    """Module, images and variables with BatchNorm statistics that say something."""
    module = NETS[name]
    images = np.zeros((2, 28, 28, 1), np.float32) if name == "LeNet5" else IMAGES
    images = images + np.random.default_rng(1).normal(size=images.shape)
    images = jnp.asarray(images, jnp.float32)
    variables = jax.jit(lambda key: network.init(module, key, images.shape[1:]))(KEY)
    random = np.random.default_rng(2)
    statistics = jax.tree.map(
        lambda leaf: random.uniform(0.5, 2, leaf.shape).astype(np.float32),
        variables.get("batch_stats", {}),
    )
    return (
        module,
        images,
        variables | ({"batch_stats": statistics} if statistics else {}),
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("SmallCnn", ["conv", "hidden", "logits"]),
        ("AllConvolutional", ["first/Conv_0", "second/Conv_0", "Dense_0"]),
        ("Shared", ["first", "again", "last"]),
        ("LeNet5", ["conv_1", "conv_2", "dense_1", "dense_2", "output"]),
    ],
)
def test_layers_are_found_in_the_order_of_calls(name, found):
    module, images, variables = case(name)
    layers = network.layers(module, variables, images.shape[1:])
    assert list(layers) == found
    for layer, facts in layers.items():
        kernel = network.lookup(variables["params"], layer)["kernel"]
        assert facts.name == layer
        assert facts.kernel_shape == kernel.shape
        assert facts.num_units == kernel.shape[-1]


def test_what_follows_a_layer():
    module, images, variables = case("SmallCnn")
    layers = network.layers(module, variables, images.shape[1:])
    assert layers["conv"].output_shape == (8, 6, 8)
    assert [layer.batch_norm for layer in layers.values()] == [
        "norm",
        "hidden_norm",
        None,
    ]
    # The dense layer after `conv` reads every place of the map apart.
    assert [layer.next_layer for layer in layers.values()] == [None, "logits", None]

    module, images, variables = case("AllConvolutional")
    layers = network.layers(module, variables, images.shape[1:])
    assert layers["first/Conv_0"].batch_norm == "first/BatchNorm_0"
    assert layers["first/Conv_0"].next_layer == "second/Conv_0"


def test_a_pooling_module_is_a_layer_with_the_kernel_of_what_it_pools():
    module = registry.create("resnet18")
    shapes, _ = weights.trace(module, (32, 32, 3), network="resnet18")
    layers = network.layers(module, shapes, (32, 32, 3))
    *_, last_convolution, pool, output = layers.values()
    assert (pool.name, output.name) == ("pool", "output")
    assert pool.output_shape == (512,)
    assert pool.kernel_layer == last_convolution.name
    assert pool.kernel_shape == last_convolution.kernel_shape == (3, 3, 512, 512)
    assert pool.next_layer == last_convolution.next_layer == "output"
    assert last_convolution.batch_norm
    assert network.penultimate(layers) == "pool"


def test_calls_are_counted():
    module, images, variables = case("Shared")
    layers = network.layers(module, variables, images.shape[1:])
    assert [layer.calls for layer in layers.values()] == [1, 2, 1]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("SmallCnn", "hidden"),
        ("AllConvolutional", "second/Conv_0"),
        ("Shared", "first"),
        ("LeNet5", "dense_2"),
    ],
)
def test_the_default_feature_layer_comes_before_the_last(name, layer):
    module, images, variables = case(name)
    assert (
        network.penultimate(network.layers(module, variables, images.shape[1:]))
        == layer
    )


@pytest.mark.parametrize("name", NETS)
def test_head_after_features_is_the_network(name):
    module, images, variables = case(name)
    expected = network.logits(module, variables, images)
    for layer, facts in network.layers(module, variables, images.shape[1:]).items():
        if facts.calls > 1:
            continue
        features, logits = jax.jit(
            lambda variables, images, layer=layer: network.features_and_logits(
                module, variables, images, layer=layer
            )
        )(variables, images)
        assert features.shape == (len(images), *facts.output_shape)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        again = jax.jit(
            lambda variables, features, layer=layer: network.head(
                module,
                variables,
                features,
                layer=layer,
                image_shape=images.shape[1:],
            )
        )(variables, features)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def test_features_are_pre_activations_and_the_head_goes_on_by_hand():
    module, images, variables = case("LeNet5")
    features, logits = network.features_and_logits(
        module, variables, images, layer="dense_1"
    )
    hidden = np.asarray(features)
    assert hidden.min() < 0 < hidden.max()
    for layer in ("dense_2", "output"):
        dense = jax.tree.map(np.asarray, variables["params"][layer])
        hidden = np.maximum(hidden, 0) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["SmallCnn", "AllConvolutional"])
def test_training_moves_statistics_and_evaluation_does_not(name):
    module, images, variables = case(name)
    logits, state = network.train_logits(module, variables, images, KEY)
    assert set(state) == {"batch_stats"}
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(state)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))
    assert np.abs(logits - network.logits(module, variables, images)).max() > 1e-2
    # An image's logits do not depend on its neighbours in evaluation mode.
    np.testing.assert_allclose(
        network.logits(module, variables, images)[:1],
        network.logits(module, variables, images[:1]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_dropout_follows_the_key():
    module, images, variables = case("SmallCnn")
    one, two, three = (
        network.train_logits(module, variables, images, jax.random.key(seed))[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).max() > 1e-3


def test_networks_without_a_word_of_training():
    module, images, variables = case("Shared")
    logits, state = network.train_logits(module, variables, images, KEY)
    assert state == {}
    np.testing.assert_allclose(
        logits, network.logits(module, variables, images), rtol=1e-6
    )


def test_anybodys_class_is_created_with_its_arguments():
    module = registry.create(
        "custom_nets:SmallCnn", num_classes=4, arguments={"width": 3}
    )
    assert (module.width, module.num_classes) == (3, 4)
    module = registry.create("custom_nets:Stage", num_classes=4, arguments={"width": 3})
    assert module.width == 3


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("lenet", {}, ["'lenet' is not known", 'Did you mean "lenet5"?']),
        ("no_such_package:Net", {}, ["cannot be imported", "package.module:Class"]),
        ("custom_nets:SmalCnn", {}, ["no linen module", 'mean "SmallCnn"?']),
        ("custom_nets:NotLinen", {}, ["no linen module", "SmallCnn"]),
        ("custom_nets:SmallCnn", {"widht": 2}, ["no argument 'widht'", '"width"?']),
        ("custom_nets:Stage", {}, ["custom_nets:Stage", "width"]),
    ],
)
def test_networks_that_cannot_be_created(name, arguments, parts):
    with pytest.raises(ConfigError) as error:
        registry.create(name, num_classes=10, arguments=arguments)
    for part in parts:
        assert part in str(error.value)


def test_lookup_goes_down_the_tree():
    tree = {"a": {"b": {"kernel": jnp.ones(2)}}}
    assert list(network.lookup(tree, "a/b")) == ["kernel"]
    assert network.lookup(tree, "a/c") == {}
    assert network.lookup(tree, "a/b/kernel") == {}
