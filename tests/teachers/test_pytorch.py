"""What is read and converted without PyTorch; with it: test_pytorch_logits.py."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import linen_nets
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from dfkd_jax.config import NetworkConfig
from dfkd_jax.errors import CheckpointError, ConfigError
from dfkd_jax.models import registry
from dfkd_jax.teachers import mappings, pytorch, weights

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def shapes(module, image_shape=(28, 28, 1)):
    images = jnp.zeros((1, *image_shape))
    return jax.eval_shape(module.init, jax.random.key(0), images)


def mapping(values):
    return mappings.parse(values, origin="The mapping m.json")


def convert(state_dict, values, expected):
    return pytorch.convert(state_dict, mapping=mapping(values), expected=expected)


def abstract(**layers):
    return {"params": layers}


def zeros(*shape):
    return np.zeros(shape, np.float32)


# Networks that PyTorch has run.


def check_recorded(name, module, variables):
    recorded = load_file(FIXTURES / f"{name}_recorded.safetensors")
    images = jnp.array(recorded["images"].transpose(0, 2, 3, 1))
    logits = jax.jit(module.apply)(variables, images)
    scale = np.abs(recorded["logits"]).max()
    assert scale > 0.1
    assert np.abs(logits - recorded["logits"]).max() <= 1e-5 * scale


def test_logits_of_a_lenet_that_pytorch_recorded():
    module = registry.create("lenet5_half_dafl")
    variables = pytorch.load(
        FIXTURES / "lenet5_half_dafl.safetensors",
        network="lenet5_half_dafl",
        expected=shapes(module),
    )
    check_recorded("lenet5_half_dafl", module, variables)


def test_logits_of_a_network_of_ones_own_by_a_mapping_file(tmp_path):
    path = tmp_path / "mapping.json"
    path.write_text(linen_nets.CUSTOM_MAPPING)
    module = linen_nets.Custom()
    variables = pytorch.load(
        FIXTURES / "custom.safetensors",
        network="linen_nets:Custom",
        expected=shapes(module, (16, 12, 3)),
        mapping=str(path),
    )
    check_recorded("custom", module, variables)


def test_teachers_are_loaded_from_such_files():
    settings = {"image_shape": (28, 28, 1), "mean": (0.1,), "std": (0.3,)}
    teacher = weights.load(
        NetworkConfig(
            network="lenet5_half_dafl",
            weights=str(FIXTURES / "lenet5_half_dafl.safetensors"),
            **settings,
        )
    )
    check_recorded("lenet5_half_dafl", teacher.model.module, teacher.variables)
    assert teacher.description.num_classes == 10


# Tensors by hand.


def test_a_convolution_by_hand():
    weight = np.arange(2 * 3 * 2 * 1, dtype=np.float32).reshape(2, 3, 2, 1)
    state_dict = {"c.weight": weight, "c.bias": np.array([5, 6], np.float32)}
    expected = abstract(conv={"kernel": zeros(2, 1, 3, 2), "bias": zeros(2)})
    params = convert(state_dict, {"conv": "c"}, expected)["params"]
    for place in np.ndindex(2, 3, 2, 1):
        outputs, inputs, row, column = place
        assert params["conv"]["kernel"][row, column, inputs, outputs] == weight[place]
    np.testing.assert_array_equal(params["conv"]["bias"], [5, 6])


def test_a_convolution_in_one_dimension():
    weight = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    expected = abstract(conv={"kernel": zeros(2, 3, 4)})
    params = convert({"c.weight": weight}, {"conv": "c"}, expected)["params"]
    np.testing.assert_array_equal(params["conv"]["kernel"], weight.transpose(2, 1, 0))


def test_a_dense_layer_after_a_flatten_by_hand():
    """4 channels of 2 × 3 pixels, summed with weights, in either order."""
    random = np.random.default_rng(0)
    images = random.normal(size=(5, 4, 2, 3)).astype(np.float32)
    weight = random.normal(size=(24, 24)).astype(np.float32)
    bias = random.normal(size=24).astype(np.float32)
    expected = abstract(dense={"kernel": zeros(24, 24), "bias": zeros(24)})
    params = convert(
        {"fc.weight": weight, "fc.bias": bias},
        {"dense": {"from": "fc", "flatten": [4, 2, 3]}},
        expected,
    )["params"]["dense"]
    channels_last = images.transpose(0, 2, 3, 1).reshape(5, -1)
    np.testing.assert_allclose(
        channels_last @ params["kernel"] + params["bias"],
        images.reshape(5, -1) @ weight.T + bias,
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_normalization_by_hand():
    state_dict = {
        "bn.weight": np.array([1, 2], np.float32),
        "bn.bias": np.array([3, 4], np.float32),
        "bn.running_mean": np.array([5, 6], np.float32),
        "bn.running_var": np.array([7, 8], np.float32),
        "bn.num_batches_tracked": np.array(9),
    }
    expected = {
        "params": {"norm": {"scale": zeros(2), "bias": zeros(2)}},
        "batch_stats": {"norm": {"mean": zeros(2), "var": zeros(2)}},
    }
    variables = convert(state_dict, {"norm": "bn"}, expected)
    assert jax.tree.map(list, variables) == {
        "params": {"norm": {"scale": [1, 2], "bias": [3, 4]}},
        "batch_stats": {"norm": {"mean": [5, 6], "var": [7, 8]}},
    }


def test_what_comes_out_is_float32_and_in_order():
    expected = abstract(conv={"kernel": zeros(3, 3, 2, 4)})
    variables = convert({"c.weight": zeros(4, 2, 3, 3)}, {"conv": "c"}, expected)
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel.dtype == np.float32
    assert kernel.flags.c_contiguous


# Mistakes.


def lenet_case():
    """A LeNet-5 of zeros, as PyTorch would hold it, and its shapes."""
    expected = shapes(registry.create("lenet5"))
    state_dict = {
        "conv1.weight": zeros(6, 1, 5, 5),
        "conv1.bias": zeros(6),
        "conv2.weight": zeros(16, 6, 5, 5),
        "conv2.bias": zeros(16),
        "fc1.weight": zeros(120, 400),
        "fc1.bias": zeros(120),
        "fc2.weight": zeros(84, 120),
        "fc2.bias": zeros(84),
        "fc3.weight": zeros(10, 84),
        "fc3.bias": zeros(10),
    }
    values = {
        "conv_1": "conv1",
        "conv_2": "conv2",
        "dense_1": {"from": "fc1", "flatten": [16, 5, 5]},
        "dense_2": "fc2",
        "output": "fc3",
    }
    return state_dict, values, expected


def test_the_case_itself_is_right():
    state_dict, values, expected = lenet_case()
    assert convert(state_dict, values, expected)["params"].keys() == values.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fc2.bias": None},
            'fc2.bias (for dense_2/bias) is missing. Did you mean "fc',
        ),
        ({"aux.weight": zeros(3)}, "aux.weight is not used: map it, or put it into $"),
        (
            {"conv1.weight": zeros(6, 1, 3, 3)},
            "conv1.weight of shape (6, 1, 3, 3) gives conv_1/kernel of shape "
            "(3, 3, 1, 6) instead of (5, 5, 1, 6)",
        ),
        ({"conv1.weight": zeros(6)}, "instead of (5, 5, 1, 6)"),
        ({"conv1.weight": np.zeros((6, 1, 5, 5), np.int8)}, "conv1.weight is int8"),
        ({"fc1.weight": zeros(120, 256)}, "does not make the 256 inputs of fc1"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    state_dict, values, expected = lenet_case()
    state_dict = {k: v for k, v in (state_dict | change).items() if v is not None}
    with pytest.raises(CheckpointError) as caught:
        convert(state_dict, values, expected)
    assert message in str(caught.value)
    assert "The mapping m.json leads to:" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_2": None}, "conv_2 is not in the mapping"),
        ({"conv_9": "conv9"}, "the network has no layer 'conv_9'. Did you mean \"conv"),
        ({"dense_2": "fc3"}, "fc3 is mapped to 2 layers"),
        (
            {"dense_1": "fc1"},
            "dense_1 has 400 inputs, which no layer before it gives: say what",
        ),
        (
            {"dense_1": {"from": "fc1", "flatten": [16, 4, 4]}},
            '"flatten" of dense_1 is [16, 4, 4], which does not make the 400 inputs',
        ),
    ],
)
def test_mappings_that_do_not_fit_are_explained(change, message):
    state_dict, values, expected = lenet_case()
    values = {k: v for k, v in (values | change).items() if v is not None}
    with pytest.raises(CheckpointError) as caught:
        convert(state_dict, values, expected)
    assert message in str(caught.value)


def test_all_that_does_not_fit_is_listed_up_to_a_limit():
    _, values, expected = lenet_case()
    with pytest.raises(CheckpointError) as caught:
        convert({"other.weight": zeros(1)}, values, expected)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + pytorch.MAX_PROBLEMS + 1
    assert lines[-1].strip() == "and 3 more."  # 10 are missing, 1 is extra.


def test_a_normalization_between_a_flatten_and_a_dense_layer_is_asked_about():
    """6 channels of 4 × 3 pixels; the Dense has as many outputs as inputs."""
    expected = shapes(linen_nets.Custom(), (16, 12, 3))
    state_dict = load_file(FIXTURES / "custom.safetensors")
    values = json.loads(linen_nets.CUSTOM_MAPPING)
    for layer in ("norm", "hidden"):
        changed = values | {layer: values[layer]["from"]}
        with pytest.raises(CheckpointError, match=f"{layer} has 72 inputs, which no"):
            convert(state_dict, changed, expected)
    begun = json.loads(pytorch.skeleton(state_dict, expected))
    unsaid = ["channels?", "height?", "width?"]
    assert begun == {
        "stem/conv": "stem.0",
        "stem/norm": "stem.1",
        "depthwise": "depthwise",
        "gamma": "?",
        "norm": {"from": "norm", "flatten": unsaid},
        "hidden": {"from": "classifier.0", "flatten": unsaid},
        "output": "classifier.1",
        "mixing": "?",
    }


def test_flatten_false_keeps_the_order():
    state_dict, values, expected = lenet_case()
    state_dict["fc1.weight"] = np.arange(48_000, dtype=np.float32).reshape(120, 400)
    values["dense_1"] = {"from": "fc1", "flatten": False}
    kernel = convert(state_dict, values, expected)["params"]["dense_1"]["kernel"]
    np.testing.assert_array_equal(kernel, state_dict["fc1.weight"].T)


def test_what_is_ignored_may_be_there():
    state_dict, values, expected = lenet_case()
    values["$ignore"] = ["aux."]
    convert(state_dict | {"aux.weight": zeros(3)}, values, expected)


def test_tensors_of_no_known_kind_are_asked_for():
    expected = {
        "params": {"act": {"slope": zeros(3)}, "conv": {"kernel": zeros(1, 1, 2, 3)}}
    }
    state_dict = {"act.weight": zeros(3), "c.weight": zeros(3, 2, 1, 1)}
    with pytest.raises(CheckpointError, match="act/slope is of no known kind"):
        convert(state_dict, {"act": "act", "conv": "c"}, expected)
    with pytest.raises(CheckpointError, match="act/slope is not in the mapping"):
        convert(state_dict, {"conv": "c"}, expected)
    variables = convert(state_dict, {"act/slope": "act.weight", "conv": "c"}, expected)
    assert variables["params"]["act"]["slope"].shape == (3,)


# Files.


def saved(path, state_dict):
    save_file({k: np.ascontiguousarray(v) for k, v in state_dict.items()}, path)
    return path


def test_data_parallels_prefix_is_dropped(tmp_path):
    state_dict = {
        "module._orig_mod.fc.weight": zeros(2, 3),
        "module._orig_mod.x": zeros(1),
    }
    path = saved(tmp_path / "w.safetensors", state_dict)
    assert set(pytorch.read_state_dict(path)) == {"fc.weight", "x"}


def test_a_layer_called_module_keeps_its_name(tmp_path):
    path = saved(tmp_path / "w.safetensors", {"module.w": zeros(1), "fc.w": zeros(1)})
    assert set(pytorch.read_state_dict(path)) == {"module.w", "fc.w"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_become_float32(tmp_path, dtype):
    state_dict = {"w": np.array([0.5, -2], dtype), "count": np.array([3])}
    read = pytorch.read_state_dict(saved(tmp_path / "w.safetensors", state_dict))
    assert read["w"].dtype == np.float32
    np.testing.assert_array_equal(read["w"], [0.5, -2])
    assert read["count"].dtype == np.int64


def write_raw(path, dtype, content, shape):
    """A safetensors file by hand: 8 bytes of length, a JSON header, the data."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    header = json.dumps({"w": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    return path


