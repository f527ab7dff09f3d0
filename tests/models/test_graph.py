"""Networks of several frameworks, looked into by what they compute."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from dfkd_jax.models import fast, graph, jaxprs

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (3, 8, 8, 2))


class Cnn(nn.Module):
    """Convolutions, max pooling, dense layers."""

    @nn.compact
    def __call__(self, images):
        hidden = images
        for place, width in enumerate((4, 6, 9), 1):
            hidden = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{place}")(hidden))
            if place < 3:
                hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = nn.relu(nn.Dense(5, name="dense")(hidden))
        return nn.Dense(4, name="output")(hidden)


class Tanh(nn.Module):
    """Average pooling, tanh, and a log-softmax at the end."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.tanh(nn.Conv(3, (3, 3), use_bias=False, name="conv")(images))
        hidden = nn.avg_pool(hidden, (2, 2), (2, 2)).reshape(images.shape[0], -1)
        hidden = nn.tanh(nn.Dense(5, name="dense")(hidden))
        return nn.log_softmax(nn.Dense(4, name="output")(hidden))


class Residual(nn.Module):
    """BatchNorm, and a way round two convolutions."""

    @nn.compact
    def __call__(self, images):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        hidden = nn.Conv(4, (3, 3), use_bias=False, name="stem")(images)
        hidden = nn.relu(norm(name="norm")(hidden))
        inside = nn.Conv(4, (3, 3), use_bias=False, name="first")(hidden)
        inside = nn.relu(norm(name="first_norm")(inside))
        inside = nn.Conv(4, (3, 3), use_bias=False, name="second")(inside)
        hidden = nn.relu(hidden + norm(name="second_norm")(inside))
        return nn.Dense(4, name="output")(hidden.mean((1, 2)))


class Mixer(nn.Module):
    """LayerNorm, GELU, depthwise convolutions, strided patches."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.Conv(6, (2, 2), (2, 2), name="patches")(images)
        mixed = nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(hidden)
        hidden = nn.LayerNorm()(hidden + nn.gelu(mixed))
        hidden = nn.gelu(nn.Dense(7, name="channels")(hidden))
        return nn.Dense(4, name="output")(hidden.mean((1, 2)))


class Shared(nn.Module):
    """A layer that is called twice."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.Dense(5, name="first")(images.reshape(images.shape[0], -1))
        again = nn.Dense(5, name="again")
        return nn.Dense(4, name="output")(nn.relu(again(nn.relu(again(hidden)))))


class Scanned(nn.Module):
    """Layers whose kernels lie in one leaf, in a loop."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.Dense(5, name="first")(images.reshape(images.shape[0], -1))

        def layer(dense, hidden, _):
            return nn.relu(dense(hidden)), None

        loop = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        hidden, _ = loop(nn.Dense(5, name="loop"), hidden, None)
        return nn.Dense(4, name="output")(hidden)


class WeightNorm(nn.Module):
    """A kernel made of two leaves."""

    @nn.compact
    def __call__(self, images):
        dense = nn.WeightNorm(nn.Dense(5, name="dense"))
        hidden = nn.relu(dense(images.reshape(images.shape[0], -1)))
        return nn.Dense(4, name="output")(hidden)


class Remat(nn.Module):
    """Calls inside of calls."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.remat(nn.Conv)(3, (3, 3), name="conv")(images)
        hidden = jax.jit(jax.nn.silu)(hidden).reshape(images.shape[0], -1)
        return nn.Dense(4, name="output")(hidden)


def linen(module):
    variables = jax.jit(module.init)(KEY, IMAGES)
    return module.apply, with_statistics(variables)


def with_statistics(variables):
    """Running means and variances that say something."""
    keys = itertools.count()
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jax.random.uniform(
                jax.random.key(next(keys)), leaf.shape, minval=0.1, maxval=0.5
            )
            if "batch_stats" in jax.tree_util.keystr(path)
            else leaf
        ),
        variables,
    )


