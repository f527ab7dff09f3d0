"""What is taken as a trained network, and how another function is found out."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.errors import CheckpointError, ConfigError
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import admission, trained, weights

SHAPE = (4, 4, 1)


class Net(nn.Module):
    """A dense network with fields of every kind."""

    activation: Callable = nn.relu
    end: Callable | None = None
    dtype: Any = None
    scale: float = 1.0
    kernel_init: Callable = nn.initializers.normal(0.5)
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        x = self.scale * nn.Dense(5, dtype=self.dtype, kernel_init=self.kernel_init)(x)
        x = nn.Dense(self.num_classes, name="last")(self.activation(x))
        return self.end(x) if self.end else x


def describe(module, **changes):
    fields = {
        "network": registry.name_of(module),
        "num_classes": 3,
        "image_shape": SHAPE,
        "mean": (0.5,),
        "std": (0.25,),
        "dataset": "",
        "arguments": registry.arguments_of(module),
    }
    return weights.Description(**fields | changes)


def start(module, seed=0):
    return Linen(module).init(jax.random.key(seed), SHAPE)


def admit(module, variables=None, **changes):
    variables = start(module) if variables is None else variables
    return admission.admit(
        Linen(module), variables, describe(module, **changes), source="The file"
    )


def restore(path, module=None):
    stored = weights.read(path)
    module = module or registry.create(
        stored.description.network,
        num_classes=stored.description.num_classes,
        arguments=stored.description.arguments,
    )
    return admission.restore(stored, Linen(module), source=str(path))


def test_fixed_images_are_the_same_for_ever():
    images = trained.fixed_images((8, 6, 3))
    assert images.shape == (4, 8, 6, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() < 0.01 < 0.99 < images.max() < 1
    bits = np.random.PCG64(0).random_raw(3) >> np.uint64(40)
    np.testing.assert_allclose(images[0, 0, 0], bits / 2**24)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"activation": nn.gelu},
        {"activation": jnp.tanh},
        {"activation": jax.lax.tanh},
        {"dtype": jnp.bfloat16},
        {"dtype": jnp.dtype("bfloat16")},
        {"scale": np.float32(3.0)},
        {"end": jax.nn.log_softmax},
        {"kernel_init": nn.initializers.zeros_init()},
    ],
    ids=lambda fields: next(iter(fields), "none"),
)
def test_fields_of_every_kind_come_back(tmp_path, fields):
    network = admit(Net(**fields), start(Net()))
    network.save(tmp_path / "w.safetensors")
    found = restore(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(found.fingerprint, network.fingerprint)
    assert found.sha256 == network.sha256
    json.dumps(dict(network.description.arguments))


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": lambda x: jnp.sin(x)},
        {"activation": functools.partial(nn.leaky_relu, negative_slope=0.3)},
        {"end": lambda x: 1.01 * x},
    ],
    ids=["lambda", "partial", "end"],
)
def test_fields_that_cannot_be_saved_are_found_out(tmp_path, fields):
    path = tmp_path / "w.safetensors"
    network = admit(Net(**fields))
    network.save(path)
    [name] = fields
    with pytest.raises(CheckpointError, match=f"computes other logits.*{name}"):
        restore(path)
    # Given itself, it is taken.
    assert restore(path, Net(**fields)).sha256 == network.sha256


def test_an_edited_source_is_found_out(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    admit(Net()).save(path)
    restore(path)

    class Edited(Net):
        @nn.compact
        def __call__(self, x):
            hidden = nn.Dense(5)(1.1 * x.reshape(x.shape[0], -1))
            return nn.Dense(3, name="last")(nn.relu(hidden))

    with pytest.raises(CheckpointError, match="its source was edited"):
        restore(path, Edited())


def test_rounding_is_no_other_function(tmp_path):
    network = admit(Net())
    largest = np.abs(network.fingerprint).max()
    near = np.array(network.fingerprint) + 5e-4 * largest
    network.check_fingerprint(near.tolist(), source="near")
    with pytest.raises(CheckpointError, match="far: the network"):
        network.check_fingerprint((near + 1e-3 * largest).tolist(), source="far")


def test_files_without_a_fingerprint_are_read(tmp_path):
    network = admit(Net())
    weights.save(tmp_path / "old", network.variables, network.description)
    assert weights.read(tmp_path / "old").fingerprint == []
    assert restore(tmp_path / "old").sha256 == network.sha256


@pytest.mark.parametrize("value", ["x", [1.0], [[1.0], [1.0, 2.0]], [["a"]], [[None]]])
def test_damaged_fingerprints(tmp_path, value):
    network = admit(Net())
    path = tmp_path / "w"
    weights.save(path, network.variables, network.description, fingerprint=value)
    with pytest.raises(CheckpointError, match="fingerprint is no matrix"):
        weights.read(path)


def test_a_network_under_another_name(tmp_path):
    network = admit(Net())
    network.save(tmp_path / "new")
    weights.save(tmp_path / "old", network.variables, network.description)
    for name in ("new", "old"):
        stored = weights.read(tmp_path / name)
        assert stored.called("moved:Net", source="x").description.network == "moved:Net"
    assert weights.read(tmp_path / "new").called("moved:Other", source="x")
    with pytest.raises(CheckpointError, match="not of 'moved:Other'"):
        weights.read(tmp_path / "old").called("moved:Other", source="x")


def test_untrained_weights_are_the_same_everywhere():
    first, second = (
        admission.filled(Linen(Net(activation=activation)), describe(Net()))
        for activation in (nn.relu, nn.tanh)
    )
    assert first.sha256 == second.sha256
    assert (
        first.fingerprint == admission.filled(Linen(Net()), describe(Net())).fingerprint
    )
    with pytest.raises(CheckpointError, match="computes other logits"):
        second.check_fingerprint(first.fingerprint, source="run.json")


# Kinds of variables.


class Scalars(nn.Module):
    """A parameter without axes, and names with slashes."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.PReLU()(nn.Dense(4)(x.reshape(x.shape[0], -1)))
        return nn.SpectralNorm(nn.Dense(3))(x, update_stats=train)


