"""Whatever the bytes, a parser takes them or refuses them with the project's own error.

The recorded run with 100,000 inputs a parser is `python tests/fuzz/fuzz.py`.
"""

import dataclasses
import io
import json
import random
import zipfile
import zlib

import mutate
import numpy as np
import parsers
import pytest
from safetensors.numpy import save as serialize

from dfkd_jax.data import held_out
from dfkd_jax.errors import CheckpointError, DataUnavailableError, DfkdError
from dfkd_jax.runtime import arrays, files, weights

hypothesis = pytest.importorskip("hypothesis", reason="comes with the extra tests")
from hypothesis import strategies  # noqa: E402 - If it is there.

FEW = hypothesis.settings(
    max_examples=60, deadline=None, derandomize=True, database=None
)
# They take nothing but published files, which are not here.
REFUSED = ("original IDX files", "CIFAR-10 archive")


def seeds_of(name):
    if name == "PyTorch archive":
        pytest.importorskip("torch", reason="the extra torch")
    return parsers.TARGETS[name][1]()


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_valid_files_are_taken(name):
    target = parsers.TARGETS[name][0]
    taken = [parsers.call(target, data) for data in seeds_of(name)]
    assert any(taken) == (name not in (*REFUSED, "package"))


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_any_bytes(name):
    target, seeds = parsers.TARGETS[name][0], seeds_of(name)

    @FEW
    @hypothesis.given(strategies.binary(max_size=200))
    def check(data):
        parsers.call(target, data)
        parsers.call(target, seeds[0][:64] + data)

    check()


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_nearly_valid_files(name):
    target, seeds = parsers.TARGETS[name][0], seeds_of(name)

    @FEW
    @hypothesis.given(strategies.integers(0, 2**64 - 1))
    def check(seed):
        parsers.call(target, mutate.mutated(seeds, random.Random(seed)))

    check()


JSON = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=5),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = (
    "network",
    "num_classes",
    "image_shape",
    "mean",
    "std",
    "dataset",
    "arguments",
)


@FEW
@hypothesis.given(
    strategies.dictionaries(strategies.sampled_from((*FIELDS, "more")), JSON)
)
def test_any_description(fields):
    try:
        found = weights.describe(fields, source="it")
    except CheckpointError as error:
        assert "its description is damaged" in str(error)
    else:
        assert len(found.image_shape) == 3
        assert min(found.std) > 0


@FEW
@hypothesis.given(JSON.filter(lambda value: isinstance(value, dict)))
def test_a_sealed_object_comes_back_and_a_changed_one_does_not(value):
    path = parsers.folder() / "sealed.json"
    value.pop(files.CHECKSUM, None)
    files.write_json(path, value, sealed=True)
    assert repr(files.read_object(path)) == repr(json.loads(json.dumps(value)))
    changed = json.loads(path.read_text()) | {"more": 1}
    path.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="not what was written"):
        files.read_object(path)


def test_a_header_that_claims_to_be_huge(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="its header claims 1,099,511,627,776"):
        weights.read_tensors(path)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("/a",), ("a//b",)])
def test_tensors_that_are_in_each_others_way(tmp_path, names):
    path = tmp_path / "weights.safetensors"
    tensors = {name: np.ones(1, np.float32) for name in names}
    path.write_bytes(serialize(tensors, {weights.FORMAT: "{}"}))
    with pytest.raises(CheckpointError, match="has no place among the others"):
        weights.load(path)


def test_a_flipped_bit_in_weights_is_found(tmp_path):
    path = tmp_path / "weights.safetensors"
    variables = {"params": {"a": np.ones(4, np.float32)}}
    weights.save(path, variables, parsers.DESCRIPTION, run="ab")
    assert weights.read(path).run == "ab"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not what was written"):
        weights.load(path)


