"""Facts about the data sets, split arithmetic and the search for prepared sets."""

import json

import pytest

from dfkd_jax.data import datasets
from dfkd_jax.errors import ConfigError


@pytest.mark.parametrize("name", datasets.NAMES)
def test_facts_agree_with_each_other(name):
    spec = datasets.spec(name)
    assert spec.num_classes == len(spec.test_class_counts) == 10
    assert sum(spec.test_class_counts) == spec.num_test
    assert len(spec.mean) == len(spec.std) == spec.image_shape[-1]


@pytest.mark.parametrize(
    ("name", "split", "bounds"),
    [
        ("mnist", "train", ("train", 0, 55_000)),
        ("mnist", "validation", ("train", 55_000, 60_000)),
        ("mnist", "test", ("test", 0, 10_000)),
        ("cifar10", "train", ("train", 0, 45_000)),
        ("cifar10", "validation", ("train", 45_000, 50_000)),
    ],
)
def test_splits_take_the_last_5000_for_validation(name, split, bounds):
    assert datasets.spec(name).bounds(split) == bounds


@pytest.mark.parametrize(
    ("given", "meant"), [("minst", "mnist"), ("fashion", "fashion_mnist")]
)
def test_unknown_data_set_names_the_close_one(given, meant):
    with pytest.raises(ConfigError, match=f'"{given}".*Did you mean "{meant}"'):
        datasets.spec(given)


def test_unknown_names_without_a_close_one_list_all_and_say_how_to_have_others(
    tmp_path,
):
    with pytest.raises(ConfigError, match="mnist, fashion_mnist, cifar10") as caught:
        datasets.spec("imagenet", str(tmp_path))
    assert "Did you mean" not in str(caught.value)
    for part in (tmp_path, "tfds build NAME --data_dir=DIR", "--config.data.dir=DIR"):
        assert str(part) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "..", "m*", "*/mnist", "/mnist", "../mnist", "x" * 999]
)
def test_names_that_are_none(tmp_path, name):
    _write_info(tmp_path / "mnist" / "3.0.1")
    with pytest.raises(ConfigError, match="Unknown data set"):
        datasets.spec(name, str(tmp_path / "mnist" / ".."))
    with pytest.raises(ConfigError, match="train, validation, test"):
        datasets.spec("mnist").bounds("dev")


def test_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.resolve_data_dir() == tmp_path / "dfkd_jax" / "tfds"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.resolve_data_dir() == tmp_path / ".cache" / "dfkd_jax" / "tfds"
    assert datasets.resolve_data_dir("~/sets") == tmp_path / "sets"


def _write_info(folder, **info):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_prepared_sets_are_ranked_by_format_then_version(tmp_path):
    assert datasets.find_prepared("mnist", tmp_path) is None
    (tmp_path / "mnist" / "9.0.0").mkdir(parents=True)  # Without dataset_info.json.
    _write_info(tmp_path / "mnist" / "incomplete.AB12CD_3.0.1")
    assert datasets.find_prepared("mnist", tmp_path) is None
    _write_info(tmp_path / "mnist" / "10.0.0")  # Old sets do not tell their format.
    assert datasets.find_prepared("mnist", tmp_path).file_format == "tfrecord"
    _write_info(tmp_path / "mnist" / "3.0.9", fileFormat="array_record")
    _write_info(tmp_path / "mnist" / "3.0.10", fileFormat="array_record")
    found = datasets.find_prepared("mnist", tmp_path)
    assert (found.path.name, found.file_format) == ("3.0.10", "array_record")
    assert datasets.find_prepared("cifar10", tmp_path) is None
