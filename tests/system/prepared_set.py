"""A prepared test set that passes for MNIST: its counts, its mean, plain grey images.

Imported where needed: the readers of TFDS come with it.
"""

import io
import json
import pathlib

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


def _example(label: int) -> bytes:
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    png = io.BytesIO()
    Image.fromarray(np.full((28, 28), GREY, np.uint8)).save(png, "png")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def write(data_dir: pathlib.Path) -> None:
    """Writes the test split of `data_dir`/mnist."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = data_dir / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    path = folder / "mnist-test.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for label, count in enumerate(datasets.spec("mnist").test_class_counts):
        example = _example(label)
        for _ in range(count):
            writer.write(example)
    writer.close()
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": "test",
        "numBytes": "1",
        "shardLengths": ["10000"],
    }
    info = {
        "name": "mnist",
        "version": "3.0.1",
        "fileFormat": "array_record",
        "moduleName": "tensorflow_datasets.image_classification.mnist",
        "splits": [split],
    }
    features = {
        "pythonClassName": f"{CORE}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": IMAGE, "label": LABEL}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features))