def test_scalars_and_names_with_slashes_come_back(tmp_path):
    network = admit(Scalars())
    network.save(tmp_path / "w")
    found = restore(tmp_path / "w")
    assert found.variables["params"]["PReLU_0"]["negative_slope"].shape == ()
    assert jax.tree.structure(found.variables) == jax.tree.structure(network.variables)
    np.testing.assert_array_equal(found.fingerprint, network.fingerprint)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_small_floats_become_float32(tmp_path, dtype):
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), start(Net()))
    network = admit(Net(), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(network.variables)} == {
        np.dtype(np.float32)
    }
    weights.save(tmp_path / "w", variables, network.description)
    weights.read(tmp_path / "w")  # Whole.


def test_parameters_without_their_level():
    assert admit(Net(), start(Net())["params"]).sha256 == admit(Net()).sha256
    boxed = nn.with_partitioning(nn.initializers.ones, (None,))

    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, bias_init=boxed)(x.reshape(x.shape[0], -1))

    variables = Boxed().init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    bias = admit(Boxed(), variables).variables["params"]["Dense_0"]["bias"]
    np.testing.assert_array_equal(bias, np.ones(3))


def test_a_collection_that_is_none_is_none():
    assert admit(Net(), {**start(Net()), "batch_stats": None})


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda leaf: leaf.astype(np.int8), "params/Dense_0/bias is int8"),
        (lambda leaf: leaf > 0, "params/Dense_0/bias is bool"),
        (lambda leaf: leaf + np.nan, "NaN"),
        (lambda leaf: leaf.astype(np.complex64), "holds a"),
        (lambda leaf: "text", "holds a str"),
        (lambda leaf: [leaf], "instead of"),
        (lambda leaf: leaf[..., :1], "instead of"),
        (lambda leaf: np.ma.masked_less(leaf, 0.1), "holds a MaskedArray"),
    ],
    ids=["int8", "bool", "nan", "complex", "text", "list", "shape", "masked"],
)
def test_variables_that_are_none(change, phrase):
    variables = jax.tree.map(lambda leaf: change(np.asarray(leaf)), start(Net()))
    with pytest.raises(CheckpointError, match=phrase):
        admit(Net(), variables)


@pytest.mark.parametrize("variables", [3, None, [], {"params": None}, {1: 2}, "x"])
def test_values_that_are_no_variables(variables):
    with pytest.raises(CheckpointError, match=r"variables|missing"):
        admission.admit(Linen(Net()), variables, describe(Net()), source="The file")


def test_extra_tensors_are_named():
    variables = start(Net()) | {"scales": {"last": np.ones(3, np.float32)}}
    with pytest.raises(CheckpointError, match="scales/last is not part of it"):
        admit(Net(), variables)


# Kinds of outputs.


@pytest.mark.parametrize(
    ("end", "phrase"),
    [
        (nn.sigmoid, "sigmoid"),
        (nn.hard_sigmoid, "sigmoid"),
        (lambda z: jnp.round(nn.softmax(z)), "softmax"),
        (lambda z: nn.softmax(z) ** 2, "sigmoid"),
        (lambda z: jax.nn.one_hot(z.argmax(-1), 3), "softmax"),
    ],
    ids=[
        "sigmoid",
        "hard sigmoid",
        "rounded",
        "squared",
        "one-hot",
    ],
)
def test_probabilities_are_refused(end, phrase):
    with pytest.raises(CheckpointError, match=f"it ends in a {phrase}"):
        admission.check_teacher(admit(Net(end=end)), source="The file")


