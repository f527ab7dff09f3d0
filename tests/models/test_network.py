import custom_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.errors import CheckpointError, ConfigError
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen, penultimate
from dfkd_jax.runtime import admission, parallel

SHAPE = (8, 6, 2)
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
NETS = {
    "SmallCnn": custom_nets.SmallCnn(),
    "AllConvolutional": custom_nets.AllConvolutional(),
    "Shared": custom_nets.Shared(),
    "LeNet5": registry.create("lenet5"),
}


def lookup(tree, name):
    for part in name.split("/"):
        tree = tree[part]
    return tree


def case(name):
    """Module, images and variables with BatchNorm statistics that say something."""
    module = NETS[name]
    images = np.zeros((2, 28, 28, 1), np.float32) if name == "LeNet5" else IMAGES
    images = images + np.random.default_rng(1).normal(size=images.shape)
    images = jnp.asarray(images, jnp.float32)
    variables = jax.jit(lambda key: Linen(module).init(key, images.shape[1:]))(KEY)
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


def test_a_trace_under_one_pmap_is_none_of_another():
    """As where a batch of the student is as large as one of pseudo samples."""
    module, images, variables = case("LeNet5")
    model = Linen(module)

    def apart(state, variables, images, key):
        return state, model.logits(variables, images)

    def together(state, variables, images, key):
        return state, parallel.mean(model.logits(variables, images).mean(0))

    count = parallel.device_count()
    batch = parallel.split(np.repeat(np.asarray(images), count, 0))
    constants, key = parallel.replicate((variables, KEY))
    each = parallel.put_split(np.zeros(count))
    logits = parallel.batch_parallel(apart)(each, constants, batch, key)[1]
    whole = parallel.replicate(jnp.zeros(()))
    mean = parallel.data_parallel(together)(whole, constants, batch, key)[1]
    found = np.asarray(logits)
    assert found.std() > 0
    np.testing.assert_allclose(mean, found.mean((0, 1)), 1e-4, 1e-5)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("SmallCnn", ["conv", "hidden", "logits"]),
        (
            "AllConvolutional",
            ["first/Conv_0", "second/Conv_0", "second/Conv_0/mean", "Dense_0"],
        ),
        ("Shared", ["first", "again", "last"]),
        ("LeNet5", ["conv_1", "conv_2", "dense_1", "dense_2", "output"]),
    ],
)
def test_layers_are_found_in_the_order_of_calls(name, found):
    module, images, variables = case(name)
    layers = Linen(module).graph(variables, images.shape[1:]).layers
    assert list(layers) == found
    for layer, facts in layers.items():
        kernel = lookup(variables["params"], facts.kernel_layer)["kernel"]
        assert facts.name == layer
        assert facts.kernel_shape == kernel.shape
        assert facts.num_units == kernel.shape[-1]


def test_what_follows_a_layer():
    module, images, variables = case("SmallCnn")
    layers = Linen(module).graph(variables, images.shape[1:]).layers
    assert layers["conv"].output_shape == (8, 6, 8)
    assert [layer.batch_norm for layer in layers.values()] == [
        "norm",
        "hidden_norm",
        None,
    ]
    # The dense layer after `conv` reads every place of the map apart.
    assert [layer.next_layer for layer in layers.values()] == [None, "logits", None]

    module, images, variables = case("AllConvolutional")
    layers = Linen(module).graph(variables, images.shape[1:]).layers
    assert layers["first/Conv_0"].batch_norm == "first/BatchNorm_0"
    assert layers["first/Conv_0"].next_layer == "second/Conv_0"


@pytest.mark.parametrize(
    ("name", "width"),
    # The last block of the second has a shortcut with a kernel of its own.
    [("resnet18", 512), ("resnet10_narrow", 128)],
)
def test_a_pooling_module_is_a_layer_with_the_kernel_of_what_it_pools(name, width):
    module = registry.create(name)
    shapes, _ = admission.trace(Linen(module), (32, 32, 3), network=name)
    layers = Linen(module).graph(shapes, (32, 32, 3)).layers
    *_, last_convolution, pool, output = layers.values()
    assert (pool.name, output.name) == ("pool", "output")
    assert pool.output_shape == (width,)
    assert pool.kernel_layer == last_convolution.name
    assert pool.kernel_shape == last_convolution.kernel_shape == (3, 3, width, width)
    assert pool.next_layer == last_convolution.next_layer == "output"
    assert last_convolution.batch_norm
    assert last_convolution.name.endswith("conv_2")
    assert penultimate(layers) == "pool"


def test_calls_are_counted():
    module, images, variables = case("Shared")
    layers = Linen(module).graph(variables, images.shape[1:]).layers
    assert [layer.calls for layer in layers.values()] == [1, 2, 1]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("SmallCnn", "hidden"),
        ("AllConvolutional", "second/Conv_0/mean"),
        ("Shared", "first"),
        ("LeNet5", "dense_2"),
    ],
)
def test_the_default_feature_layer_comes_before_the_last(name, layer):
    module, images, variables = case(name)
    assert penultimate(Linen(module).graph(variables, images.shape[1:]).layers) == layer


