"""State dicts as PyTorch's users save them, and what wrappers make of them."""

import io
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from dfkd_jax.errors import CheckpointError
from dfkd_jax.teachers import pytorch


def layers(*names):
    return {name: np.ones(2, np.float32) for name in names}


def read(tmp_path, tensors, **options):
    save_file(tensors, tmp_path / "w.safetensors")
    return pytorch.read_state_dict(tmp_path / "w.safetensors", **options)


@pytest.mark.parametrize(
    "names",
    [
        ("module.conv.w", "module.fc.w"),
        ("_orig_mod.conv.w", "_orig_mod.fc.w"),
        ("_orig_mod.module.conv.w", "_orig_mod.module.fc.w"),
        ("module._orig_mod.conv.w", "module._orig_mod.fc.w"),
        ("conv._orig_mod.w", "fc.w"),
        ("_fsdp_wrapped_module.conv.w", "fc._checkpoint_wrapped_module.w"),
        ("n_averaged", "module.conv.w", "module.fc.w"),
        ("model.conv.w", "model.fc.w"),
        ("net.conv.w", "net.fc.w"),
        ("model.net.conv.w", "model.net.fc.w"),
        ("backbone.conv.w", "head.fc.w"),
        ("module.backbone.conv.w", "module.head.fc.w"),
        ("conv.w", "fc.w"),
    ],
)
def test_names_that_wrappers_give(tmp_path, names):
    assert read(tmp_path, layers(*names)).keys() == {"conv.w", "fc.w"}


@pytest.mark.parametrize(
    "names",
    [
        ("module.w", "fc.w"),
        ("backbone.w", "head.w"),  # They would be one.
        ("backbone.w", "fc.w"),
        ("modules.a.w", "modules.b.w"),
    ],
)
def test_names_that_are_the_models_own(tmp_path, names):
    assert read(tmp_path, layers(*names)).keys() == set(names)


def test_names_that_a_mapping_has(tmp_path):
    names = ("model.conv.w", "model.fc.w")
    found = read(tmp_path, layers(*names), named=["model.conv"])
    assert found.keys() == set(names)


# Reparametrized weights.


def test_weight_norm_by_hand(tmp_path):
    direction = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    size = np.array([[10.0], [1.0]], np.float32)
    for names in (
        ("fc.weight_v", "fc.weight_g"),
        (
            "fc.parametrizations.weight.original1",
            "fc.parametrizations.weight.original0",
        ),
    ):
        found = read(tmp_path, dict(zip(names, (direction, size), strict=True)))
        np.testing.assert_allclose(found["fc.weight"], [[6, 8], [0, 1]])
        assert found.keys() == {"fc.weight"}
    whole = read(
        tmp_path,
        {"fc.weight_v": direction[:1], "fc.weight_g": np.asarray(10, np.float32)},
    )
    np.testing.assert_allclose(whole["fc.weight"], [[6, 8]])


def test_pruning_by_hand(tmp_path):
    tensors = {
        "fc.weight_orig": np.float32([[1, 2]]),
        "fc.weight_mask": np.float32([[0, 1]]),
    }
    np.testing.assert_array_equal(read(tmp_path, tensors)["fc.weight"], [[0, 2]])


def test_spectral_norm_by_hand(tmp_path):
    weight = np.float32([[3, 0], [0, 1]])
    first = np.float32([1, 0])
    for names in (
        ("weight_orig", "weight_u", "weight_v"),
        (
            "parametrizations.weight.original",
            "parametrizations.weight.0._u",
            "parametrizations.weight.0._v",
        ),
    ):
        tensors = dict(zip(names, (weight, first, first), strict=True))
        found = read(tmp_path, {f"fc.{name}": t for name, t in tensors.items()})
        np.testing.assert_allclose(found["fc.weight"], weight / 3)


@pytest.mark.parametrize(
    ("shapes", "phrase"),
    [
        ({"fc.parametrizations.weight.original": (2, 2)}, "not known"),
        ({"fc.weight_g": (2, 2), "fc.weight_v": (2, 2)}, "make no weight"),
        ({"fc.weight_g": (3, 1), "fc.weight_v": (2, 2)}, "make no weight"),
        ({"w_orig": (2, 2), "w_u": (3,), "w_v": (2,)}, "make no weight"),
        ({"w_g": (2, 1), "w_v": (2, 2), "w": (2, 2)}, "w is there, too"),
    ],
)
def test_parametrizations_that_make_nothing(tmp_path, shapes, phrase):
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=phrase):
        read(tmp_path, tensors)