def plain():
    """A function of a list of arrays."""

    def function(params, images):
        kernel, bias, last = params
        hidden = jnp.einsum("nhwc,hwcu->nu", images, kernel) + bias[None]
        return jnp.maximum(hidden, 0) @ last.T

    shapes = (8, 8, 2, 5), (5,), (4, 5)
    return function, [jax.random.normal(KEY, shape) for shape in shapes]


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs, use_running_average=True)
        self.output = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.conv(images)))
        hidden = nnx.max_pool(hidden, (2, 2), (2, 2))
        return self.output(hidden.reshape(hidden.shape[0], -1))


def nnx_network():
    definition, state = nnx.split(NnxNetwork(nnx.Rngs(0)))

    def function(values, images):
        kept = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(kept, values)
        return nnx.merge(definition, kept)(images)

    return function, nnx.to_pure_dict(state)


def equinox_network():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(KEY)
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, padding=1, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(64, 4, key=second),
        ]
    )
    params, rest = eqx.partition(network, eqx.is_inexact_array)

    def function(params, images):
        return jax.vmap(eqx.combine(params, rest))(images.transpose(0, 3, 1, 2))

    return function, params


def keras_network(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="output"),
        ],
        name="net",
    )
    groups = network.trainable_variables, network.non_trainable_variables

    def function(values, images):
        given = ([values[one.path] for one in group] for group in groups)
        return network.stateless_call(*given, images, training=False)[0]

    return function, {one.path: one.value for group in groups for one in group}


def torch_network():
    torch, torchax = map(pytest.importorskip, ("torch", "torchax"))
    layers = torch.nn
    network = layers.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Linear(64, 4),
        layers.LogSoftmax(1),
    ).eval()
    state, function = torchax.extract_jax(network)
    return (
        lambda state, images: function(state, (images.transpose(0, 3, 1, 2),)),
        {name: jnp.asarray(value) for name, value in state.items()},
    )


NETWORKS = {
    "linen CNN": (
        lambda: linen(Cnn()),
        ["conv_1", "conv_2", "conv_3", "dense", "output"],
        ["relu", "relu", "relu", "relu", ""],
    ),
    "linen tanh": (
        lambda: linen(Tanh()),
        ["conv", "dense", "output"],
        ["tanh", "tanh", ""],
    ),
    "linen ResNet": (
        lambda: linen(Residual()),
        ["stem", "first", "second", "second/mean", "output"],
        ["relu", "relu", "", "", ""],
    ),
    "linen mixer": (
        lambda: linen(Mixer()),
        ["patches", "depthwise", "channels", "channels/mean", "output"],
        None,
    ),
    "linen shared": (
        lambda: linen(Shared()),
        ["first", "again", "output"],
        ["", "relu", ""],
    ),
    "linen scanned": (lambda: linen(Scanned()), ["first", "output"], None),
    "linen weight norm": (
        lambda: linen(WeightNorm()),
        ["dense", "output"],
        ["relu", ""],
    ),
    "linen remat": (lambda: linen(Remat()), ["conv", "output"], None),
    "function": (plain, ["0", "2"], ["max", ""]),
    "NNX": (nnx_network, ["conv", "output"], ["relu", ""]),
    "Equinox": (equinox_network, ["layers/0", "layers/4"], ["relu", ""]),
    "Keras": (keras_network, ["net/conv", "net/output"], ["relu", ""]),
    "PyTorch": (torch_network, ["0", "5"], ["relu", ""]),
}


@pytest.fixture
def case(request, monkeypatch):
    make = NETWORKS[request.param][0]
    if make is keras_network:
        make = functools.partial(make, monkeypatch)
    # Others' frameworks broadcast as they like.
    with jax.numpy_rank_promotion("allow"):
        function, variables = make()
        yield function, variables, graph.Graph(function, variables, IMAGES)


