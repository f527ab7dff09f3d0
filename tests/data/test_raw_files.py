"""Original files: rebuilding published bytes, and telling right files from wrong."""

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile

import pytest

from dfkd_jax.data import mirrors, raw_files
from dfkd_jax.errors import DataUnavailableError

# IDX by hand: zero, zero, unsigned byte, one dimension; length 3; labels 7, 2, 1.
IDX = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1])


@pytest.fixture
def tiny_mnist(monkeypatch, tmp_path):
    """A folder with four tiny files, published so as far as raw_files knows."""
    published = {}
    for name, file in raw_files.IDX_FILES["mnist"].items():
        packed = gzip.compress(IDX + name.encode(), mtime=0)
        (tmp_path / f"{name}.gz").write_bytes(packed)
        published[name] = dataclasses.replace(
            file,
            sha256=raw_files.sha256(packed),
            content_sha256=raw_files.sha256(IDX + name.encode()),
        )
    monkeypatch.setitem(raw_files.IDX_FILES, "mnist", published)
    return tmp_path


def test_published_gzip_by_hand():
    body = bytes([0b00000011, 0])  # Deflate: one empty, final block.
    tail = struct.pack("<2I", 0, 0)  # CRC-32 and length of nothing.
    stripped = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 3]) + body + tail
    rebuilt = mirrors.published_gzip(stripped, stored_name="ab", mtime=0x01020304)
    by_hand = bytes([0x1F, 0x8B, 8, 8, 4, 3, 2, 1, 0, 3]) + b"ab\0" + body + tail
    assert rebuilt == by_hand
    # A header that has a name loses it to the new one.
    again = mirrors.published_gzip(rebuilt, stored_name="xyz", mtime=0)
    assert again == b"\x1f\x8b\x08\x08\0\0\0\0\0\x03xyz\0" + body + tail


def test_published_gzip_keeps_the_content():
    rebuilt = mirrors.published_gzip(
        gzip.compress(IDX), stored_name="labels", mtime=848331398
    )
    with gzip.open(io.BytesIO(rebuilt)) as file:
        assert file.read() == IDX
        assert file.mtime == 848331398


@pytest.mark.parametrize("content", [b"", b"no gzip at all", b"\x1f\x8b\x08\x04" * 9])
def test_published_gzip_refuses_other_headers(content):
    with pytest.raises(DataUnavailableError, match="not a gzip file"):
        mirrors.published_gzip(content, stored_name="ab", mtime=0)


def test_right_files_are_found_packed_and_unpacked(tiny_mnist):
    found = raw_files.verified("mnist", tiny_mnist)
    assert len(found) == 4
    packed = tiny_mnist / "t10k-labels-idx1-ubyte.gz"
    unpacked = packed.with_suffix("")
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    found = raw_files.verified("mnist", tiny_mnist)
    assert found["t10k-labels-idx1-ubyte.gz"] == unpacked


def test_files_may_lie_in_a_folder_of_the_set(tiny_mnist):
    inner = tiny_mnist / "mnist"
    inner.mkdir()
    for path in tiny_mnist.glob("*.gz"):
        path.rename(inner / path.name)
    found = raw_files.verified("mnist", tiny_mnist)
    assert all(path.parent == inner for path in found.values())


@pytest.mark.parametrize("unpacked", [False, True])
def test_tampered_file_is_named_with_the_expected_checksum(tiny_mnist, unpacked):
    path = tiny_mnist / "train-labels-idx1-ubyte.gz"
    file = raw_files.IDX_FILES["mnist"]["train-labels-idx1-ubyte"]
    content, wanted = path.read_bytes(), file.sha256
    if unpacked:
        path.unlink()
        path = path.with_suffix("")
        content, wanted = IDX + path.name.encode(), file.content_sha256
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataUnavailableError) as caught:
        raw_files.verified("mnist", tiny_mnist)
    assert str(path) in str(caught.value)
    assert wanted in str(caught.value)


def test_missing_file_is_named(tiny_mnist):
    (tiny_mnist / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataUnavailableError, match=r"train-images-idx3-ubyte\.gz is"):
        raw_files.locate("mnist", tiny_mnist)


