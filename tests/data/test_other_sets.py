"""Sets that are not built in: what their own files say, read right or refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_fruit

from dfkd_jax import evaluation
from dfkd_jax.baselines.real_data import source
from dfkd_jax.config import DataConfig
from dfkd_jax.data import datasets, held_out, tfds
from dfkd_jax.errors import ConfigError, DataUnavailableError
from dfkd_jax.runtime.descriptions import Description

NAME = tiny_fruit.NAME


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tiny_fruit.write(folder)
    return str(folder)


@pytest.fixture
def version(data_dir, tmp_path):
    """The version folder of a copy in `tmp_path`, to be changed."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path / NAME / "1.2.0"


def test_metadata_are_read(data_dir):
    spec = datasets.spec(NAME, data_dir)
    assert spec == datasets.DatasetSpec(
        name=NAME,
        image_shape=tiny_fruit.IMAGE_SHAPE,
        class_names=tiny_fruit.CLASS_NAMES,
        num_train=40,
        num_test=20,
        num_validation=4,
    )
    assert spec.bounds("train") == ("train", 0, 36)
    assert spec.bounds("validation") == ("train", 36, 40)


def test_metadata_are_read_without_heavy_packages(data_dir):
    program = f"""
import sys
from dfkd_jax.data import tfds
assert tfds.preflight({NAME!r}, data_dir={data_dir!r}).ready
print(sorted({{"tensorflow", "tensorflow_datasets", "jax", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("split", "published", "rows"),
    [
        ("train", "train", slice(36)),
        ("validation", "train", slice(36, 40)),
        ("test", "test", slice(20)),
    ],
)
def test_images_and_labels_are_those_that_were_written(
    data_dir, split, published, rows
):
    images, labels = tiny_fruit.contents(published)
    found = tfds.load(NAME, split, data_dir=data_dir)
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(found.images, images[rows])
    np.testing.assert_array_equal(found.labels, labels[rows])


def test_one_of_several_configurations(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/{NAME}", tmp_path / NAME / "ripe")
    found = tfds.load(f"{NAME}/ripe", "test", data_dir=str(tmp_path))
    np.testing.assert_array_equal(found.labels, tiny_fruit.contents("test")[1])
    with pytest.raises(ConfigError, match=f'"{NAME}".* not in {tmp_path}'):
        datasets.spec(NAME, str(tmp_path))


def test_held_out_set_and_real_training_images(data_dir):
    data = DataConfig(dataset=NAME, dir=data_dir)
    assert held_out.preflight(data).ready
    real = held_out.load(data, split="test", report=lambda line: None)
    assert real is not None
    assert (real.name, real.class_names) == (NAME, tiny_fruit.CLASS_NAMES)
    description = _description(4)
    real.check(description, source="It")
    assert source.count(data) == 36
    images = source.load(data, description=description, seed=0)
    np.testing.assert_array_equal(images.classes, tiny_fruit.contents("train")[1][:36])


def _description(num_classes, dataset=NAME):
    return Description(
        network="lenet5",
        num_classes=num_classes,
        image_shape=tiny_fruit.IMAGE_SHAPE,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        dataset=dataset,
    )


def test_class_names_of_a_network(data_dir, version):
    default = evaluation.default_class_names
    assert default(_description(4), data_dir) == tiny_fruit.CLASS_NAMES
    assert default(_description(3), data_dir) == ("0", "1", "2")
    assert default(_description(2, "mnist")) == ("0", "1")
    (version / "features.json").unlink()
    assert default(_description(2), str(version.parents[1])) == ("0", "1")


def test_classes_without_names_are_numbers(version, tmp_path):
    (version / "label.labels.txt").unlink()
    assert datasets.spec(NAME, str(tmp_path)).class_names == ("0", "1", "2", "3")


def _change(path, *keys, value=None):
    """Sets what is at `keys` of a JSON file, or deletes it."""
    content = json.loads(path.read_text())
    *groups, last = keys
    inner = content
    for key in groups:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(content))


FEATURES = ("features.json", "featuresDict", "features")
IMAGE = (*FEATURES, "image", "image")
CLASSES = (*FEATURES, "label", "classLabel")


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (
            (*FEATURES, "image"),
            None,
            'features are id, label, expected "image" and "label"',
        ),
        ((*FEATURES, "label"), None, 'features are id, image, expected "image"'),
        (
            (*IMAGE, "shape", "dimensions"),
            ["-1", "-1", "3"],
            r"images are uint8\[-1, -1, 3\], expected uint8 of one size",
        ),
        (
            (*IMAGE, "shape", "dimensions", 2),
            "4",
            r"uint8\[12, 14, 4\].* 1 or 3 channels",
        ),
        (
            (*IMAGE, "dtype"),
            "uint16",
            r"images are uint16\[12, 14, 3\], expected uint8",
        ),
        (IMAGE, None, r"images are None\[\], expected uint8"),
        ((*CLASSES, "numClasses"), "3", r"label\.labels\.txt has 4 names of 3 classes"),
        ((*CLASSES, "numClasses"), "0", "no known number of classes"),
        (
            ("dataset_info.json", "splits", 1),
            None,
            r"splits are \{'train': 40\}, expected images in \"train\" and \"test\"",
        ),
        (("dataset_info.json", "splits", 0, "shardLengths"), None, "'train': 0,"),
        (("dataset_info.json", "splits"), 3, ".TypeError: "),
        (("features.json", "featuresDict"), None, ".KeyError: 'featuresDict'"),
        (FEATURES, [1], ".AttributeError: "),
    ],
)
def test_sets_that_cannot_be_used(version, tmp_path, place, value, problem):
    file, *keys = place
    _change(version / file, *keys, value=value)
    with pytest.raises(ConfigError, match=problem) as caught:
        tfds.preflight(NAME, data_dir=str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"The prepared data set at {version} cannot be used")
    assert "\n" not in message


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_metadata_that_were_cut(version, tmp_path, file):
    path = version / file
    path.write_text(path.read_text()[:40])
    with pytest.raises(
        ConfigError, match=f"{version} cannot .* damaged.*JSONDecodeError"
    ):
        datasets.spec(NAME, str(tmp_path))


def test_labels_of_no_known_number(version, tmp_path):
    (version / "label.labels.txt").unlink()
    _change(version / "features.json", *CLASSES[1:], value={})
    with pytest.raises(ConfigError, match="no known number of classes"):
        datasets.spec(NAME, str(tmp_path))


def test_damaged_records_are_named(version, tmp_path):
    [path] = version.glob("*test*")
    path.write_bytes(path.read_bytes()[:1_000])
    with pytest.raises(DataUnavailableError, match=f"{version} is damaged"):
        tfds.load(NAME, "test", data_dir=str(tmp_path))


def test_images_of_more_than_8_bits_are_damage(version, tmp_path, monkeypatch):
    from PIL import Image

    deep = Image.fromarray(np.zeros((12, 14), np.int32))
    monkeypatch.setattr(Image, "open", lambda file: deep.copy())
    with pytest.raises(DataUnavailableError, match="images are int32"):
        tfds.load(NAME, "test", data_dir=str(tmp_path))
