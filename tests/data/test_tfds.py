"""Reading prepared sets: the real readers on a small set of our own making."""

import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dfkd_jax.data import datasets, prepare, tfds
from dfkd_jax.errors import ConfigError, DataUnavailableError, StorageError

_CORE = "tensorflow_datasets.core.features"
FEATURES = {
    "pythonClassName": f"{_CORE}.features_dict.FeaturesDict",
    "featuresDict": {
        "features": {
            "image": {
                "pythonClassName": f"{_CORE}.image_feature.Image",
                "image": {
                    "shape": {"dimensions": ["28", "28", "1"]},
                    "dtype": "uint8",
                    "encodingFormat": "png",
                },
            },
            "label": {
                "pythonClassName": f"{_CORE}.class_label_feature.ClassLabel",
                "classLabel": {"numClasses": "10"},
            },
        }
    },
}
LEVEL = 33  # A gray of MNIST's mean, .1307.


def _example(label: int, level: int) -> bytes:
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    pixels = np.full((28, 28), level, np.uint8)
    pixels[0, 0] = label
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def _write_set(data_dir: pathlib.Path, splits: dict[str, list[int]], level=LEVEL):
    """A set like TFDS's MNIST with the given labels; returns its folder."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = data_dir / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    examples = [_example(label, level) for label in range(10)]
    for split, labels in splits.items():
        path = folder / f"mnist-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for label in labels:
            writer.write(examples[label])
        writer.close()
    info = {
        "name": "mnist",
        "version": "3.0.1",
        "fileFormat": "array_record",
        "moduleName": "tensorflow_datasets.image_classification.mnist",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(labels))],
            }
            for split, labels in splits.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(FEATURES))
    return folder


def _test_labels():
    counts = datasets.spec("mnist").test_class_counts
    return np.repeat(np.arange(10), counts).tolist()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Of every 5,000 training examples, all have one label: 0, 1, …, 9, 0, 1."""
    folder = tmp_path_factory.mktemp("tfds")
    train = (np.arange(60_000) // 5_000 % 10).tolist()
    _write_set(folder, {"train": train, "test": _test_labels()})
    return folder


def test_test_split(data_dir):
    dataset = tfds.load("mnist", "test", data_dir=str(data_dir))
    assert dataset.images.shape == (10_000, 28, 28, 1)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.labels, _test_labels())
    np.testing.assert_array_equal(dataset.images[:, 0, 0, 0], _test_labels())
    assert (dataset.images[:, 1:] == LEVEL).all()


def test_validation_is_the_last_5000_and_train_the_rest(data_dir):
    validation = tfds.load("mnist", "validation", data_dir=str(data_dir))
    np.testing.assert_array_equal(validation.labels, np.full(5_000, 1))
    train = tfds.load("mnist", "train", data_dir=str(data_dir))
    assert len(train.labels) == 55_000
    np.testing.assert_array_equal(train.labels[-5_000:], np.zeros(5_000))


