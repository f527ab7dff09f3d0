"""Teachers from files and folders of every kind: what they hold is used or named."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training import train_state
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

from dfkd_jax import api, config
from dfkd_jax.errors import CheckpointError, ConfigError, DfkdError
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import weights
from dfkd_jax.teachers import weights as teachers

SHAPE = (4, 4, 1)


class Net(nn.Module):
    """A dense network."""

    width: int = 5

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="first")(x.reshape(x.shape[0], -1)))
        return nn.Dense(3, name="last")(x)


def variables_of(module=None):
    return Linen(module or Net()).init(jax.random.key(0), SHAPE)


def settings(weights_path, **changes):
    values = {
        "module": f"{__name__}:Net",
        "weights": str(weights_path),
        "image_shape": SHAPE,
        "mean": (0.5,),
        "std": (0.25,),
    }
    return config.from_mapping(config.NetworkConfig, values | changes, "teacher")


@pytest.fixture
def described(tmp_path):
    path = tmp_path / "teacher.safetensors"
    api.from_linen(Net(), variables_of(), image_shape=SHAPE, mean=0.5, std=0.25).save(
        path
    )
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"mean": (), "std": (), "image_shape": ()}, {"arguments": {"width": 5}}],
    ids=["equal", "none", "arguments"],
)
def test_settings_that_agree_with_the_file(described, changes):
    assert teachers.load(settings(described, **changes)).description.mean == (0.5,)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"mean": (0.4,)}, r"config\.teacher\.mean=\(0\.4,\) is not used.*\(0\.5,\)"),
        ({"std": (0.5,)}, r"config\.teacher\.std=\(0\.5,\) is not used"),
        ({"image_shape": (5, 4, 1)}, r"config\.teacher\.image_shape=.* is not used"),
        ({"mapping": "m.json"}, r"config\.teacher\.mapping='m.json' is not used"),
        ({"arguments": {"width": 6}}, r"arguments\.width=6 is not used.*says 5"),
        ({"module": "", "network": "lenet5"}, "Net', not of 'lenet5'"),
    ],
    ids=["mean", "std", "image_shape", "mapping", "arguments", "network"],
)
def test_settings_that_contradict_the_file(described, changes, phrase):
    with pytest.raises(DfkdError, match=phrase):
        teachers.load(settings(described, **changes))


def test_shipped_weights_of_another_network():
    given = config.NetworkConfig(network="lenet5_half", weights="mnist_lenet5")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        teachers.load(given)


@pytest.mark.parametrize(
    ("mean", "std", "phrase"),
    [
        ((127.5,), (63.75,), r"divide by 255: \(0\.5,\) and \(0\.25,\)"),
        ((0.5,), (63.75,), r"pixels are from 0 to 1"),
        ((-0.5,), (0.5,), "pixels are from 0 to 1"),
        ((0.5,), (0.0,), "above 0"),
        ((0.5,), (-1.0,), "above 0"),
        ((0.5, 0.5), (0.5, 0.5), "must be 1 numbers each"),
    ],
)
def test_one_check_of_pixels_for_both_ways_in(mean, std, phrase):
    with pytest.raises(ConfigError, match=phrase):
        settings("x", mean=mean, std=std)
    with pytest.raises(ConfigError, match=phrase):
        api.from_linen(Net(), variables_of(), image_shape=SHAPE, mean=mean, std=std)


# Files under linen's names.


def flat(separator="/"):
    found = weights.flatten(variables_of())
    return {
        key.replace("/", separator): np.asarray(leaf) for key, leaf in found.items()
    }


@pytest.mark.parametrize("separator", ["/", "."])
def test_linen_names(tmp_path, separator):
    save_file(flat(separator), tmp_path / "w.safetensors")
    assert teachers.load(settings(tmp_path / "w.safetensors"))


def to_int8(tensors):
    scaled = {key: (100 * leaf).astype(np.int8) for key, leaf in tensors.items()}
    return scaled | {f"{key}_scale": np.float32([0.01]) for key in tensors}


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (
            lambda t: t | {"params/first/scale": np.ones(1, np.float32)},
            "first/scale is",
        ),
        (lambda t: t | {"ema/first/kernel": t["params/first/kernel"]}, "ema/first/ker"),
        (lambda t: t | {"other": np.ones(1, np.float32)}, "other is not part"),
        (to_int8, "kernel_scale is not part of it"),
        (lambda t: {k: v.astype(np.int8) for k, v in t.items()}, "int8 instead of"),
        (lambda t: {k: v > 0 for k, v in t.items()}, "bool instead of"),
        (lambda t: {k: 0 * v for k, v in t.items()}, "same logits for every image"),
    ],
    ids=["scale", "ema", "other", "scales", "int8", "bool", "zeros"],
)
def test_what_a_file_holds_is_used_or_named(tmp_path, change, phrase):
    save_file(change(flat()), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=phrase):
        teachers.load(settings(tmp_path / "w.safetensors"))


def test_a_mapping_that_is_not_used(tmp_path):
    save_file(flat(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"config\.teacher\.mapping='m.json' is not"):
        teachers.load(settings(tmp_path / "w.safetensors", mapping="m.json"))


def test_a_network_of_ours_is_said_to_be_read(tmp_path, capsys):
    tensors, _ = weights.read_tensors(teachers.find("mnist_lenet5"))
    save_file(tensors, tmp_path / "w.safetensors")
    given = settings(tmp_path / "w.safetensors", module="", image_shape=(28, 28, 1))
    teachers.load(given)
    said = capsys.readouterr()
    assert "read as lenet5 (ReLU and max pooling" in said.out + said.err


# Folders of Orbax.


class State(train_state.TrainState):
    """With more than Flax's."""

    batch_stats: dict
    rng: jax.Array


