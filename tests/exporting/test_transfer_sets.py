import json
import pathlib
import zipfile

import described
import numpy as np
import pytest

from dfkd_jax.errors import CheckpointError, ExportError, StorageError
from dfkd_jax.exporting import transfer_sets
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet

MANIFEST = Manifest(
    num_images=12,
    shard_size=4,
    image_shape=(3, 2, 2),
    num_classes=5,
    seed=7,
    teacher_sha256="ab",
    settings={"synthesis": {"grid_factors": (4, 2, 1)}},
)
DESCRIPTION = described.description(
    (3, 2, 2), num_classes=5, mean=(0.1, 0.4), std=(0.3, 0.2), dataset="toys"
)
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def pixels():
    random = np.random.default_rng(0)
    return random.random((12, 3, 2, 2)), random.dirichlet(np.ones(5), 12)


@pytest.fixture
def folder(tmp_path, pixels):
    """A finished transfer set, its shards in no order."""
    transfer_set = TransferSet(tmp_path / "set", MANIFEST)
    images = DESCRIPTION.normalize(pixels[0])
    for shard in (2, 0, 1):
        rows = slice(4 * shard, 4 * shard + 4)
        transfer_set.add(shard, images[rows], pixels[1][rows])
    return transfer_set.folder


@pytest.fixture
def source(folder):
    return transfer_sets.open_source(folder, DESCRIPTION, NAMES)


def check(images, labels, pixels):
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(images, pixels[0], atol=1e-6)
    np.testing.assert_array_equal(labels, pixels[1].astype(np.float32))


def test_npz_holds_pixels_and_soft_labels_in_order(source, tmp_path, pixels):
    path = tmp_path / "set.npz"
    transfer_sets.write_npz(path, source)
    with np.load(path, allow_pickle=False) as data:
        check(data["images"], data["labels"], pixels)
        np.testing.assert_allclose(data["mean"], list(DESCRIPTION.mean))
        np.testing.assert_allclose(data["std"], list(DESCRIPTION.std))
        card = json.loads(str(data["card"]))
    assert card["class_names"] == list(NAMES)
    assert card["transfer_set_sha256"] == source.transfer_set.digest()
    assert card["settings"] == {"synthesis": {"grid_factors": [4, 2, 1]}}
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("file_bytes", [1, 2**20], ids=["3 files", "1 file"])
def test_tfds_reads_each_example(source, tmp_path, pixels, monkeypatch, file_bytes):
    import tensorflow_datasets

    monkeypatch.setattr(transfer_sets, "_FILE_BYTES", file_bytes)
    path = tmp_path / "exported"
    transfer_sets.write_tfds(path, source)
    assert len(list(path.glob("*.array_record-*"))) == (3 if file_bytes == 1 else 1)
    builder = tensorflow_datasets.builder_from_directory(path)
    examples = builder.as_data_source("train")
    assert len(examples) == builder.info.splits["train"].num_examples == 12
    images, labels = (
        np.stack([example[name] for example in examples]) for name in ("image", "label")
    )
    check(images, labels, pixels)
    assert json.loads((path / "card.json").read_text())["seed"] == 7


def test_tfds_replaces_an_earlier_export_alone(source, tmp_path):
    path = tmp_path / "exported"
    transfer_sets.write_tfds(path, source)
    assert transfer_sets.is_tfds(path)
    (path / "left_over").touch()
    transfer_sets.write_tfds(path, source)
    assert not (path / "left_over").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["exported", "set"]
    assert not transfer_sets.is_tfds(tmp_path / "set")


def test_damage_on_the_way_to_disk_is_found(source, tmp_path):
    """Comparison reads the file that was written, not what was meant."""
    path = tmp_path / "set.npz"
    transfer_sets.write_npz(path, source)
    transfer_sets.check_npz(path, source)
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # In the pixels.
    path.write_bytes(content)
    with pytest.raises(ExportError, match="images read back differs"):
        transfer_sets.check_npz(path, source)


def test_full_disk(source):
    with pytest.raises(StorageError, match="Cannot write /dev"):
        transfer_sets.write_npz(pathlib.Path("/dev/full/x.npz"), source)


def test_unfinished_set_is_refused(folder):
    index = folder / "shards.jsonl"
    index.write_text(index.read_text().splitlines()[0] + "\n")
    with pytest.raises(CheckpointError, match="4 of 12 images are made"):
        transfer_sets.open_source(folder, DESCRIPTION, NAMES)


def test_damaged_set_is_refused(folder):
    path = folder / "images-00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="shards 1 are damaged"):
        transfer_sets.open_source(folder, DESCRIPTION, NAMES)


def test_no_set(tmp_path):
    with pytest.raises(CheckpointError, match="holds no transfer set"):
        transfer_sets.open_source(tmp_path, DESCRIPTION, NAMES)
