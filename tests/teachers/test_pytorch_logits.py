"""Equal logits, PyTorch against JAX. Skipped where PyTorch is not installed."""

import datetime
import io
import pathlib
import pickle
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import linen_nets
import numpy as np
import pytest

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models import registry
from dfkd_jax.runtime import weights
from dfkd_jax.teachers import pytorch, torch_files

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra torch)")

import torch_nets  # noqa: E402

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
LENET = (1, 28, 28)
CIFAR = (3, 32, 32)
CASES = {
    "lenet5": (torch_nets.LeNet5, (), LENET),
    "lenet5_half": (torch_nets.LeNet5, ((3, 8),), LENET),
    "alexnet": (torch_nets.AlexNet, (), CIFAR),
    "alexnet_half": (torch_nets.AlexNet, ((24, 64, 96, 96, 64), (256, 128)), CIFAR),
    "alexnet_wang_half": (
        torch_nets.AlexNetWang,
        ((32, 96, 192, 128, 128), (2048, 2048)),
        CIFAR,
    ),
    "resnet18": (torch_nets.ResNet, ((2, 2, 2, 2),), CIFAR),
    "resnet34": (torch_nets.ResNet, ((3, 4, 6, 3), True), CIFAR),
}


def shapes(module, image_shape):
    channels, height, width = image_shape
    images = jnp.zeros((1, height, width, channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)


def check_logits(network, module, variables, image_shape):
    """Both networks on the same images, to 1e-5 of the largest logit."""
    images = torch.randn(2, *image_shape, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected = network(images).numpy()
    ours = jax.jit(module.apply)(variables, images.numpy().transpose(0, 2, 3, 1))
    scale = np.abs(expected).max()
    # Logits that depend on the image.
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * scale
    assert np.abs(ours - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize("name", CASES)
def test_equal_logits(name, tmp_path):
    make, arguments, image_shape = CASES[name]
    network = torch_nets.randomized(make(*arguments))
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    module = registry.create(name)
    expected = shapes(module, image_shape)
    variables = pytorch.load(path, network=name, expected=expected)
    check_logits(network, module, variables, image_shape)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    assert weights.count(variables) == parameters


def test_equal_logits_of_a_network_of_ones_own(tmp_path):
    network = torch_nets.randomized(torch_nets.Custom(), seed=5)
    torch.save({"model": network.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    mapping = tmp_path / "mapping.json"
    mapping.write_text(linen_nets.CUSTOM_MAPPING)
    module = linen_nets.Custom()
    variables = pytorch.load(
        tmp_path / "w.pth",
        network="linen_nets:Custom",
        expected=shapes(module, (3, 16, 12)),
        mapping=str(mapping),
    )
    check_logits(network, module, variables, (3, 16, 12))


@pytest.mark.parametrize(
    ("name", "make", "arguments"),
    [
        ("custom", torch_nets.Custom, ()),
        ("lenet5_half_dafl", torch_nets.LeNet5, ((3, 8), (60, 42))),
    ],
)
def test_recorded_logits_are_pytorchs(name, make, arguments):
    from safetensors.torch import load_file

    network = make(*arguments).eval()
    network.load_state_dict(load_file(FIXTURES / f"{name}.safetensors"))
    recorded = load_file(FIXTURES / f"{name}_recorded.safetensors")
    with torch.no_grad():
        logits = network(recorded["images"])
    torch.testing.assert_close(logits, recorded["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", [*torch_files.NESTED_UNDER, None])
def test_where_the_state_dict_lies(tmp_path, key):
    linear = torch.nn.DataParallel(torch.nn.Linear(3, 2))
    content = linear.state_dict()
    if key is not None:
        content = {"epoch": 7, "optimizer": {"lr": 0.1}, key: content}
    torch.save(content, tmp_path / "w.pt")
    read = pytorch.read_state_dict(tmp_path / "w.pt")
    assert {name: array.shape for name, array in read.items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32(tmp_path, dtype):
    torch.save({"w": torch.tensor([1.5, -2.0], dtype=dtype)}, tmp_path / "w.pt")
    read = pytorch.read_state_dict(tmp_path / "w.pt")["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [1.5, -2])


def test_not_a_number_is_refused(tmp_path):
    torch.save({"fc.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"tensor fc\.weight holds NaN"):
        pytorch.read_state_dict(tmp_path / "w.pt")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="tensor w is sparse"):
        pytorch.read_state_dict(tmp_path / "w.pt")


class Code:
    """Pickles as a call."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("touched"),)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("what", ["a call", "a call in a module", "a plain pickle"])
def test_code_is_never_run(tmp_path, monkeypatch, what, modern):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    content = {"w": torch.zeros(1), "x": Code()}
    if what == "a call in a module":
        content = torch.nn.Linear(2, 2)
        content.code = Code()
    if what == "a plain pickle":
        path.write_bytes(pickle.dumps(Code()))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match=r"damaged.*save model\.state_dict\(\)"):
        pytorch.read_state_dict(path)
    assert not (tmp_path / "touched").exists()


class Whole(torch.nn.Module):
    """A class that nothing may import, with parts of every kind."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
        self.norm = torch.nn.BatchNorm2d(2)
        self.head = torch.nn.Linear(2, 3, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("passing", torch.arange(4.0), persistent=False)
        self.options, self.dropped = {"width": 2}, None

    def __setstate__(self, state):
        raise AssertionError("code of the file is run")


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize(
    "around",
    [
        lambda model: model,
        torch.nn.DataParallel,
        lambda model: {"epoch": 3, "model": model, "when": datetime.date(2020, 1, 1)},
        lambda model: {"state_dict": model.state_dict(), "args": pathlib.Path("x")},
        lambda model: {
            "model": model,
            "optimizer": torch.optim.Adam(model.parameters()),
            "accuracy": np.float64(0.9),
        },
    ],
)
def test_whole_models_are_read_without_their_code(tmp_path, around, modern):
    model = Whole()
    torch.save(around(model), tmp_path / "w.pt", _use_new_zipfile_serialization=modern)
    read = pytorch.read_state_dict(tmp_path / "w.pt")
    expected = model.state_dict()
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_models_beside_each_other_are_not_chosen_from(tmp_path):
    torch.save({"model": Whole(), "model_ema": Whole()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="several sets of weights"):
        pytorch.read_state_dict(tmp_path / "w.pt")


def test_parts_of_a_model_that_cannot_be_read_are_not_passed_over(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.table = torch.eye(2).to_sparse()
    torch.save(model, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="tensors by _rebuild_sparse_tensor"):
        pytorch.read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "os.system",
        "posix.system",
        "importlib.import_module",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.linear.Linear",
        "torch._utils._import_dotted_name",
        "collections.Counter",
    ],
)
def test_names_in_a_file_are_not_imported(name):
    module, _, last = name.rpartition(".")
    found = torch_files.Unpickler(io.BytesIO()).find_class(module, last)
    assert (found.__module__, found.__name__) == (module, last)
    assert type(found("echo", 1)).__mro__[1] is torch_files.Unknown


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\nr\xff\xff\xff\x0f.",  # Kept in place 2²⁸ - 1.
        b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b".",  # 64 GiB of bytes.
        b"\x80\x04\x8d" + (2**36).to_bytes(8, "little") + b".",  # As much text.
    ],
)
@pytest.mark.parametrize("modern", [True, False])
def test_large_numbers_in_small_files_take_no_memory(tmp_path, program, modern):
    path = tmp_path / "w.pt"
    if modern:
        torch.save(Whole(), path)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, held in files.items():
                archive.writestr(name, program if name.endswith(".pkl") else held)
    else:
        path.write_bytes(program)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="save model"):
        pytorch.read_state_dict(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and more"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pt is damaged"):
        pytorch.read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "held"),
    [({"epoch": 3, "lr": 0.1}, "epoch, lr"), ([1, 2], "list"), ({}, "dict")],
)
def test_files_without_a_state_dict_say_what_they_hold(tmp_path, content, held):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=f"no state dict, only {held}: save"):
        pytorch.read_state_dict(tmp_path / "w.pt")