def test_content_of_packages_is_checked():
    assert mirrors.checked(b"abc", hashlib.sha256(b"abc").hexdigest(), "x") == b"abc"
    with pytest.raises(DataUnavailableError, match="labels has sha256"):
        mirrors.checked(b"abd", hashlib.sha256(b"abc").hexdigest(), "labels")


@pytest.fixture
def tiny_cifar10(monkeypatch, tmp_path):
    """An archive remade from one-image members, accepted by their md5 alone."""
    members = list(raw_files.CIFAR10_MEMBER_MD5)
    images = {member: bytes([i]) * 3072 for i, member in enumerate(members)}
    labels = {member: bytes([9 - i]) for i, member in enumerate(members)}
    md5s = {m: hashlib.md5(labels[m] + images[m]).hexdigest() for m in members}
    monkeypatch.setattr(raw_files, "CIFAR10_MEMBER_MD5", md5s)
    path = tmp_path / raw_files.CIFAR10_ARCHIVE
    path.write_bytes(mirrors.cifar10_archive(images, labels, ("airplane", "ship")))
    return path


def test_remade_cifar10_archive_has_label_then_planes(tiny_cifar10):
    assert raw_files.verified("cifar10", tiny_cifar10.parent)
    with tarfile.open(tiny_cifar10) as archive:
        member = archive.extractfile("cifar-10-batches-bin/data_batch_2.bin")
        assert member.read() == bytes([8]) + bytes([1]) * 3072


def test_cifar10_archive_with_other_members_is_refused(tiny_cifar10):
    packed = tiny_cifar10.read_bytes()
    content = bytearray(gzip.decompress(packed))
    content[content.index(bytes([8, 1, 1, 1])) + 5] ^= 1  # A pixel of data_batch_2.
    for damaged in (gzip.compress(bytes(content)), packed[: len(packed) // 2], b"junk"):
        tiny_cifar10.write_bytes(damaged)
        with pytest.raises(DataUnavailableError, match=raw_files.CIFAR10_SHA256):
            raw_files.verified("cifar10", tiny_cifar10.parent)


def test_cifar10_pixels_from_a_package_are_checked(tiny_cifar10):
    members = raw_files.CIFAR10_MEMBER_MD5
    images = {member: bytes(3072) for member in members}
    labels = {member: bytes(1) for member in members}
    with pytest.raises(DataUnavailableError, match=r"data_batch_1\.bin has md5"):
        mirrors.cifar10_archive(images, labels, ())


def test_published_cifar10_archive_is_known_by_its_own_checksum(monkeypatch, tmp_path):
    path = tmp_path / raw_files.CIFAR10_ARCHIVE
    path.write_bytes(b"as published")
    digest = hashlib.sha256(b"as published").hexdigest()
    monkeypatch.setattr(raw_files, "CIFAR10_SHA256", digest)
    assert raw_files.verified("cifar10", tmp_path) == {path.name: path}


def test_archive_larger_than_any_data_set_is_not_read(tiny_cifar10, monkeypatch):
    monkeypatch.setattr(raw_files, "MAX_UNPACKED", 6_000)  # Two members.
    with (
        tarfile.open(tiny_cifar10) as archive,
        pytest.raises(tarfile.ReadError, match="larger than any data set's"),
    ):
        list(raw_files.read_members(archive))
    with pytest.raises(DataUnavailableError, match="is not the published file"):
        raw_files.verified("cifar10", tiny_cifar10.parent)


@pytest.mark.parametrize("is_packed", [True, False])
def test_idx_files_are_read(tmp_path, is_packed):
    images = bytes([0, 0, 8, 3, *(0, 0, 0, 2), *(0, 0, 0, 1), *(0, 0, 0, 3)])
    contents = {"images-idx3": images + bytes(range(6)), "labels-idx1": IDX}
    for place in ("train", "t10k"):
        for part, content in contents.items():
            path = tmp_path / f"{place}-{part}-ubyte{'.gz' if is_packed else ''}"
            path.write_bytes(gzip.compress(content) if is_packed else content)
    found = raw_files.read("mnist", raw_files.locate("mnist", tmp_path))
    assert found.keys() == {"train", "test"}
    for pixels, labels in found.values():
        assert pixels.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
        assert labels.tolist() == [7, 2, 1]
