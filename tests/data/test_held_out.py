"""Test sets of one's own: read as they are, or refused with the reason."""

import numpy as np
import pytest

from dfkd_jax.config import DataConfig
from dfkd_jax.data import held_out
from dfkd_jax.errors import CheckpointError, ConfigError, DataUnavailableError
from dfkd_jax.runtime import descriptions

DESCRIPTION = descriptions.Description(
    network="lenet5",
    num_classes=3,
    image_shape=(4, 4, 1),
    mean=(0.5,),
    std=(0.5,),
    dataset="",
)


@pytest.fixture
def save(tmp_path):
    """Writes a file and returns the settings that name it."""

    def write(**changes):
        arrays = {
            "images": np.arange(160, 256, dtype=np.uint8).reshape(6, 4, 4, 1),
            "labels": np.array([0, 1, 2, 0, 1, 2], np.int8),
        } | changes
        arrays = {key: value for key, value in arrays.items() if value is not None}
        np.savez(tmp_path / "own.npz", **arrays)
        return DataConfig(dataset="", file=str(tmp_path / "own.npz"))

    return write


def load(settings):
    return held_out.load(settings, split="test", report=lambda line: None)


def test_file_is_read_as_it_is(save):
    settings = save()
    found = held_out.preflight(settings)
    assert (found.ready, found.obtainable) == (True, True)
    own = load(settings)
    assert (own.name, own.class_names) == ("own", ())
    np.testing.assert_array_equal(own.images.ravel(), np.arange(160, 256))
    assert own.labels.dtype == np.int32
    own.check(DESCRIPTION, source="The student")
    # One pixel or one label makes another set of it.
    other = own.images.copy()
    other[0, 0, 0, 0] += 1
    digests = {own.sha256, load(save(images=other)).sha256}
    digests.add(load(save(labels=own.labels[::-1].copy())).sha256)
    assert len(digests) == 3
    assert load(save()).sha256 == own.sha256


def test_floats_from_0_to_1(save):
    images = np.linspace(0, 1, 96).reshape(6, 4, 4, 1)
    np.testing.assert_array_equal(load(save(images=images)).images, images)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"images": np.zeros((6, 4, 4), np.uint8)},
            r"npz: images are \(6, 4, 4\)",
        ),
        ({"images": np.full((6, 4, 4, 1), 255.0)}, r"go from 255 to 255, expected"),
        ({"images": np.ones((6, 4, 4, 1), np.uint8)}, "white may be 1, not 255"),
        ({"labels": np.full(6, 2**40)}, "labels go up to 1099511627776"),
        ({"labels": np.arange(6) - 1}, "1 labels are below 0"),
        ({"labels": None}, r"own\.npz has no array called labels: .*numpy\.savez"),
        ({"images": np.array(["x"])}, r"own\.npz is no \.npz file of numbers"),
    ],
)
def test_other_arrays_are_refused(save, changes, problem):
    with pytest.raises(DataUnavailableError, match=problem):
        load(save(**changes))


def test_file_that_may_not_be_read_is_not_called_damaged(save, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    settings = save()
    monkeypatch.setattr(held_out.arrays.zipfile, "ZipFile", refuse)
    problem = r"own\.npz cannot be read \(Permission denied\): check"
    with pytest.raises(DataUnavailableError, match=problem):
        load(settings)


def test_files_that_are_none(tmp_path):
    settings = DataConfig(dataset="", file=str(tmp_path / "own.npz"))
    with pytest.raises(ConfigError, match="no such file"):
        held_out.preflight(settings)
    (tmp_path / "own.npz").write_bytes(b"junk")
    with pytest.raises(DataUnavailableError, match=r"is no \.npz file"):
        load(settings)


def test_none_is_asked_for():
    settings = DataConfig(dataset="")
    assert held_out.preflight(settings).message == "No test set is asked for."
    assert load(settings) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.full((6, 4, 5, 1), 255, np.uint8)},
        {"labels": np.array([0, 1, 2, 3, 0, 0])},
        {"images": np.moveaxis(np.full((6, 4, 4, 1), 255, np.uint8), -1, 1)},
    ],
)
def test_test_set_of_another_task_is_refused(save, changes):
    own = load(save(**changes))
    with pytest.raises(CheckpointError, match=r"The student classifies \(4, 4, 1\)"):
        own.check(DESCRIPTION, source="The student")
