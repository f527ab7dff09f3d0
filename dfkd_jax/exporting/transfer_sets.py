"""The transfer set of a finished run as a data set that any framework reads.

    image   float32 [height, width, channels], pixels from 0 to 1, as cameras give them
    label   float32 [classes], the soft label that the image was made for

Inside the package images are normalized; here they are not, so that a student of
anybody's can be trained on them and then be shown real pictures. Where synthesis ran
without `pixel_bounds` a pixel may leave the range. A shard is in memory at a time.
"""

import json
import math
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from dfkd_jax.errors import CheckpointError, ExportError, MissingPackageError
from dfkd_jax.runtime import files
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.runtime.weights import FORMAT
from dfkd_jax.synthesis.transfer_set import TransferSet

SPLIT = "train"
NAME, VERSION = "transfer_set", "1.0.0"
_FILE_BYTES = 128 * 2**20  # Of pixels in one ArrayRecord file.


class Source:
    """A finished transfer set with what is needed to understand it."""

    def __init__(
        self,
        transfer_set: TransferSet,
        description: Description,
        class_names: tuple[str, ...],
    ):
        """Takes the set of a run, the run's description, and names of the classes.

        Raises:
            CheckpointError: The set is unfinished or damaged.
        """
        manifest = transfer_set.manifest
        if transfer_set.missing():
            raise CheckpointError(
                f"{transfer_set.folder} is not finished: {len(transfer_set):,} of "
                f"{manifest.num_images:,} images are made. Give the command of the run "
                "again to have the rest made."
            )
        if damaged := transfer_set.damaged():
            raise CheckpointError(
                f"{transfer_set.folder}: shards {', '.join(map(str, damaged))} are "
                "damaged. Give the command of the run again to have them made anew."
            )
        self.transfer_set = transfer_set
        self.manifest = manifest
        self._description = description
        self._class_names = class_names

    def __len__(self) -> int:
        """Number of images."""
        return self.manifest.num_images

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels from 0 to 1 and soft labels, shard by shard."""
        size = self.manifest.shard_size
        for first in range(0, len(self), size):
            images, labels = self.transfer_set.gather(np.arange(first, first + size))
            yield self._description.denormalize(images), labels

    def card(self) -> dict[str, Any]:
        """What a user of the data has to know, as JSON values."""
        return {
            "num_images": len(self),
            "image_shape": list(self.manifest.image_shape),
            "pixel_scale": [0.0, 1.0],
            "num_classes": self.manifest.num_classes,
            "class_names": list(self._class_names),
            "mean": list(self._description.mean),
            "std": list(self._description.std),
            "dataset": self._description.dataset,
            "teacher_sha256": self.manifest.teacher_sha256,
            "transfer_set_sha256": self.transfer_set.digest(),
            "seed": self.manifest.seed,
            "settings": self.manifest.settings,
        }


def open_source(
    folder: pathlib.Path, description: Description, class_names: tuple[str, ...]
) -> Source:
    """The transfer set in `folder`, which a run has made.

    Raises:
        CheckpointError: It is missing, unfinished or damaged.
    """
    if not (folder / "manifest.json").is_file():
        raise CheckpointError(
            f"{folder} holds no transfer set: name a work directory of dfkd_jax.main."
        )
    return Source(TransferSet.existing(folder), description, class_names)


def write_npz(path: pathlib.Path, source: Source) -> None:
    """One `.npz`: `images`, `labels`, `mean`, `std` and the card as text; no pickle.

    Raises:
        ExportError: What was written reads back as something else.
        StorageError: The disk is full or refuses.
    """
    with files.atomic_write(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for place, (name, shape) in enumerate(_shapes(source).items()):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for batch in source.batches():
                        file.write(np.asarray(batch[place], "<f4").tobytes())
            card = source.card()
            small = {key: np.float32(card[key]) for key in ("mean", "std")}
            for name, value in (small | {"card": json.dumps(card)}).items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, np.asarray(value))
        check_npz(temporary, source)


def check_npz(path: pathlib.Path, source: Source) -> None:
    """Compares a file of `write_npz` with the set, in less memory than `np.load`.

    Raises:
        ExportError: They differ.
    """
    with zipfile.ZipFile(path) as archive:
        for place, (name, shape) in enumerate(_shapes(source).items()):
            same = True
            with archive.open(f"{name}.npy") as file:
                try:
                    np.lib.format.read_magic(file)
                    same = np.lib.format.read_array_header_1_0(file)[0] == shape
                    for batch in source.batches():
                        wanted = np.asarray(batch[place], "<f4").tobytes()
                        same = same and file.read(len(wanted)) == wanted
                except (zipfile.BadZipFile, ValueError):
                    same = False
            if not same:
                raise _differs(path, name)


def _shapes(source):
    return {
        "images": (len(source), *source.manifest.image_shape),
        "labels": (len(source), source.manifest.num_classes),
    }


def write_tfds(folder: pathlib.Path, source: Source) -> None:
    """A folder for `tfds.builder_from_directory`: ArrayRecord, split "train".

    Writing and reading need no TensorFlow. The card is `card.json` in the folder. A
    folder of that name that holds such a set is replaced.

    Raises:
        ExportError: What was written reads back as something else.
        StorageError: The disk is full or refuses.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    with files.storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)  # Of a killed export.
        temporary.mkdir()
        try:
            _write_tfds(temporary, source)
            _check_tfds(temporary, source, folder)
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(folder, replaced)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def _write_tfds(folder, source):
    import tensorflow_datasets as tfds

    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise MissingPackageError(
            "TFDS's files are written by array_record: pip install array_record."
        ) from error

    manifest = source.manifest
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=manifest.image_shape, dtype=np.float32),
            "label": tfds.features.Tensor(
                shape=(manifest.num_classes,), dtype=np.float32
            ),
        }
    )
    shards_a_file = max(
        1, _FILE_BYTES // (manifest.shard_size * math.prod(manifest.image_shape) * 4)
    )
    num_files = math.ceil(manifest.num_shards / shards_a_file)
    writer: Any = None
    lengths, num_bytes = [], 0
    for shard, batch in enumerate(source.batches()):
        if shard % shards_a_file == 0:
            if writer:
                writer.close()
            name = f"{NAME}-{SPLIT}.array_record-{len(lengths):05d}"
            # One record a group, as TFDS has it: each can be read on its own.
            writer = ArrayRecordWriter(
                str(folder / f"{name}-of-{num_files:05d}"), "group_size:1"
            )
            lengths.append(0)
        for image, label in zip(*batch, strict=True):
            example = features.encode_example({"image": image, "label": label})
            record = features.serialize_example(example)
            writer.write(record)
            num_bytes += len(record)
            lengths[-1] += 1
    writer.close()
    features.save_config(str(folder))
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": SPLIT,
        "numBytes": str(num_bytes),
        "shardLengths": [str(length) for length in lengths],
    }
    info = {
        "name": NAME,
        "version": VERSION,
        "description": "Pseudo samples and soft labels, made from a teacher's weights "
        "alone by dfkd_jax. Pixels from 0 to 1; see card.json.",
        "fileFormat": "array_record",
        "splits": [split],
    }
    files.write_json(folder / "dataset_info.json", info)
    files.write_json(folder / "card.json", {"format": FORMAT} | source.card())


def _check_tfds(temporary, source, folder):
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(temporary))
    examples = builder.as_data_source(SPLIT)
    same = len(examples) == len(source)
    position = 0
    for images, labels in source.batches() if same else ():
        found = examples.__getitems__(range(position, position + len(images)))
        same = same and all(
            np.array_equal(example["image"], image)
            and np.array_equal(example["label"], label)
            for example, image, label in zip(found, images, labels, strict=True)
        )
        position += len(images)
    if not same:
        raise _differs(folder, "an image or a label")


def is_tfds(folder: pathlib.Path) -> bool:
    """Whether `folder` holds what `write_tfds` writes, and may be replaced."""
    card = folder / "card.json"
    return card.is_file() and files.read_object(card).get("format") == FORMAT


def _differs(path, what):
    return ExportError(
        f"{path}: {what} read back differs from the transfer set, so it is not kept: "
        "give the command again, and check the disk if that does not help."
    )


FORMATS = {"npz": write_npz, "tfds": write_tfds}