def state():
    return State.create(
        apply_fn=None,
        params=variables_of()["params"],
        tx=optax.adam(1e-3),
        batch_stats={},
        rng=jax.random.PRNGKey(0),
    )


PARAMS = variables_of()["params"]
TREES = {
    "parameters": PARAMS,
    "numbers": {"params": PARAMS, "epoch": 3, "accuracy": 0.5, "name": "x"},
    "lists": {"params": PARAMS, "history": [0.1, 0.2]},
    "state": state(),
    "bundle": {
        "model": state(),
        "config": {"dimensions": np.array([5, 3]), "name": "dense"},
        "data": [np.ones(3)],
    },
    "key": {"params": PARAMS, "rng": jax.random.key(0)},
}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_orbax(tmp_path, name):
    ocp.save(tmp_path / "saved", TREES[name])
    teacher = teachers.load(settings(tmp_path / "saved"))
    np.testing.assert_array_equal(
        teacher.variables["params"]["last"]["kernel"], PARAMS["last"]["kernel"]
    )


@pytest.mark.parametrize("name", ["{}", "checkpoint_{}"])
def test_the_latest_of_a_series(tmp_path, name):
    for step in (9, 10):
        scaled = jax.tree.map(lambda leaf, step=step: leaf * step, PARAMS)
        ocp.save(tmp_path / name.format(step), {"params": scaled})
    found = teachers.load(settings(tmp_path)).variables["params"]["last"]["kernel"]
    np.testing.assert_allclose(found, 10 * PARAMS["last"]["kernel"])


@pytest.mark.parametrize(
    ("tree", "phrase"),
    [
        ({"params": PARAMS, "ema": PARAMS}, "ema/first/bias is not part of it"),
        ({"params": PARAMS, "swa": {"mean": np.ones(3)}}, "swa/mean is not part"),
        ({"a": {"params": PARAMS}, "b": {"params": PARAMS}}, "several networks .a, b"),
        ([PARAMS], "holds a list"),
        ({"params": [PARAMS, PARAMS]}, "variables|missing"),
        ({"params": {"first": 3}}, "missing"),
    ],
    ids=["ema", "swa", "several", "list", "parameters in a list", "a number"],
)
def test_trees_of_orbax_that_are_no_network(tmp_path, tree, phrase):
    ocp.save(tmp_path / "saved", tree)
    with pytest.raises(CheckpointError, match=phrase) as caught:
        teachers.load(settings(tmp_path / "saved"))
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "notes.txt", "3/notes.txt"])
def test_folders_of_others_are_never_to_be_deleted(tmp_path, content):
    folder = tmp_path / "theirs"
    (folder / content).parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    if content:
        (folder / content).write_text("x")
    with pytest.raises(CheckpointError, match="cannot be restored") as caught:
        teachers.load(settings(folder))
    assert "delete" not in str(caught.value)


def test_a_folder_that_is_called_like_a_file(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"folder|restored"):
            teachers.load(settings(tmp_path / name))


# Networks of tokens.


class Tokens(nn.Module):
    """Rows as tokens, mixed and averaged."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="embed")(x.reshape(*x.shape[:2], -1))
        x = nn.Dense(6, name="mix")(nn.relu(x))
        return nn.Dense(3, name="last")(nn.relu(x).mean(1))


def test_layers_of_tokens_are_no_feature_layers():
    from dfkd_jax.methods import soft_targets

    module = Tokens()
    teacher = api.from_linen(
        module, variables_of(module), image_shape=SHAPE, mean=0.5, std=0.5
    )
    found = soft_targets.find_feature_layer(config.TargetsConfig(), teacher)
    assert found.name == "last"
    with pytest.raises(ConfigError, match=r"'mix' gives tokens \(4, 6\).*last"):
        soft_targets.find_feature_layer(
            config.TargetsConfig(feature_layer="mix"), teacher
        )
    assert [item.layer for item in api.inspect(teacher)] == ["last"]


def test_a_token_network_without_a_vector():
    class All(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="only")(x.reshape(*x.shape[:2], -1)).mean(1)

    from dfkd_jax.methods import soft_targets

    teacher = api.from_linen(
        All(), variables_of(All()), image_shape=SHAPE, mean=0.5, std=0.5
    )
    layer = soft_targets.find_feature_layer(config.TargetsConfig(), teacher)
    assert layer.output_shape == (3,)  # The logits.
    with pytest.raises(ConfigError, match="gives tokens"):
        asked = config.TargetsConfig(feature_layer="only")
        soft_targets.find_feature_layer(asked, teacher)
    assert teacher.predict_proba(np.zeros((2, *SHAPE))).shape == (2, 3)
