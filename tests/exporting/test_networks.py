import importlib.util
import json

import custom_nets
import described
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from dfkd_jax import api
from dfkd_jax.errors import ConfigError, ExportError
from dfkd_jax.exporting import networks, to_onnx
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import admission

SHAPE = (12, 10, 2)
MEAN, STD = (0.2, 0.6), (0.3, 0.1)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in to_onnx.PACKAGES),
    reason="the onnx extra is not installed",
)
FORMATS = [
    "safetensors",
    "stablehlo",
    pytest.param("onnx", marks=needs_onnx),
]
MODULES = {
    "custom_nets:SmallCnn": custom_nets.SmallCnn(),  # BatchNorm, dropout, mean pooling.
    "custom_nets:AllConvolutional": custom_nets.AllConvolutional(),  # Max pooling.
    "lenet5": registry.create("lenet5"),
}


class Fourier(nn.Module):
    """Does what no ONNX operator does."""

    @nn.compact
    def __call__(self, images):
        spectrum = jnp.fft.fft2(images, axes=(1, 2)).real
        return nn.Dense(3)(spectrum.reshape(images.shape[0], -1))


def make(name, module):
    """A network whose BatchNorm statistics say something."""
    shape = (28, 28, 1) if name == "lenet5" else SHAPE
    start = jax.jit(lambda key: Linen(module).init(key, shape))
    variables = start(jax.random.key(0))
    random = np.random.default_rng(1)
    spread = {"params": (-0.1, 0.1), "batch_stats": (0.1, 1.0)}
    variables = {
        name: jax.tree.map(
            lambda leaf, name=name: np.float32(
                leaf + random.uniform(*spread[name], leaf.shape)
            ),
            tree,
        )
        for name, tree in variables.items()
    }
    return described.network(
        module,
        variables,
        shape,
        network=name,
        num_classes=admission.trace(Linen(module), shape, network=name)[1],
        mean=MEAN[: shape[-1]],
        std=STD[: shape[-1]],
    )


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.full) if "AllConv" in name else name
        for name in MODULES
    ],
    scope="module",
)
def network(request):
    return make(request.param, MODULES[request.param])


@pytest.mark.parametrize("format_name", FORMATS)
def test_read_back_it_computes_the_logits_of_standardized_pixels(
    network, tmp_path, format_name
):
    path = tmp_path / "file"
    difference = networks.write(
        path, network, format_name=format_name, class_names=("a", "b")
    )
    assert difference < 1e-4

    call = networks.FORMATS[format_name][1](path, network.model)
    mean, std = np.array(network.description.mean), np.array(network.description.std)
    pixels = np.random.default_rng(2).random((5, *network.description.image_shape))
    images = jnp.asarray((pixels - mean) / std, jnp.float32)
    wanted = jax.jit(network.logits)(images)
    assert np.abs(wanted).max() > 0.1
    found = call(pixels.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    if format_name == "stablehlo":
        card = json.loads(networks.card_path(path).read_text())
        assert card == json.loads(json.dumps(networks.card(network, ("a", "b"))))
        assert card["class_names"] == ["a", "b"]
        assert card["input"]["shape"] == ["batch", *network.description.image_shape]


def test_stablehlo_takes_any_batch_on_three_platforms(network, tmp_path):
    path = tmp_path / "network.stablehlo"
    networks.write_stablehlo(path, network, ())
    content = path.read_bytes()
    assert b".py" not in content  # Nobody's folders.
    exported = export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    [images], [logits] = exported.in_avals, exported.out_avals
    assert str(images.shape[0]) == str(logits.shape[0]) == "batch"
    assert images.shape[1:] == network.description.image_shape


@pytest.mark.parametrize("name", registry.NETWORKS)
def test_operations_are_native_whatever_the_machine(name):
    """One convolution for each kernel, in every network."""
    module = registry.create(name)
    shape = (28, 28, 1) if name.startswith("lenet") else (32, 32, 3)
    abstract = Linen(module).shapes(shape)
    network = described.network(
        module,
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract),
        shape,
    )
    pixels = jnp.zeros((1, *shape))
    serving = str(jax.make_jaxpr(networks.serving_function(network))(pixels))
    kernels = [leaf for leaf in jax.tree.leaves(abstract["params"]) if leaf.ndim == 4]
    assert kernels
    assert serving.count("conv_general_dilated[") == len(kernels)
    pools = {"lenet": 2, "alexn": 3, "resne": 0}[name[:5]]
    assert serving.count("reduce_window_max[") == pools
    assert "custom_vjp" not in serving


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_same_network_is_the_same_file(network, tmp_path, format_name):
    write = networks.FORMATS[format_name][0]
    for name in ("one", "two"):
        write(tmp_path / name, network, ())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda logits: logits + 1e-2,
        lambda logits: np.where(logits == logits.max(), np.nan, logits),
        lambda logits: logits[:, :1],
    ],
    ids=["off", "nan", "shape"],
)
def test_other_logits_are_refused(damage):
    network = make("custom_nets:Shared", custom_nets.Shared())

    evaluate = networks.evaluation_function(network)
    with pytest.raises(ExportError, match=r"here: read back, .* not kept"):
        networks.compare(
            lambda pixels: damage(evaluate(pixels)), network, source="here"
        )


@pytest.mark.parametrize("suffix", ["safetensors", "stablehlo"])
def test_from_python_the_name_says_the_format(tmp_path, suffix):
    network = make("custom_nets:Shared", custom_nets.Shared())
    path = tmp_path / f"network.{suffix}"
    assert api.export(network, path) < 1e-4
    assert api.export(network, tmp_path / "other", format_name=suffix) < 1e-4
    assert path.read_bytes() == (tmp_path / "other").read_bytes()
    with pytest.raises(ConfigError, match=f'Did you mean "{suffix}"'):
        api.export(network, tmp_path / f"network.{suffix[:-1]}")


@needs_onnx
def test_what_cannot_be_converted_is_said_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "network.onnx"
    path.write_text("precious")
    with pytest.raises(ExportError, match="--format=stablehlo"):
        networks.write(path, make("x:Fourier", Fourier()), format_name="onnx")
    assert path.read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