def test_bfloat16_becomes_float32(tmp_path):
    # Sign, 8 bits of exponent, 7 of mantissa: 1.5, -2 and 0.
    bits = np.array([0x3FC0, 0xC000, 0x0000], "<u2")
    path = write_raw(tmp_path / "w.safetensors", "BF16", bits.tobytes(), [3, 1])
    read = pytorch.read_state_dict(path)["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [[1.5], [-2], [0]])


def test_other_dtypes_are_refused(tmp_path):
    path = write_raw(tmp_path / "w.safetensors", "F8_E4M3", b"\0\0", [2])
    with pytest.raises(CheckpointError, match="tensor w is F8_E4M3: save it as float"):
        pytorch.read_state_dict(path)


@pytest.mark.parametrize(
    "value",
    [np.array([1, np.nan], np.float32), np.array([np.inf]), np.array([1e300])],
    ids=["NaN", "infinity", "too large"],
)
def test_numbers_that_are_none_are_refused(tmp_path, value):
    path = saved(tmp_path / "w.safetensors", {"a": zeros(1), "fc.weight": value})
    with pytest.raises(CheckpointError, match=r"tensor fc\.weight holds NaN or inf"):
        pytorch.read_state_dict(path)


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(CheckpointError, match="are not there: check the path"):
        pytorch.read_state_dict(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"garbage, and more of it")
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        pytorch.read_state_dict(tmp_path / "w.safetensors")


def test_pickled_files_without_pytorch(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    path.write_bytes(b"anything")
    # None stands for a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"needs PyTorch .*dfkd_jax\[torch\]"):
        pytorch.read_state_dict(path)


# Without a mapping.


def test_a_foreign_file_is_listed_with_a_mapping_to_begin_with(tmp_path):
    state_dict, _, expected = lenet_case()
    renamed = {f"body.{name}": array for name, array in state_dict.items()}
    path = saved(tmp_path / "w.safetensors", renamed)
    with pytest.raises(CheckpointError, match=r"config\.teacher\.mapping") as caught:
        pytorch.load(path, network="lenet5", expected=expected)
    message = str(caught.value)
    assert "  body.conv1.weight [6, 1, 5, 5]\n" in message

    # The shapes of LeNet-5 leave nothing open but what was flattened.
    begun = json.loads(message[message.rindex("\n{") :])
    assert begun == {
        "conv_1": "body.conv1",
        "conv_2": "body.conv2",
        "dense_1": {"from": "body.fc1", "flatten": ["channels?", "height?", "width?"]},
        "dense_2": "body.fc2",
        "output": "body.fc3",
    }
    with pytest.raises(ConfigError, match=r"must be \[channels, height, width"):
        mapping(begun)
    begun["dense_1"]["flatten"] = [16, 5, 5]
    convert(renamed, begun, expected)


def test_a_mapping_to_begin_with_guesses_nothing():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, images):
            hidden = nn.Dense(4, name="first")(images)
            self.param("own", nn.initializers.zeros, (4,))
            return nn.Dense(4, name="second")(hidden)

    expected = shapes(Twice(), (4,))
    layer = {"weight": zeros(4, 4), "bias": zeros(4)}
    state_dict = {f"{name}.{k}": v for name in "ab" for k, v in layer.items()}
    begun = json.loads(pytorch.skeleton(state_dict, expected))
    assert begun == {"first": "?", "second": "?", "own": "?"}


# The shipped mappings; that they are right is shown by test_pytorch_logits.py.


@pytest.mark.parametrize(
    ("network", "held", "names"),
    [
        ("lenet5_half", ["conv1", "fc3"], {"conv_2": "conv2", "output": "fc3"}),
        (
            "alexnet",
            ["conv1", "bn1", "fc1"],
            {"conv_5": "conv5", "bn_5": "bn5", "dense_2": "fc2", "bn_7": "bn7"},
        ),
        (
            "alexnet_wang_half",
            ["features.0", "features.15", "fc1.0", "fc1.3", "fc3"],
            {
                "conv_1": "features.0",
                "bn_1": "features.1",
                "conv_2": "features.4",
                "conv_3": "features.8",
                "conv_4": "features.11",
                "bn_5": "features.15",
                "dense_2": "fc2.0",
                "bn_7": "fc2.3",
                "output": "fc3",
            },
        ),
        (
            "resnet18",
            ["conv1", "layer2.0.shortcut.0", "linear"],
            {
                "bn_1": "bn1",
                "stage_2_block_1/shortcut_bn": "layer2.0.shortcut.1",
                "stage_4_block_2/conv_2": "layer4.1.conv2",
                "output": "linear",
            },
        ),
        (
            "resnet34",
            ["conv1", "layer2.0.downsample.0", "fc"],
            {
                "stage_2_block_1/shortcut_conv": "layer2.0.downsample.0",
                "stage_3_block_6/bn_1": "layer3.5.bn1",
                "output": "fc",
            },
        ),
    ],
)
def test_shipped_names(network, held, names):
    image_shape = (28, 28, 1) if network.startswith("lenet5") else (32, 32, 3)
    expected = pytorch._shapes(shapes(registry.create(network), image_shape))
    found = mappings.shipped(network, expected, {f"{name}.weight": () for name in held})
    assert names.items() <= {k: v.name for k, v in found.sources.items()}.items()
    assert {pytorch._split(path)[0] for path in expected} == set(found.sources)


@pytest.mark.parametrize(
    ("network", "flatten"),
    [
        ("lenet5", (16, 5, 5)),
        ("lenet5_half_dafl", (8, 5, 5)),
        ("alexnet", (128, 3, 3)),
        ("alexnet_half", (64, 3, 3)),
        ("alexnet_wang", (256, 2, 2)),
    ],
)
def test_shipped_flatten(network, flatten):
    image_shape = (28, 28, 1) if network.startswith("lenet5") else (32, 32, 3)
    expected = pytorch._shapes(shapes(registry.create(network), image_shape))
    found = mappings.shipped(network, expected, {"fc3.weight": ()})
    assert found.sources["dense_1"].flatten == flatten


def test_nothing_is_shipped_for_foreign_names_and_networks():
    expected = pytorch._shapes(shapes(registry.create("lenet5")))
    foreign = {"conv1.weight": (), "a.weight": (), "b.weight": ()}
    assert mappings.shipped("lenet5", expected, foreign) is None
    assert mappings.shipped("lenet5", expected, {}) is None
    assert mappings.shipped("nets:Mine", expected, {"conv1.weight": ()}) is None