@pytest.mark.parametrize(
    ("case", "names", "activations"),
    [(name, *found) for name, (_, *found) in NETWORKS.items()],
    indirect=["case"],
    ids=NETWORKS,
)
def test_layers_features_head_and_kernels(case, names, activations):
    function, variables, network = case
    assert list(network.layers) == names
    if activations is not None:
        assert [one.activation for one in network.layers.values()] == activations
    wanted = [name for name, layer in network.layers.items() if layer.calls == 1]
    cuts = [name for name in wanted if network.layers[name].is_cut]

    @jax.jit
    def everything(variables, images):
        logits, features, _ = network.run(
            variables, images, wanted=wanted, plan=fast.plan
        )
        blank = jnp.zeros_like(images)
        heads = [
            network.run(variables, blank, given={name: one}, plan=fast.plan)[0]
            for name, one in zip(wanted, features, strict=True)
            if name in cuts
        ]
        kernels = [network.kernel(variables, name) for name in wanted]
        return function(variables, images), logits, features, heads, kernels

    expected, logits, features, heads, kernels = everything(variables, IMAGES)
    for found in (logits, *heads):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for name, one, kernel in zip(wanted, features, kernels, strict=True):
        layer = network.layers[name]
        assert one.shape == (len(IMAGES), *layer.output_shape)
        assert kernel.shape == layer.kernel_shape
        assert layer.num_units == kernel.shape[-1]
        assert one.ndim == 2 or np.std(one, axis=(0, 1, 2)).min() > 0


@pytest.mark.parametrize("batch", [1, 2, 1_009])
@pytest.mark.parametrize("case", ["linen ResNet", "function", "Equinox"], indirect=True)
def test_layers_carry_over_between_numbers_of_images(case, batch):
    """Also where there are as many images as channels, or one."""
    function, variables, network = case
    images = jax.ShapeDtypeStruct((batch, *IMAGES.shape[1:]), jnp.float32)
    assert graph.Graph(function, variables, images).layers == network.layers


def traced(name, **keywords):
    function, variables = NETWORKS[name][0]()
    return graph.Graph(function, variables, IMAGES, **keywords)


def test_a_skip_connection_goes_round_layers():
    layers = traced("linen ResNet").layers
    assert {name: layer.is_cut for name, layer in layers.items()} == {
        "stem": True,
        "first": False,
        "second": False,
        "second/mean": True,
        "output": True,
    }
    assert all(layer.is_cut for layer in traced("linen CNN").layers.values())


def test_what_cannot_be_looked_into_is_told():
    assert traced("linen scanned").hidden == (
        "params/loop/bias",
        "params/loop/kernel",
    )
    assert traced("linen CNN").hidden == ()


def test_a_shared_layer_is_counted_and_a_made_kernel_has_its_leaves():
    assert [layer.calls for layer in traced("linen shared").layers.values()] == [
        1,
        2,
        1,
    ]
    dense = traced("linen weight norm").layers["dense"]
    assert len(dense.leaves) == 2
    assert "params/dense/kernel" in dense.leaves


@pytest.mark.parametrize(
    ("name", "ending"),
    [("linen CNN", ""), ("linen tanh", "log_softmax"), ("function", "")],
)
def test_a_softmax_at_the_end_is_seen(name, ending):
    assert traced(name).ending == ending


def test_a_softmax_at_the_end_is_seen_whoever_wrote_it():
    def function(kernel, images):
        powers = jnp.exp(images.reshape(images.shape[0], -1) @ kernel)
        return powers / powers.sum(1, keepdims=True)

    assert graph.Graph(function, jnp.ones((128, 4)), IMAGES).ending == "softmax"


