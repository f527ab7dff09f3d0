"""Prepared sets that pass for MNIST: its counts, its mean, one image a class or gray.

Imported where needed: the readers of TFDS come with it.
"""

import io
import json
import pathlib

import command_runner
import numpy as np

from dfkd_jax.data import datasets

GREY = 33  # MNIST's mean, .1307.
CORE = "tensorflow_datasets.core.features"
IMAGE = {
    "pythonClassName": f"{CORE}.image_feature.Image",
    "image": {
        "shape": {"dimensions": ["28", "28", "1"]},
        "dtype": "uint8",
        "encodingFormat": "png",
    },
}
LABEL = {
    "pythonClassName": f"{CORE}.class_label_feature.ClassLabel",
    "classLabel": {"numClasses": "10"},
}


def striped(label: int) -> np.ndarray:
    """The training image of a class: four bright columns on black, its mean MNIST's."""
    image = np.zeros((28, 28), np.uint8)
    image[:, 2 * label : 2 * label + 4] = 231
    return image


def _example(label: int, image: np.ndarray) -> bytes:
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def write(data_dir: pathlib.Path, *, train: bool = False) -> None:
    """Writes `data_dir`/mnist: gray test images and, with `train`, training images."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = data_dir / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    labels = {"test": np.repeat(range(10), datasets.spec("mnist").test_class_counts)}
    if train:
        labels["train"] = np.arange(60_000) % 10
    gray = np.full((28, 28), GREY, np.uint8)
    gray[0, 0] = 255  # Else white might be another number.
    splits = []
    for name, classes in labels.items():
        images = [striped(k) if name == "train" else gray for k in range(10)]
        examples = [_example(k, image) for k, image in enumerate(images)]
        path = folder / f"mnist-{name}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for label in classes:
            writer.write(examples[label])
        writer.close()
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": name,
                "numBytes": "1",
                "shardLengths": [str(len(classes))],
            }
        )
    info = {
        "name": "mnist",
        "version": "3.0.1",
        "fileFormat": "array_record",
        "moduleName": "tensorflow_datasets.image_classification.mnist",
        "splits": splits,
    }
    features = {
        "pythonClassName": f"{CORE}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": IMAGE, "label": LABEL}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features))


def run_on_the_first(count: int, module: str, arguments: list[str]) -> None:
    """Runs a module of the package, which sees `count` images of each split."""
    from dfkd_jax.data import tfds

    load = tfds.load

    def load_few(*args, **kwargs):
        found = load(*args, **kwargs)
        return tfds.ImageDataset(found.images[:count], found.labels[:count])

    tfds.load = load_few
    command_runner.run_module(module, arguments)
