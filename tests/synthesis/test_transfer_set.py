import dataclasses
import os

import numpy as np
import pytest

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import hosts
from dfkd_jax.synthesis import transfer_set as storage
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet

MANIFEST = Manifest(
    num_images=12,
    shard_size=4,
    image_shape=(3, 2, 1),
    num_classes=5,
    seed=0,
    teacher_sha256="ab",
    settings={"synthesis": {"grid_factors": (4, 2, 1), "learning_rate": 0.1}},
)


def shard(number):
    random = np.random.default_rng(number)
    return (
        random.normal(size=(4, 3, 2, 1)).astype(np.float32),
        random.dirichlet(np.ones(5), 4).astype(np.float32),
    )


@pytest.fixture
def full(tmp_path):
    transfer_set = TransferSet(tmp_path, MANIFEST)
    for number in (2, 0, 1):
        transfer_set.add(number, *shard(number))
    return transfer_set


def test_starts_empty_and_knows_what_is_missing(tmp_path):
    transfer_set = TransferSet(tmp_path / "new" / "folder", MANIFEST)
    assert len(transfer_set) == 0
    assert transfer_set.missing() == [0, 1, 2]
    assert not transfer_set.verify()


def test_gather_over_shards_returns_what_was_added(full, tmp_path):
    indices = np.array([11, 0, 5, 5, 3, 8])
    images, labels = (
        np.concatenate(x) for x in zip(*map(shard, range(3)), strict=True)
    )
    for transfer_set in (full, TransferSet(tmp_path, MANIFEST)):
        found_images, found_labels = transfer_set.gather(indices)
        np.testing.assert_array_equal(found_images, images[indices])
        np.testing.assert_array_equal(found_labels, labels[indices])


def test_gathered_arrays_are_copies(full):
    full.gather(np.arange(4))[0][:] = 0
    np.testing.assert_array_equal(full.gather(np.arange(4))[0], shard(0)[0])
    assert not full.verify()


def test_resumes_with_what_is_missing(tmp_path):
    TransferSet(tmp_path, MANIFEST).add(1, *shard(1))
    again = TransferSet(tmp_path, MANIFEST)
    assert again.missing() == [0, 2]
    assert len(again) == 4


def test_a_lost_file_makes_its_shard_missing(full, tmp_path):
    full.paths(1)[1].unlink()
    assert TransferSet(tmp_path, MANIFEST).missing() == [1]


def test_unfinished_line_counts_as_missing_and_does_not_swallow_the_next(
    full, tmp_path
):
    index = tmp_path / "shards.jsonl"
    index.write_bytes(index.read_bytes()[:-20])  # Shard 1 was added last.

    again = TransferSet(tmp_path, MANIFEST)
    assert again.missing() == [1]
    again.add(1, *shard(1))

    assert not TransferSet(tmp_path, MANIFEST).missing()


def test_file_without_a_line_is_made_again(tmp_path):
    """What a process leaves that is killed between the files and the line."""
    transfer_set = TransferSet(tmp_path, MANIFEST)
    transfer_set.add(0, *shard(0))
    (tmp_path / "shards.jsonl").unlink()
    assert TransferSet(tmp_path, MANIFEST).missing() == [0, 1, 2]


@pytest.mark.parametrize("part", [0, 1], ids=["images", "labels"])
def test_flipped_byte_is_found_and_mended(full, tmp_path, part):
    digest = full.digest()
    indices = np.arange(12)
    before = full.gather(indices)
    path = full.paths(1)[part]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)

    again = TransferSet(tmp_path, MANIFEST)
    again.gather(indices)
    assert again.verify() == [1]
    assert again.missing() == [1]
    again.add(1, *shard(1))

    assert not again.verify()
    assert again.digest() == digest
    for old, new in zip(before, again.gather(indices), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_sha256": "cd"},
        {"seed": 1},
        {"num_images": 16},
        {"settings": {"synthesis": {"grid_factors": (2, 1), "learning_rate": 0.1}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_foreign_manifest_is_refused(full, tmp_path, change):
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*other settings"):
        TransferSet(tmp_path, dataclasses.replace(MANIFEST, **change))


def test_digest_depends_on_content_alone(full, tmp_path):
    other = TransferSet(tmp_path / "other", MANIFEST)
    for number in range(3):
        other.add(number, *shard(number))
    assert other.digest() == full.digest() == TransferSet(tmp_path, MANIFEST).digest()

    images, labels = shard(2)
    other.add(2, np.nextafter(images, np.float32(9)), labels)
    assert other.digest() != full.digest()


def test_gather_keeps_few_files_open(full, monkeypatch):
    monkeypatch.setattr(storage, "OPEN_FILES", 2)
    before = len(os.listdir("/proc/self/fd"))
    for indices in (np.arange(12), np.arange(12)[::-1], np.arange(12)):
        images, labels = full.gather(indices)
        for place, index in enumerate(indices):
            number, row = divmod(int(index), MANIFEST.shard_size)
            np.testing.assert_array_equal(images[place], shard(number)[0][row])
            np.testing.assert_array_equal(labels[place], shard(number)[1][row])
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    full.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_stays_open_behind_a_forgotten_set(full, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    TransferSet(tmp_path, MANIFEST).gather(np.arange(12))
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_that_became_shorter_is_named(full):
    path = full.paths(1)[0]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=f"{path}.*too short.*same command"):
        full.gather(np.arange(12))


def test_index_files_of_several_processes_are_put_together(tmp_path, monkeypatch):
    first = TransferSet(tmp_path, MANIFEST)
    first.add(0, *shard(0))
    with monkeypatch.context() as other_process:
        other_process.setattr(hosts, "_index", 1)
        TransferSet(tmp_path, MANIFEST).add(2, *shard(2))
    assert (tmp_path / "shards-0001.jsonl").is_file()
    assert first.missing() == [1, 2]
    first.refresh()
    assert first.missing() == [1]

    again = TransferSet(tmp_path, MANIFEST)
    assert again.verify() == []
    assert not (tmp_path / "shards-0001.jsonl").exists()
    assert TransferSet(tmp_path, MANIFEST).missing() == [1]


def test_arrays_of_somebody_else_are_left_as_they_are(tmp_path):
    (tmp_path / "images-00000.npy").write_text("mine")
    with pytest.raises(StorageError, match=r"00000\.npy was not made by dfkd_jax"):
        TransferSet(tmp_path, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["images-00000.npy"]


def test_a_set_whose_manifest_is_gone_is_still_its_own(full, tmp_path):
    (tmp_path / "manifest.json").unlink()
    assert not TransferSet(tmp_path, MANIFEST).missing()


def test_a_shard_that_may_not_be_read_is_not_made_again(full, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.files, "sha256", refuse)
    with pytest.raises(CheckpointError, match=r"npy cannot be read \(Permission"):
        full.verify()