@pytest.mark.parametrize(
    "end",
    [
        None,
        nn.log_softmax,
        nn.relu,
        nn.tanh,
        lambda z: 0.5 + 1e-3 * z,  # From 0 to 1, but for large images.
    ],
    ids=["logits", "log-softmax", "relu", "tanh", "small"],
)
def test_logits_are_taken(end):
    admission.check_teacher(admit(Net(end=end)), source="The file")


@pytest.mark.parametrize("end", [jnp.sqrt, jnp.log, lambda z: z / 0])
def test_answers_that_are_no_numbers(end):
    with pytest.raises(CheckpointError, match="answers with NaN or infinity"):
        admission.check_teacher(admit(Net(end=end)), source="The file")


def exponentials(z):
    odds = jnp.exp(z - z.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "end",
    [nn.softmax, exponentials, lambda z: nn.softmax(z / 4)],
    ids=["softmax", "by hand", "tempered"],
)
def test_a_softmax_is_cut_off(end):
    variables = start(Net())
    images = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    expected = admit(Net(), variables).logits(images)
    found = admit(Net(end=end), variables)
    scale = 4 if end not in (nn.softmax, exponentials) else 1
    np.testing.assert_allclose(scale * found.logits(images), expected, rtol=1e-5)
    admission.check_teacher(found, source="The file")
    layers = list(found.layers())
    assert layers == list(admit(Net(), variables).layers())
    for layer in layers:
        again = found.head(found.features(images, layer=layer), layer=layer)
        np.testing.assert_allclose(again, found.logits(images), rtol=1e-5, atol=1e-6)
    logits, _ = found.model.train_logits(variables, images, jax.random.key(0))
    np.testing.assert_allclose(scale * logits, expected, rtol=1e-5)


def test_one_sigmoid_is_two_classes():
    module = Net(num_classes=1, end=nn.sigmoid)
    variables = start(module)
    found = admission.admit(
        Linen(module), variables, describe(module, num_classes=2), source="The file"
    )
    images = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    chance = module.apply(variables, images)
    logits = found.logits(images)
    np.testing.assert_allclose(nn.softmax(logits)[:, 1:], chance, atol=1e-6)
    np.testing.assert_array_equal(logits[:, 0], np.zeros(5))


class Several(Net):
    """Features and logits, as a tuple or by name."""

    named: bool = False

    @nn.compact
    def __call__(self, x):
        logits = nn.softmax(nn.Dense(3, name="last")(x.reshape(x.shape[0], -1)))
        return {"x": x, "probs": logits} if self.named else (x, logits)


@pytest.mark.parametrize(("named", "output"), [(False, "1"), (True, "probs")])
def test_one_of_several_outputs(named, output, tmp_path):
    module = Several(named=named)
    variables = start(module)
    with pytest.raises(CheckpointError, match=r"several things .*say which are the"):
        admit(module, variables)
    with pytest.raises(CheckpointError, match="logits='y'"):
        admit(module, variables, output="y")
    found = admit(module, variables, output=output)
    images = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    outputs = module.apply(variables, images)
    probs = outputs["probs"] if named else outputs[1]
    np.testing.assert_allclose(nn.softmax(found.logits(images)), probs, atol=1e-6)
    found.save(tmp_path / "w")
    assert weights.read(tmp_path / "w").description == found.description
    again = restore(tmp_path / "w", module)
    np.testing.assert_array_equal(again.logits(images), found.logits(images))
    with pytest.raises(CheckpointError, match="returns one thing"):
        admit(Net(), start(Net()), output="0")


@pytest.mark.parametrize("factor", [0.0, -0.0])
def test_empty_weights_are_refused(factor):
    variables = jax.tree.map(lambda leaf: leaf * factor, start(Net()))
    variables["params"]["last"]["bias"] += np.arange(3, dtype=np.float32)
    with pytest.raises(CheckpointError, match="same logits for every image"):
        admission.check_teacher(admit(Net(), variables), source="The file")


class NoParameters(nn.Module):
    """Nothing to be trained."""

    @nn.compact
    def __call__(self, x):
        return x.reshape(x.shape[0], -1)


@pytest.mark.parametrize(
    ("module", "phrase"),
    [
        (Net(num_classes=1), "one logit"),
        (NoParameters(), "no parameters"),
        (Net(end=lambda z: (z, z)), "instead of logits"),
        (Net(end=lambda z: z[:1]), "instead of logits"),
        (Net(end=lambda z: {"logits": z}), "returns dict"),
        (Net(end=lambda z: (9 * z).astype(jnp.int32)), "returns int32"),
        (Net(end=lambda z: z > 0), "returns bool"),
        (Net(end=lambda z: z + 1j), "returns complex64"),
    ],
    ids=[
        "one logit",
        "no parameters",
        "tuple",
        "one row",
        "dict",
        "int",
        "bool",
        "complex",
    ],
)
def test_outputs_that_are_no_logits(module, phrase):
    with pytest.raises(CheckpointError, match=phrase):
        admission.trace(Linen(module), SHAPE, network="net")


