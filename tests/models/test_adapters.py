"""Live networks of several frameworks, as functions of variables and images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from dfkd_jax.errors import ConfigError, MissingPackageError
from dfkd_jax.models import adapters
from dfkd_jax.models.adapters.equinox import from_equinox
from dfkd_jax.models.adapters.function import from_function
from dfkd_jax.models.adapters.keras import from_keras
from dfkd_jax.models.adapters.linen import from_linen
from dfkd_jax.models.adapters.nnx import from_nnx
from dfkd_jax.models.adapters.torch import from_torch

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (3, 8, 8, 2))


@pytest.fixture(autouse=True)
def others_broadcast_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, training):
        hidden = nn.relu(nn.Conv(4, (3, 3), name="conv")(images))
        hidden = nn.BatchNorm(use_running_average=not training)(hidden)
        hidden = nn.Dropout(0.5, deterministic=not training)(hidden)
        hidden = nn.max_pool(hidden, (2, 2), (2, 2)).reshape(images.shape[0], -1)
        return nn.Dense(4, name="output")(hidden)


def linen():
    module = Linen()
    variables = jax.jit(lambda key: module.init(key, IMAGES, training=False))(KEY)
    expected = module.apply(variables, IMAGES, training=False)
    return from_linen(module, variables), expected, ["conv", "output"]


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, images):
        hidden = self.drop(nnx.relu(self.norm(self.conv(images))))
        hidden = nnx.max_pool(hidden, (2, 2), (2, 2))
        return self.output(hidden.reshape(hidden.shape[0], -1))


def flax_nnx():
    module = Nnx(nnx.Rngs(0))
    network = from_nnx(module)
    assert not module.drop.deterministic  # Left as it was.
    module.eval()
    return network, module(IMAGES), ["conv", "output"]


def equinox():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(KEY)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, padding=1, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.5),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(64, 4, key=second),
        ]
    )
    still = eqx.nn.inference_mode(module)
    expected = jax.vmap(still)(IMAGES.transpose(0, 3, 1, 2))
    return from_equinox(module), expected, ["0/layers/0", "0/layers/5"]


def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(4, name="output"),
        ],
        name="net",
    )
    return from_keras(model), model(IMAGES), ["net/conv", "net/output"]


def pytorch():
    torch, _ = map(pytest.importorskip, ("torch", "torchax"))
    layers = torch.nn
    module = layers.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        layers.ReLU(),
        layers.Dropout(0.5),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Linear(64, 4),
    )
    network = from_torch(module)
    assert module.training  # Left as it was.
    images = torch.tensor(np.asarray(IMAGES)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network, module.eval()(images).numpy(), ["0", "6"]


@pytest.mark.parametrize("make", [linen, flax_nnx, equinox, keras, pytorch])
def test_logits_are_the_frameworks_own_and_layers_are_named(make, monkeypatch):
    network, expected, names = make(monkeypatch) if make is keras else make()
    logits = jax.jit(network.logits)(IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    found = network.graph((8, 8, 2)).layers
    assert list(found) == names
    assert all(layer.is_cut for layer in found.values())
    assert len(repr(network).splitlines()) == 1


def test_any_function():
    def function(params, images):
        return images.reshape(images.shape[0], -1) @ params["weight"]

    network = from_function(function, {"weight": jnp.ones((128, 4))})
    assert list(network.graph((8, 8, 2)).layers) == ["weight"]
    np.testing.assert_allclose(
        network.logits(IMAGES)[:, 0], IMAGES.sum((1, 2, 3)), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ConfigError, match=r"\[batch, 9, 8, 2\].*that it was trained"):
        network.graph((9, 8, 2))


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (lambda logits: {"logits": logits}, "a dict"),
        (lambda logits: logits[0], r"\[4\]"),
        (lambda logits: logits[:, None], r"\[batch, 1, 4\]"),
    ],
)
def test_what_returns_no_logits(returns, said):
    def function(weight, images):
        return returns(images.reshape(images.shape[0], -1) @ weight)

    with pytest.raises(ConfigError, match=f"returns {said}, expected logits"):
        from_function(function, jnp.ones((128, 4))).graph((8, 8, 2))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "no weight"),
        ({"weight": np.ones((2, 2), np.int8)}, "no weight of a floating dtype"),
        ({"weight": np.full((2, 2), np.nan)}, r"\(2, 2\) holds NaN"),
        ({"weight": "w.npz"}, "hold a str"),
    ],
)
def test_what_are_no_weights(variables, said):
    with pytest.raises(ConfigError, match=said):
        from_function(lambda variables, images: images, variables)


@pytest.mark.parametrize("adapter", [from_nnx, lambda net: from_linen(net, {})])
def test_another_frameworks_network_is_refused(adapter):
    with pytest.raises(ConfigError, match=r"takes a live flax .*Module, got a dict"):
        adapter({})


def test_a_missing_framework_is_told():
    with pytest.raises(MissingPackageError, match="pip install nothing-such"):
        adapters.needed("no_such_framework", extra="nothing-such")