@pytest.mark.parametrize(
    ("case", "norms"),
    [
        (
            "linen ResNet",
            {"stem": "norm", "first": "first_norm", "second": "second_norm"},
        ),
        ("NNX", {"conv": "norm"}),
        ("Keras", {"net/conv": "net/norm"}),
        ("PyTorch", {"0": "1"}),
    ],
    indirect=["case"],
)
def test_batch_norms_and_their_moments(case, norms):
    _, variables, network = case
    assert network.has_batch_norm
    for name, norm in norms.items():
        assert network.layers[name].batch_norm == norm
    _, features, moments = network.run(
        variables, IMAGES, wanted=list(norms), moments=True
    )
    assert len(moments) == len(norms)
    paths = {
        graph.path_of(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    for norm, one, found in zip(norms.values(), features, moments, strict=True):
        np.testing.assert_allclose(
            found.mean, one.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(found.var, one.var((0, 1, 2)), rtol=1e-4)
        own = [leaf for path, leaf in paths.items() if f"{norm}" in path]
        for value in (found.running_mean, found.running_var):
            assert any(
                leaf.shape == value.shape and np.array_equal(leaf, value)
                for leaf in own
            )


@pytest.mark.parametrize("sign", [0, 1, -1])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_a_batch_norm_of_any_axis_by_hand(channels, sign):
    """Where every axis is as long; the mean is taken off after the scale or before it.

    Also behind a layer's bias, which is no mean.
    """

    def function(variables, images):
        if sign:
            images = images + variables["first"][None, :, None, None]
        scale = jax.lax.rsqrt(variables["var"] + 1e-3) * variables["scale"]
        shift = variables["bias"] - variables["mean"] * scale
        if sign < 0:
            shift, mean = variables["bias"], -variables["mean"]
            images = images + mean[None, :, None, None]
        hidden = images * scale[None, :, None, None] + shift[None, :, None, None]
        return hidden.sum((2, 3))

    keys = jax.random.split(KEY, 5)
    names = "var", "scale", "bias", "mean", "first"
    variables = {
        name: jax.random.uniform(key, (channels,))
        for name, key in zip(names, keys, strict=True)
    }
    images = jax.random.normal(KEY, (8, channels, 8, 8))
    network = graph.Graph(function, variables, images)
    _, _, (moments,) = network.run(variables, images, moments=True)
    images += abs(sign) * variables["first"][None, :, None, None]
    np.testing.assert_allclose(
        moments.mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(moments.running_mean, variables["mean"])
    np.testing.assert_array_equal(moments.running_var, variables["var"])


def test_gradients_are_those_of_the_network():
    """Also where an activation has a gradient of its own, as ReLU has at 0."""
    function, variables = NETWORKS["linen CNN"][0]()
    network = graph.Graph(function, variables, IMAGES)
    images = IMAGES.at[0].set(0)

    @jax.jit
    def both(*arguments):
        def loss(one, *arguments):
            return jnp.sum(jnp.sin(one(*arguments)))

        return [
            jax.grad(functools.partial(loss, one), (0, 1))(*arguments)
            for one in (function, lambda *arguments: network.run(*arguments)[0])
        ]

    expected, found = both(variables, images)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def test_what_is_of_constants_alone_is_computed_ahead_of_a_loop():
    key, kernel = jax.random.key(1), jax.random.normal(KEY, (5, 5))
    state = jax.random.normal(jax.random.key(2), (7, 5))

    def step(constants, state):
        key, kernel = constants
        spread = jnp.broadcast_to(kernel.sum(0), state.shape)
        noise = jax.random.normal(jax.random.fold_in(key, state[0, 0].astype(int)))
        return jnp.tanh(state @ jnp.flip(kernel, 0).T + spread) + noise, state.sum()

    ready = jaxprs.ahead(step, (key, kernel), state)
    for got, expected in zip(ready(state), step((key, kernel), state), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    left = [eqn.primitive.name for eqn in jax.make_jaxpr(ready)(state).eqns]
    assert "rev" not in left
    assert left.count("reduce_sum") == 1  # The state's; the kernel's is done,
    assert "broadcast_in_dim" in left  # and not kept once a row.

    def looped(body):
        return jax.jit(lambda state: jax.lax.scan(body, state, length=3))(state)

    for got, expected in zip(
        looped(lambda state, _: ready(state)),
        looped(lambda state, _: step((key, kernel), state)),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_functions_of_more_than_images_keep_what_they_return():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, images):
            hidden = nn.BatchNorm(use_running_average=False)(images)
            hidden = nn.Dropout(0.5, deterministic=False)(
                hidden.reshape(images.shape[0], -1)
            )
            return nn.Dense(4, name="output")(hidden)

    module = Dropped()
    variables = module.init({"params": KEY, "dropout": KEY}, IMAGES)

    def function(variables, images, key):
        return module.apply(
            variables, images, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    network = graph.Graph(function, variables, IMAGES, KEY)
    (logits, state), (features,), _ = network.run(
        variables, IMAGES, KEY, wanted=["output"]
    )
    expected, expected_state = function(variables, IMAGES, KEY)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)


def test_what_a_function_closes_over_is_not_kept():
    """A value under transformation must not outlive it."""

    def loss(scale, images):
        def function(kernel, images):
            return images.reshape(images.shape[0], -1) @ kernel * scale

        kernel = jnp.ones((128, 4))
        return graph.Graph(function, kernel, images).run(kernel, images)[0].sum()

    for scale in (1.0, 2.0):
        gradient = jax.jit(jax.grad(loss))(scale, IMAGES)
        np.testing.assert_allclose(gradient, 4 * IMAGES.sum(), rtol=1e-4)


def test_vmap_over_variables():
    function, variables = NETWORKS["function"][0]()
    network = graph.Graph(function, variables, IMAGES)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
    found = jax.vmap(lambda variables: network.run(variables, IMAGES)[0])(two)
    expected = jax.vmap(lambda variables: function(variables, IMAGES))(two)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dense(6),
        nn.Conv(6, (3, 3)),
        nn.Conv(6, (3, 2), strides=2, padding="VALID", use_bias=False),
        nn.Conv(6, (3, 3), kernel_dilation=2, padding=((1, 0), (2, 1))),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_outputs_are_a_product_of_patches_with_the_kernel(layer):
    variables = layer.init(KEY, IMAGES)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    network = graph.Graph(layer.apply, variables, IMAGES)
    (name,) = network.layers
    assert not network.unfit
    inputs = network.inputs(variables, IMAGES)[name]
    kernel, bias = network.kernel(variables, name), variables["params"].get("bias")
    found = network.patches(name, inputs) @ kernel.reshape(-1, 6)
    found = found if bias is None else found + bias[None]
    expected = layer.apply(variables, IMAGES).reshape(-1, 6)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    half = network.linear(
        name, inputs, kernel[..., :3], None if bias is None else bias[:3]
    )
    np.testing.assert_allclose(half, expected[:, :3], atol=1e-5)


def test_what_is_no_product_with_its_kernel_is_told():
    for layer in (
        nn.Conv(6, (3, 3), feature_group_count=2),
        nn.ConvTranspose(6, (3, 3), strides=(2, 2)),
    ):
        variables = layer.init(KEY, IMAGES)
        network = graph.Graph(layer.apply, variables, IMAGES)
        assert [network.unfit] == list(network.layers)


def test_leaves_belong_to_the_layer_before_them():
    owners = traced("linen ResNet").owners()
    before = {"norm": "stem", "first_norm": "first", "second_norm": "second"}
    roles = {"kernel": "", "scale": "mul", "bias": "add"}
    for path, owner in owners.items():
        _, module, leaf = path.split("/")
        assert owner.layer == before.get(module, module)
        assert owner.inner == 1 or leaf == "kernel"
        assert leaf == "kernel" or owner.role == roles.get(leaf, leaf)
    assert len(owners) == 3 * 4 + 3 + 2
