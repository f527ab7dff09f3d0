"""Networks of any framework by the name of their class, weights in their own files."""

import jax
import live_nets
import numpy as np
import pytest
from flax import nnx, traverse_util
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

from dfkd_jax import config, evaluation, pipeline
from dfkd_jax.errors import CheckpointError, ConfigError
from dfkd_jax.models import adapters
from dfkd_jax.teachers import weights as teachers

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def others_broadcast_as_they_like(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):
        yield


def off(tree, seed=3):
    """Every float somewhere else than where it starts, variances above 0."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (
            leaf + random.uniform(0.1, 0.4, leaf.shape).astype(np.float32)
            if leaf.dtype == np.float32
            else leaf
        ),
        tree,
    )


def needs(*names):
    missing = [name for name in names if not live_nets.HERE[name]]
    skip = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed")
    return [skip, pytest.mark.full]


def nnx_net():
    module = live_nets.NnxNet(width=5, rngs=nnx.Rngs(7))
    for kind in (nnx.Param, nnx.BatchStat):
        nnx.update(module, off(nnx.state(module, kind)))
    module.eval()
    return module


def in_orbax(path):
    module = nnx_net()
    ocp.save(path / "net", nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    return "NnxNet", path / "net", module(IMAGES)


def in_orbax_beside_others(path):
    module = nnx_net()
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    state = nnx.to_pure_dict(nnx.state(module, kinds))
    ocp.save(path / "net", {"model": state, "step": np.zeros((), np.int32)})
    return "NnxNet", path / "net", module(IMAGES)


def nnx_safetensors(path):
    module = nnx_net()
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    state = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module, kinds)))
    tensors = {".".join(map(str, k)): np.asarray(v) for k, v in state.items()}
    save_file(tensors, path / "net.safetensors")
    return "NnxNet", path / "net.safetensors", module(IMAGES)


def torch_file(path, *, suffix=".pt", wrap=lambda state: state):
    import torch

    module = live_nets.TorchNet(width=5)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.3 + 0.1)
    file = path / f"net{suffix}"
    if suffix == ".safetensors":
        tensors = {k: v.numpy() for k, v in module.state_dict().items()}
        save_file(tensors, file)
    else:
        torch.save(wrap(module.state_dict()), file)
    with torch.no_grad():
        images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
        return "TorchNet", file, module.eval()(images).numpy()


def torch_safetensors(path):
    return torch_file(path, suffix=".safetensors")


def torch_checkpoint(path):
    def wrap(state):
        return {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}

    return torch_file(path, suffix=".pth", wrap=wrap)


def equinox_file(path):
    import equinox as eqx

    made = eqx.nn.make_with_state(live_nets.EquinoxNet)(width=5, key=jax.random.key(4))
    made = off(eqx.filter(made, eqx.is_inexact_array)), made
    module, state = eqx.combine(*made)
    eqx.tree_serialise_leaves(path / "net.eqx", (module, state))
    still = eqx.nn.inference_mode(module)
    logits, _ = jax.vmap(
        still, in_axes=(0, None), out_axes=(0, None), axis_name="batch"
    )(IMAGES.transpose(0, 3, 1, 2), state)
    return "EquinoxNet", path / "net.eqx", logits


def keras_file(path):
    model = live_nets.keras_net(width=5)
    model(IMAGES)
    for weight in model.weights:
        weight.assign(off(np.asarray(weight.value)))
    model.save(path / "net.keras")
    return "keras_net", path / "net.keras", model(IMAGES)


WAYS = [
    in_orbax,
    pytest.param(in_orbax_beside_others, marks=pytest.mark.full),
    nnx_safetensors,
    pytest.param(torch_file, marks=needs("torch", "torchax")),
    pytest.param(torch_safetensors, marks=needs("torch", "torchax")),
    pytest.param(torch_checkpoint, marks=needs("torch", "torchax")),
    pytest.param(equinox_file, marks=needs("equinox")),
    pytest.param(
        keras_file,
        marks=[
            *needs("keras"),
            # Of Keras itself, where it saves.
            pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
        ],
    ),
]


def settings(name, path, **changes):
    return config.NetworkConfig(
        module=f"live_nets:{name}",
        weights=str(path),
        image_shape=(8, 8, 2),
        mean=(0.5, 0.5),
        std=(0.25, 0.25),
        arguments={"width": 5},
        **changes,
    )


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_read_by_the_networks_own_names(way, tmp_path):
    name, path, expected = way(tmp_path)
    teacher = teachers.load(settings(name, path))
    np.testing.assert_allclose(teacher.logits(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert len(teacher.layers()) == 2
    # And again from the package's own file, by the name of the class alone.
    teacher.save(tmp_path / "own.safetensors")
    found = evaluation.load_checkpoint(
        tmp_path / "own.safetensors", module=f"live_nets:{name}"
    )[1]
    np.testing.assert_array_equal(found.logits(IMAGES), teacher.logits(IMAGES))


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_another_network_are_refused(way, tmp_path):
    name, path, _ = way(tmp_path)
    given = settings(name, path)
    object.__setattr__(given, "arguments", {"width": 6})
    with pytest.raises(CheckpointError, match=r"not of this network|does not fit"):
        teachers.load(given)


def test_a_mapping_is_not_needed(tmp_path):
    name, path, _ = nnx_safetensors(tmp_path)
    with pytest.raises(ConfigError, match=r"mapping=.*knows its own names"):
        teachers.load(settings(name, path, mapping="map.json"))


@pytest.mark.full
def test_a_student_of_another_framework_by_name(tmp_path):
    name, path, _ = nnx_safetensors(tmp_path)
    tiny = {"num_images": 8, "images_per_device": 8, "num_steps": 2}
    asked = config.ExperimentConfig(
        name="live",
        teacher=settings(name, path),
        student=config.NetworkConfig(module="live_nets:NnxNet", arguments={"width": 3}),
        synthesis=config.SynthesisConfig(**tiny, steps_per_call=2),
        distillation=config.DistillationConfig(
            num_steps=2, batch_size=8, warmup_steps=0
        ),
        data=config.DataConfig(dataset=""),
    )
    workdir = tmp_path / "run"
    assert pipeline.run(asked, workdir, command="test") == 0
    _, student = evaluation.load_checkpoint(workdir, module="live_nets:NnxNet")
    assert student.variables["params"]["output"]["kernel"].shape == (48, 4)
    by_seed = [
        adapters.create("live_nets:NnxNet", seed=seed).variables for seed in (0, 0, 1)
    ]
    first, same, other = (tree["params"]["output"]["kernel"] for tree in by_seed)
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("live_nets:NnxNett", r"no network of linen, NNX.*NnxNet.*Did you mean"),
        ("live_nets:HERE", "no network of linen"),
        ("live_nets:needs", "no network of linen"),
    ],
)
def test_what_is_no_network(module, said):
    with pytest.raises(ConfigError, match=said):
        adapters.create(module)
