import collections
import pathlib

import pytest

from dfkd_jax import config, limits
from dfkd_jax.errors import ConfigError, DfkdError, StorageError

Disk = collections.namedtuple("Disk", "total used free")
GIB = 2**30


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Compares settings with a machine of 8 GiB and a disk with 4 GiB to spare."""
    monkeypatch.setattr(limits, "total_memory", lambda: 8 * GIB)
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: Disk(9, 5, 4 * GIB))

    def run(kind="distillation", *, num_parameters=10, folder=tmp_path, **changes):
        values = config.default_config(kind)
        values.name = "mine"
        values.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in changes.items()}
        )
        limits.check(
            config.parse(values.to_dict()),
            image_shape=(28, 28, 1),
            num_classes=10,
            num_parameters=num_parameters,
            workdir=folder,
        )

    return run


@pytest.mark.parametrize("kind", [kind for kind in config.KINDS if kind != "teacher"])
def test_defaults_fit(check, kind):
    check(kind)


@pytest.mark.parametrize(
    ("kind", "changes", "parts"),
    [
        (
            "distillation",
            {"synthesis__num_images": 10**10, "synthesis__images_per_device": 10**5},
            ["10,000,000,000 pseudo samples of 784 numbers take 31.76 TB", "4.295 GB"],
        ),
        (
            "metadata",
            {"synthesis__num_images": 2_000_000},
            ["2,000,000 pseudo samples", "config.synthesis.num_images"],
        ),
        (
            "distillation",
            {"synthesis__num_images": 10**6, "synthesis__images_per_device": 10**6},
            ["config.synthesis.images_per_device=1000000", "12.54 GB", "8.59 GB"],
        ),
        (
            "real_data",
            {"distillation__batch_size": 10**7},
            ["config.distillation.batch_size=10000000", "31.36 GB of memory"],
        ),
        ("dafl", {"batch_size": 10**7}, ["config.batch_size=10000000"]),
        ("dfad", {"num_samples": 10**7}, ["config.num_samples=10000000"]),
        ("dafl", {"generator__latent_size": 10**6}, ["generator.latent_size=1000000"]),
        (
            "dafl",
            {"generator__features": (1, 10**9, 1)},
            ["config.generator.features=(1, 1000000000, 1)"],
        ),
        (
            "distillation",
            {"targets__candidates": 10**6, "synthesis__images_per_device": 800},
            ["config.targets.candidates=1000000"],
        ),
        (
            "distillation",
            {"synthesis__max_shift": 28},
            ["config.synthesis.max_shift=28", "28 × 28 pixels"],
        ),
        ("real_data", {"distillation__max_shift": 99}, ["distillation.max_shift=99"]),
        ("teacher", {"max_shift": 99, "num_parameters": 0}, ["config.max_shift=99"]),
        ("teacher", {"cutout": 99, "num_parameters": 0}, ["config.cutout=99"]),
        ("teacher", {"batch_size": 10**7, "num_parameters": 0}, ["config.batch_size"]),
        (
            "metadata",
            {"candidates": 10**6, "synthesis__images_per_device": 800},
            ["config.candidates=1000000"],
        ),
        ("real_data", {"num_parameters": 10**12}, ["config.student=lenet5_half", "TB"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(check, kind, changes, parts):
    with pytest.raises(DfkdError) as error:
        check(kind, **changes)
    assert len(str(error.value).splitlines()) == 1
    for part in parts:
        assert part in str(error.value)


def test_a_shard_that_export_would_call_damaged(check, monkeypatch):
    monkeypatch.setattr(limits, "total_memory", lambda: 2**50)
    with pytest.raises(ConfigError, match="more than 4,294,967,296"):
        check(synthesis__num_images=10**7, synthesis__images_per_device=10**7)


def test_what_is_made_needs_no_disk(check, tmp_path, monkeypatch):
    """An interrupted run whose set fills the disk goes on."""
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: Disk(9, 9, 0))
    folder = tmp_path / "transfer_set"
    folder.mkdir()
    changes = {"synthesis__num_images": 10, "synthesis__images_per_device": 10}
    (folder / "images-00000.npy").write_bytes(bytes(10 * 794 * 4 - 1))
    with pytest.raises(StorageError, match="0 bytes are free"):
        check(**changes)
    (folder / "labels-00000.npy").write_bytes(b"x")
    check(**changes)
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: Disk(0, 0, 0))
    (folder / "labels-00000.npy").unlink()
    check(**changes)


def test_memory_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "CGROUP", tmp_path / "memory.max")
    whole = limits.total_memory()
    assert whole > GIB / 4
    for text, expected in (("max\n", whole), (f"{GIB // 8}\n", GIB // 8)):
        (tmp_path / "memory.max").write_text(text)
        assert limits.total_memory() == expected


@pytest.mark.parametrize(
    ("images", "each", "taken"),
    [(1_000_000, 1, True), (1_000_001, 1, False), (2**40, 2**20, False)],
)
def test_shards_are_counted_before_anything_else(images, each, taken):
    values = config.default_config().to_dict()
    values["name"] = "mine"
    values["synthesis"] |= {"num_images": images, "images_per_device": each}
    if taken:
        config.parse(values)
    else:
        with pytest.raises(ConfigError, match=r"at most .* images are possible"):
            config.parse(values)


def test_a_folder_that_is_not_there_yet(check):
    check(folder=pathlib.Path("no/such/folder"))