@pytest.mark.parametrize("name", NETS)
def test_head_after_features_is_the_network(name):
    module, images, variables = case(name)
    expected = Linen(module).logits(variables, images)
    for layer, facts in Linen(module).graph(variables, images.shape[1:]).layers.items():
        if facts.calls > 1:
            continue
        features, logits = jax.jit(
            lambda variables, images, layer=layer: Linen(module).features_and_logits(
                variables, images, layer=layer
            )
        )(variables, images)
        assert features.shape == (len(images), *facts.output_shape)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        again = jax.jit(
            lambda variables, features, layer=layer: Linen(module).head(
                variables,
                features,
                layer=layer,
                image_shape=images.shape[1:],
            )
        )(variables, features)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def test_features_are_pre_activations_and_the_head_goes_on_by_hand():
    module, images, variables = case("LeNet5")
    features, logits = Linen(module).features_and_logits(
        variables, images, layer="dense_1"
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
    logits, state = Linen(module).train_logits(variables, images, KEY)
    assert set(state) == {"batch_stats"}
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(state)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))
    assert np.abs(logits - Linen(module).logits(variables, images)).max() > 1e-2
    # An image's logits do not depend on its neighbors in evaluation mode.
    np.testing.assert_allclose(
        Linen(module).logits(variables, images)[:1],
        Linen(module).logits(variables, images[:1]),
        rtol=1e-4,
        atol=1e-5,
    )


class ManyNorms(nn.Module):
    """BatchNorms in every way they can be called."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = {"use_running_average": not train}
        x = nn.BatchNorm(axis=1, name="by_rows", **norm)(x=x)
        x = nn.remat(RematBlock)(name="remat")(x)
        x = nn.BatchNorm(axis=(1, 3), name="by_rows_and_channels", **norm)(x)
        twice = nn.BatchNorm(name="twice", **norm)
        x = twice(twice(x))
        x = nn.BatchNorm(use_bias=False, use_scale=False, name="plain", **norm)(x)
        x = nn.Dense(4, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(3, name="output")(nn.LayerNorm()(x))


class RematBlock(nn.Module):
    """A block whose activations are computed again for the gradient."""

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.BatchNorm(use_running_average=True, name="norm")(x))


def moments_of(module, variables, images, layer="hidden"):
    return jax.jit(
        lambda variables, images: Linen(module).features_logits_and_moments(
            variables, images, layer=layer
        )
    )(variables, images)


def by_shape(moments):
    return sorted(moments, key=lambda each: (each.mean.shape, each.mean.sum()))


def test_moments_of_batch_norms_however_they_are_called():
    module = ManyNorms()
    variables = Linen(module).init(KEY, SHAPE)
    variables["batch_stats"] = jax.tree.map(
        lambda leaf: jnp.linspace(0.5, 2, leaf.size).reshape(leaf.shape),
        variables["batch_stats"],
    )
    features, logits, moments = moments_of(module, variables, jnp.array(IMAGES))
    alone, expected = Linen(module).features_and_logits(
        variables, jnp.array(IMAGES), layer="hidden"
    )
    np.testing.assert_allclose(features, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)

    images = np.asarray(IMAGES, np.float64)

    def normalized(x, axes, epsilon=1e-5):
        """In evaluation mode, with the statistics above; and the moments of `x`."""
        kept = np.linspace(0.5, 2, int(np.prod([x.shape[a] for a in axes])))
        shape = [x.shape[a] if a in axes else 1 for a in range(4)]
        kept = kept.reshape(shape)
        others = tuple(a for a in range(4) if a not in axes)
        seen.append((x.mean(others), x.var(others), np.squeeze(kept)))
        return (x - kept) / np.sqrt(kept + epsilon)

    seen = []
    x = normalized(images, (1,))
    x = np.tanh(normalized(x, (3,)))
    x = normalized(x, (1, 3))
    for _ in range(3):  # `twice` twice, then `plain`.
        x = normalized(x, (3,))
    assert len(moments) == 6
    found = by_shape(moments)
    seen.sort(key=lambda each: (each[0].shape, each[0].sum()))
    for (mean, var, kept), each in zip(seen, found, strict=True):
        np.testing.assert_allclose(each.mean, mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(each.var, var, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(each.running_mean, kept, rtol=1e-6)
        np.testing.assert_allclose(each.running_var, kept, rtol=1e-6)


def test_moments_have_gradients_through_every_kind_of_module():
    module = ManyNorms()
    variables = Linen(module).init(KEY, SHAPE)

    def total(images):
        _, _, moments = Linen(module).features_logits_and_moments(
            variables, images, layer="hidden"
        )
        return sum(each.mean.sum() + each.var.sum() for each in moments)

    gradient = jax.jit(jax.grad(total))(jnp.array(IMAGES))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).min() > 0


@pytest.mark.parametrize("name", ["SmallCnn", "AllConvolutional"])
def test_moments_are_what_training_makes_statistics_of(name):
    """Of the first BatchNorm, which gets the same in training and in evaluation."""
    module, images, variables = case(name)
    layer = penultimate(Linen(module).graph(variables, images.shape[1:]).layers)
    _, _, moments = moments_of(module, variables, images, layer)
    _, state = Linen(module).train_logits(variables, images, KEY)
    first = {"SmallCnn": "norm", "AllConvolutional": "first/BatchNorm_0"}[name]
    before = lookup(variables["batch_stats"], first)
    after = lookup(state["batch_stats"], first)
    [found] = [
        each for each in moments if np.array_equal(each.running_mean, before["mean"])
    ]
    for mean, old, new in (
        (found.mean, before["mean"], after["mean"]),
        (found.var, before["var"], after["var"]),
    ):
        np.testing.assert_allclose(new, 0.99 * old + 0.01 * mean, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "has"), [("SmallCnn", True), ("Shared", False), ("LeNet5", False)]
)
def test_whether_there_is_a_batch_norm(name, has):
    module, images, variables = case(name)
    assert Linen(module).graph(variables, images.shape[1:]).has_batch_norm == has


class NormOfVectors(nn.Module):
    """A BatchNorm after a dense layer alone."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