def npy(shape, content=b""):
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    size = arrays.ALWAYS_ALLOWED + 2**20
    shape = (size // 4, 2, 2, 1)
    write_zip(path, {"images.npy": npy(shape, bytes(size))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < size / arrays.MAX_GROWTH
    with pytest.raises(DataUnavailableError, match="may be"):
        held_out._read_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((10**12,), b"abc"), "is shorter"),
        (npy((2,), b"abc"), "not of the size that it claims"),
        (npy((-1,), b"abc"), "not of the size that it claims"),
        (b"\x93NUMPY\x03\x00", "version"),
        (b"", "EOF"),
    ],
)
def test_arrays_that_are_not_what_they_claim(tmp_path, content, message):
    path = tmp_path / "test.npz"
    write_zip(path, {"images.npy": content})
    with pytest.raises(ValueError, match=message):
        arrays.read_npz(path, ("images",))


def test_objects_are_refused(tmp_path):
    path = tmp_path / "test.npz"
    np.savez(path, images=np.array([{}, []], object), labels=np.arange(2))
    with pytest.raises(ValueError, match="object"):
        arrays.read_npz(path, ("images",))
    assert arrays.read_npz(path, ("labels",))["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">i8", "|u1", "|b1"])
def test_arrays_come_back(tmp_path, order, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype, order=order)
    np.savez_compressed(tmp_path / "a.npz", a=array)
    found = arrays.read_npz(tmp_path / "a.npz", ("a", "b"))
    np.testing.assert_array_equal(found["a"], array)
    assert list(found) == ["a"]


def test_links_of_a_transfer_set_are_not_followed(tmp_path):
    made = parsers.TransferSet(tmp_path / "set", parsers.MANIFEST)
    images = np.zeros((2, 2, 2, 1))
    made.add(0, images, np.full((2, 3), 1 / 3))
    made.add(1, images, np.full((2, 3), 1 / 3))
    path = made.paths(1)[0]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    again = parsers.TransferSet.existing(tmp_path / "set")
    assert again.missing() == [1]
    with pytest.raises(CheckpointError, match="Cannot read"):
        again.gather(np.arange(2, 4))


def test_shards_of_another_set_do_not_count(tmp_path):
    made = parsers.TransferSet(tmp_path / "set", parsers.MANIFEST)
    made.add(0, np.zeros((2, 2, 2, 1)), np.full((2, 3), 1 / 3))
    (tmp_path / "set" / "manifest.json").unlink()
    other = dataclasses.replace(parsers.MANIFEST, seed=1)
    assert parsers.TransferSet(tmp_path / "set", other).missing() == [0, 1]


def test_a_tensor_larger_than_its_file(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra torch")
    path = tmp_path / "theirs.pt"
    torch.save({"a": torch.zeros(1).expand(10**10)}, path)
    with pytest.raises(CheckpointError, match="larger than the file"):
        parsers.pytorch.read_state_dict(path)


def test_a_compressed_pytorch_archive(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra torch")
    torch.save({"a": torch.zeros(1_000)}, tmp_path / "plain.pt")
    path = tmp_path / "theirs.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    write_zip(path, members, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        parsers.pytorch.read_state_dict(path)


def test_an_archive_larger_than_any_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(parsers.raw_files, "MAX_UNPACKED", 50)
    with pytest.raises(DataUnavailableError, match="unreadable package"):
        parsers.package(parsers._tar({"a": bytes(40), "b": bytes(40)}))


def test_mutations_reach_valid_and_invalid_files():
    """Else the fuzzer would try nothing but the first check of each parser."""
    rng, counts = random.Random(0), {True: 0, False: 0}
    target, seeds = parsers.safetensors, parsers.TARGETS["safetensors"][1]()
    messages = set()
    for _ in range(300):
        data = mutate.mutated(seeds, rng)
        try:
            target(data)
            counts[True] += 1
        except DfkdError as error:
            counts[False] += 1
            messages.add(zlib.crc32(str(error).encode()))
    assert min(counts.values()) > 10
    assert len(messages) > 20