# Training and evaluation.


class Modes(nn.Module):
    """Dropout or BatchNorm, told by an argument of any name."""

    layer: str = "dropout"

    def run(self, x, train):
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        if self.layer == "dropout":
            x = nn.Dropout(0.5, deterministic=not train)(x)
        elif self.layer == "norm":
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(x)


class Known(Modes):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return self.run(x, train)


class Inverse(Modes):
    @nn.compact
    def __call__(self, x, *, deterministic: bool = True):
        return self.run(x, not deterministic)


class Field(Modes):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        return self.run(x, self.training)


class Unknown(Modes):
    @nn.compact
    def __call__(self, x, is_train: bool = False):
        return self.run(x, is_train)


class Keywords(Modes):
    @nn.compact
    def __call__(self, x, **keywords):
        return self.run(x, keywords.get("train", False))


class Fixed(Modes):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return self.run(x, train=False)


class Required(Modes):
    @nn.compact
    def __call__(self, x, is_train):
        return self.run(x, is_train)


class Always(Modes):
    @nn.compact
    def __call__(self, x):
        return self.run(x, train=True)


def check_trainable(module):
    expected, _ = admission.trace(Linen(module), SHAPE, network="net")
    admission.check_trainable(Linen(module), expected, SHAPE, network="net")


@pytest.mark.parametrize("layer", ["dropout", "norm"])
@pytest.mark.parametrize("kind", [Known, Inverse, Field])
def test_known_modes(kind, layer):
    module = kind(layer=layer)
    check_trainable(module)
    variables = Linen(module).init(jax.random.key(0), SHAPE)
    images = jax.random.normal(jax.random.key(1), (8, *SHAPE))
    found, _ = Linen(module).train_logits(variables, images, jax.random.key(2))
    assert np.abs(found - Linen(module).logits(variables, images)).max() > 0.01


@pytest.mark.parametrize(("layer", "name"), [("dropout", "Drop"), ("norm", "Batch")])
@pytest.mark.parametrize("kind", [Unknown, Keywords, Fixed])
def test_unknown_modes_are_refused(kind, layer, name):
    with pytest.raises(CheckpointError, match=f"leaves its {name}.*deterministic"):
        check_trainable(kind(layer=layer))


@pytest.mark.parametrize("kind", [Unknown, Keywords, Fixed])
def test_unknown_modes_without_such_layers(kind):
    check_trainable(kind(layer=""))


@pytest.mark.parametrize("layer", ["dropout", "norm"])
@pytest.mark.parametrize("kind", [Required, Always])
def test_networks_that_cannot_be_evaluated(kind, layer):
    with pytest.raises(CheckpointError, match=r"only one that says.*training"):
        check_trainable(kind(layer=layer))


# Names of functions.


def test_names_become_functions_but_where_a_text_is_meant():
    class Text(nn.Module):
        activation: str = "jax.nn.relu"
        dtype: Any = None

    assert registry._named("jax.nn.gelu", Any) is nn.gelu
    assert registry._named("jax.nn.gelu", str) == "jax.nn.gelu"
    assert registry._named("jax.nn.gelux", Any) == "jax.nn.gelux"
    assert registry._named("os.getcwd", Any) == "os.getcwd"
    assert registry.arguments_of(Text(dtype=jnp.float32)) == {
        "activation": "jax.nn.relu",
        "dtype": "jax.numpy.float32",
    }


def test_a_module_that_cannot_be_made_of_what_is_saved():
    with pytest.raises(ConfigError, match="cannot be made of"):
        registry.create(f"{__name__}:Needs", arguments={})


class Needs(nn.Module):
    """A field without a default."""

    inner: Any

    def __call__(self, x):
        return self.inner(x)


class Half(Net):
    """Computes in bfloat16 whatever its fields say."""

    dtype: Any = jnp.bfloat16


def test_half_precision_rounds_more_on_other_processors():
    wanted = admit(Half(), start(Net())).fingerprint
    half, full = (admit(kind(), start(Net())) for kind in (Half, Net))
    largest = np.abs(wanted).max()
    near = (np.array(wanted) + 1e-2 * largest).tolist()
    half.check_fingerprint(near, source="near")
    with pytest.raises(CheckpointError, match="computes other logits"):
        full.check_fingerprint(near, source="near")