def test_batch_norms_of_vectors_do_not_count():
    """What dropout did to their statistics, no image can do."""
    variables = Linen(NormOfVectors()).init(KEY, SHAPE)
    assert not Linen(NormOfVectors()).graph(variables, SHAPE).has_batch_norm
    _, _, moments = moments_of(NormOfVectors(), variables, jnp.array(IMAGES))
    assert moments == []


class Scanned(nn.Module):
    """A BatchNorm in a loop."""

    @nn.compact
    def __call__(self, x):
        loop = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = loop(RematBlock(name="block"), x, None)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_batch_norms_that_cannot_be_seen_are_not_claimed():
    """A prior without effect would be worse than one that is refused."""
    variables = Linen(Scanned()).init(KEY, SHAPE)
    assert variables["batch_stats"]["block"]["norm"]["mean"].shape == (2, 2)
    assert not Linen(Scanned()).graph(variables, SHAPE).has_batch_norm


def test_dropout_follows_the_key():
    module, images, variables = case("SmallCnn")
    one, two, three = (
        Linen(module).train_logits(variables, images, jax.random.key(seed))[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).max() > 1e-3


def test_networks_without_a_word_of_training():
    module, images, variables = case("Shared")
    logits, state = Linen(module).train_logits(variables, images, KEY)
    assert state == {}
    np.testing.assert_allclose(
        logits, Linen(module).logits(variables, images), rtol=1e-6
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
        ("custom_nets:SmalCnn", {}, ["no network of linen", 'mean "SmallCnn"?']),
        ("custom_nets:NotLinen", {}, ["no network of linen", "SmallCnn"]),
        ("custom_nets:SmallCnn", {"widht": 2}, ["no argument 'widht'", '"width"?']),
        ("custom_nets:Stage", {}, ["custom_nets:Stage", "width"]),
    ],
)
def test_networks_that_cannot_be_created(name, arguments, parts):
    with pytest.raises(ConfigError) as error:
        registry.create(name, num_classes=10, arguments=arguments)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError"),
        ("import no_such_package", "No module named"),
        ("raise Exception('a\\nb' * 500)", "Exception: a b"),
        ("\0", "null bytes"),
    ],
)
def test_a_module_that_fails_is_no_end_of_the_program(
    tmp_path, monkeypatch, code, part
):
    (tmp_path / "net_that_fails.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        registry.create("net_that_fails:Net")
    assert part in str(error.value)
    assert "cannot be imported" in str(error.value)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_a_network_that_ends_the_program():
    class Ends(custom_nets.Toy):
        def setup(self):
            raise SystemExit(0)

    with pytest.raises(CheckpointError, match="cannot be called"):
        admission.trace(Linen(Ends()), SHAPE, network="ends")


@pytest.mark.parametrize(
    ("step", "remedy"),
    [
        (lambda images: np.asarray(images), "into numbers of Python or NumPy"),
        (lambda images: images if images.sum() > 0 else -images, "Python or NumPy"),
        (lambda images: images @ jnp.ones((784, 3)), "flatten its images first"),
    ],
)
def test_a_network_that_cannot_be_called_says_what_to_do(step, remedy):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(step(images).reshape(images.shape[0], -1))

    with pytest.raises(CheckpointError, match=remedy):
        admission.trace(Linen(Net()), SHAPE, network="net")