def test_reading_imports_neither_tensorflow_nor_jax(data_dir):
    program = f"""
import sys
from dfkd_jax.data import tfds
tfds.load("mnist", "test", data_dir={str(data_dir)!r})
print(sorted({{"tensorflow", "jax"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_prepared_set_is_ready(data_dir):
    found = tfds.preflight("mnist", data_dir=str(data_dir))
    assert (found.ready, found.obtainable) == (True, True)
    assert str(data_dir) in found.message


def test_unknown_split(data_dir):
    with pytest.raises(ConfigError, match='Did you mean "validation"'):
        tfds.load("mnist", "valid", data_dir=str(data_dir))


def _cut(content):
    return content[: len(content) // 2]


def _overwrite(content):
    return content[:100_000] + bytes(5_000) + content[105_000:]


@pytest.mark.parametrize("damage", [_cut, _overwrite, lambda content: b""])
def test_damaged_records_are_named_with_the_remedy(tmp_path, damage):
    folder = _write_set(tmp_path, {"test": _test_labels()})
    path = folder / "mnist-test.array_record-00000-of-00001"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        DataUnavailableError, match=r"damaged.*Move that folder"
    ) as caught:
        tfds.load("mnist", "test", data_dir=str(tmp_path))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["features.json", "mnist-test.array_record-00000-of-00001"]
)
def test_missing_parts_are_damage(tmp_path, file):
    folder = _write_set(tmp_path, {"test": _test_labels()})
    (folder / file).unlink()
    with pytest.raises(DataUnavailableError, match=f"{folder} is damaged"):
        tfds.load("mnist", "test", data_dir=str(tmp_path))


def test_cut_dataset_info_is_named(tmp_path):
    folder = _write_set(tmp_path, {"test": _test_labels()})
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_re')
    with pytest.raises(DataUnavailableError, match=f"{folder} has the file format"):
        tfds.load("mnist", "test", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "level", "reason"),
    [
        (_test_labels()[:-1], LEVEL, "has 9999 examples, expected 10000"),
        ([9, *_test_labels()[1:]], LEVEL, r"classes have \[979, .*1010\]"),
        (_test_labels(), 73, "pixels' mean is"),  # .286: Fashion-MNIST's.
    ],
)
def test_wrong_contents_are_damage(tmp_path, labels, level, reason):
    _write_set(tmp_path, {"test": labels}, level)
    with pytest.raises(DataUnavailableError, match=reason):
        tfds.load("mnist", "test", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (np.zeros((2, 28, 28, 3), np.uint8), [0, 1], r"images are uint8\[2, 28, 28, 3"),
        (np.zeros((2, 28, 28, 1)), [0, 1], "images are float64"),
        (np.zeros((2, 28, 28, 1), np.uint8), [0, 10], "labels are not 2 numbers"),
        (np.zeros((2, 28, 28, 1), np.uint8), [0], "labels are not 2 numbers"),
    ],
)
def test_arrays_that_cannot_be_the_set(images, labels, reason):
    dataset = tfds.ImageDataset(images, np.int32(labels))
    with pytest.raises(ValueError, match=reason):
        tfds._check(dataset, datasets.spec("mnist"), "train", 2)


TO_TFRECORD = """
import json, pathlib, sys
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordReader
folder = pathlib.Path(sys.argv[1])
reader = ArrayRecordReader(str(folder / "mnist-test.array_record-00000-of-00001"))
path = folder / "mnist-test.tfrecord-00000-of-00001"
with tf.io.TFRecordWriter(str(path)) as writer:
    for record in reader.read_all():
        writer.write(record)
info = json.loads((folder / "dataset_info.json").read_text())
info["fileFormat"] = "tfrecord"
(folder / "dataset_info.json").write_text(json.dumps(info))
from dfkd_jax.data import tfds
dataset = tfds.load("mnist", "test", data_dir=str(folder.parents[1]))
print(dataset.images.shape, (dataset.labels == dataset.images[:, 0, 0, 0]).all())
print(dataset.labels.tolist())
"""


@pytest.mark.skipif(
    bool(prepare.missing_packages(("tensorflow",))), reason="needs TensorFlow"
)
def test_sets_that_tensorflow_wrote_are_read_in_the_same_order(tmp_path):
    """In a process of its own, which keeps TensorFlow out of this one."""
    labels = np.random.default_rng(0).permutation(_test_labels()).tolist()
    folder = _write_set(tmp_path, {"test": labels})
    done = subprocess.run(
        [sys.executable, "-c", TO_TFRECORD, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "(10000, 28, 28, 1) True"
    assert json.loads(second) == labels


@pytest.mark.parametrize(
    ("log", "kind", "message"),
    [
        ("noise\nStorageError: disk full\n", StorageError, "disk full"),
        ("DataUnavailableError: no: way\n", DataUnavailableError, "no: way"),
        ("Traceback\nKeyError: 'x'\n", DataUnavailableError, "exit status 1.*KeyError"),
    ],
)
def test_errors_of_the_preparing_process_arrive(log, kind, message):
    error = prepare._error_from("mnist", 1, log)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error


def test_killed_preparing_process_is_told():
    error = prepare._error_from("mnist", -9, "")
    assert "signal 9" in str(error)


def test_preparing_in_an_impossible_folder_is_a_storage_error(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StorageError, match="file/x cannot be used"):
        prepare.prepare(
            "mnist", data_dir=file / "x", raw_dir="", report=lambda line: None
        )


def test_too_little_space_is_a_storage_error(tmp_path, monkeypatch):
    usage = prepare.shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"300 MB.*5 MB are free"):
        prepare.prepare(
            "mnist", data_dir=tmp_path, raw_dir="", report=lambda line: None
        )
    assert not (tmp_path / "mnist").exists()