def test_pytorch_folds_alike(tmp_path):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

    made = {
        "new": parametrizations.weight_norm(torch.nn.Conv2d(3, 4, 3)),
        "one": parametrizations.weight_norm(torch.nn.Linear(3, 1)),
        "spectral": parametrizations.spectral_norm(torch.nn.Conv2d(3, 4, 3)),
        "old_spectral": spectral_norm(torch.nn.Linear(3, 4)),
        "pruned": torch.nn.Linear(3, 4),
    }
    prune.random_unstructured(made["pruned"], "weight", amount=0.5)
    assert parametrize.is_parametrized(made["new"])
    for name, layer in made.items():
        layer.train()
        layer(torch.ones(2, 3, 5, 5) if layer.weight.ndim == 4 else torch.ones(2, 3))
        layer.eval()
        torch.save(layer.state_dict(), tmp_path / f"{name}.pth")
        found = pytorch.read_state_dict(tmp_path / f"{name}.pth")
        expected = layer.weight.detach().numpy()
        np.testing.assert_allclose(found["weight"], expected, rtol=1e-5, atol=1e-7)


# What is around the state dict.


@pytest.fixture
def save(tmp_path):
    torch = pytest.importorskip("torch")

    def save(content, name="w.pth.tar"):
        torch.save(content(torch), tmp_path / name)
        return tmp_path / name

    return save


def tensors(torch, *names):
    return {name: torch.ones(2) for name in names or ("conv.weight", "conv.bias")}


@pytest.mark.parametrize(
    "content",
    [
        lambda t: tensors(t),
        lambda t: {"state_dict": tensors(t), "best_acc1": t.tensor(71.0), "epoch": 3},
        lambda t: {"state_dict": tensors(t), "optimizer": {"state": tensors(t, "x")}},
        lambda t: {"model_ema": tensors(t)},
        lambda t: {"state_dict_ema": tensors(t, "module.conv.weight")},
        lambda t: {"model": {"n_averaged": t.tensor(3), **tensors(t, "module.a.b")}},
        lambda t: {**tensors(t), "version": 3, "name": None},
    ],
)
def test_state_dicts_are_found(save, content):
    found = pytorch.read_state_dict(save(content))
    assert all(array.shape == (2,) for array in found.values())
    assert not any(name.startswith("module.") for name in found)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (lambda t: {"model": tensors(t), "model_ema": tensors(t)}, "several sets of"),
        (
            lambda t: {"state_dict": tensors(t), "state_dict_ema": tensors(t)},
            r"content\['state_dict_ema'\]",
        ),
        (lambda t: {"state_dict": tensors(t), "scales": t.ones(3)}, "besides.*scales"),
        (lambda t: {**tensors(t), "more": {"x": t.ones(3)}}, "besides.*more"),
        (lambda t: {**tensors(t), "more": [t.ones(3)]}, "besides.*more"),
        (lambda t: {"state_dict": {**tensors(t), "m": [t.ones(2)]}}, "besides.*m"),
        (lambda t: {"generator": tensors(t)}, "only generator"),
        (lambda t: [t.ones(3)], "only list"),
    ],
)
def test_tensors_are_never_passed_over(save, content, phrase):
    with pytest.raises(CheckpointError, match=phrase):
        pytorch.read_state_dict(save(content))


def test_programs_of_torchscript(tmp_path):
    pytest.importorskip("torch")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, "x" * 99)
    (tmp_path / "w.pt").write_bytes(stream.getvalue())
    with pytest.raises(CheckpointError, match=r"TorchScript program.*torch\.jit\.load"):
        pytorch.read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_files_that_may_not_be_read(tmp_path, monkeypatch, name):
    pytest.importorskip("torch")
    path = tmp_path / name
    path.write_bytes(b"x" * 99)

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        pytorch.read_state_dict(path)


def test_prelu_of_pytorch():
    from dfkd_jax.teachers import mappings

    layer = {"weight": np.float32([0.25])}
    found = pytorch.convert(
        {f"act.{name}": array for name, array in layer.items()},
        mapping=mappings.parse({"PReLU_0": "act"}, origin="It"),
        expected={"params": {"PReLU_0": {"negative_slope": np.float32(0)}}},
    )
    slope = found["params"]["PReLU_0"]["negative_slope"]
    assert slope.shape == ()
    assert slope == 0.25
