"""Real images through TFDS: `preflight` says if they can be had, `load` reads them.

Sets are prepared once, as ArrayRecord, which is read without TensorFlow. Splits are
slices in the order of the prepared files: TFDS shuffles when it prepares, with a fixed
seed, so that order is not the published one but the same on every machine.
"""

import dataclasses
import io
import pathlib
from collections.abc import Callable

import numpy as np

from dfkd_jax.data import datasets, mirrors, prepare, raw_files, reachability
from dfkd_jax.errors import DataUnavailableError

READING_PACKAGES = {
    "array_record": ("tensorflow_datasets", "array_record", "PIL"),
    "tfrecord": ("tensorflow_datasets", "tensorflow"),
}
_PREFLIGHT_TIMEOUT = 0.7
_LOAD_TIMEOUT = 5.0
_CHUNK = 1_000
_MEAN_TOLERANCE = 0.02  # Splits of one set differ by at most 0.003.


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """Labeled images in memory.

    Attributes:
        images: `[num, height, width, channels]`, uint8.
        labels: `[num]`, int32.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Availability:
    """Whether a data set can be had.

    Attributes:
        ready: It is prepared; no network is needed.
        obtainable: It is ready, or there is reason to believe that it can be made so.
        message: One line: why, and where not obtainable what to do.
    """

    ready: bool
    obtainable: bool
    message: str


def preflight(name: str, *, data_dir: str = "", raw_dir: str = "") -> Availability:
    """Whether `load` would work, in less than a second and without reading an image."""
    return _availability(name, data_dir, raw_dir, timeout=_PREFLIGHT_TIMEOUT)


def load(
    name: str,
    split: str,
    *,
    data_dir: str = "",
    raw_dir: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> ImageDataset:
    """The images of one split, prepared on first use.

    Args:
        name: "mnist", "fashion_mnist", "cifar10" or of another set that is prepared.
        split: "train" (all but the last 5,000 of TFDS's training set), "validation"
            (those 5,000; of other sets the last tenth) or "test".
        data_dir: TFDS folder; empty for `~/.cache/dfkd_jax/tfds`.
        raw_dir: Folder with the original files, to prepare from; empty for the network.
        report: Gets progress, a line at a time.

    Raises:
        ConfigError: There is no such data set or split.
        DataUnavailableError: It cannot be had, or the prepared files are damaged.
        StorageError: `data_dir` cannot be written or is too small.
    """
    spec = datasets.spec(name, data_dir)
    published_split, start, stop = spec.bounds(split)
    folder = datasets.resolve_data_dir(data_dir)
    availability = _availability(name, data_dir, raw_dir, timeout=_LOAD_TIMEOUT)
    if not availability.obtainable:
        raise DataUnavailableError(availability.message)
    if not availability.ready:
        prepare.prepare_in_subprocess(
            name, data_dir=folder, raw_dir=raw_dir, report=report
        )
    prepared = datasets.find_prepared(name, folder)
    assert prepared is not None
    try:
        dataset = _read(prepared, spec, published_split, start, stop)
        _check(dataset, spec, split, stop - start)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        # Readers and decoders raise nearly anything on damaged files.
        raise DataUnavailableError(_damaged(prepared.path, error)) from error
    return dataset


def _availability(
    name: str, data_dir: str, raw_dir: str, *, timeout: float
) -> Availability:
    datasets.spec(name, data_dir)  # An unknown name is an error of its own.
    folder = datasets.resolve_data_dir(data_dir)
    prepared = datasets.find_prepared(name, folder)
    if prepared:
        if prepared.file_format not in READING_PACKAGES:
            return Availability(
                False,
                False,
                f"{prepared.path} has the file format {prepared.file_format}, which "
                f"cannot be read here: move it elsewhere and have {name} prepared "
                "anew, or name another folder with --config.data.dir=DIR.",
            )
        missing = prepare.missing_packages(READING_PACKAGES[prepared.file_format])
        if missing:
            return Availability(False, False, prepare.install_hint(name, missing))
        return Availability(True, True, f"{name} is prepared in {prepared.path}.")
    if missing := prepare.missing_packages(prepare.PACKAGES):
        return Availability(False, False, prepare.install_hint(name, missing))
    if raw_dir:
        try:
            raw_files.locate(name, pathlib.Path(raw_dir).expanduser())
        except DataUnavailableError as error:
            return Availability(False, False, str(error))
        return Availability(False, True, f"{name} will be prepared from {raw_dir}.")
    sources = reachability.reachable_sources(name, timeout=timeout)
    if sources:
        return Availability(
            False,
            True,
            f"{name} will be fetched ({' or '.join(sources)}), prepared in {folder}.",
        )
    return Availability(
        False,
        False,
        f"{name} is not in {folder}, and neither its download host nor "
        f"{mirrors.CLIENTS[name]} answers. {datasets.ways_out(name)}",
    )


def _read(
    prepared: datasets.Prepared,
    spec: datasets.DatasetSpec,
    split: str,
    start: int,
    stop: int,
) -> ImageDataset:
    """Examples `start` to `stop` of the published `split`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared.path)
    num = builder.info.splits[split].num_examples
    if num != (published := {"train": spec.num_train, "test": spec.num_test}[split]):
        raise ValueError(f'split "{split}" has {num} examples, expected {published}')
    array_record = prepared.file_format == "array_record"
    read = _read_array_record if array_record else _read_tfrecord
    images, labels = read(builder, split, start, stop)
    images = images[..., None] if images.ndim == 3 else images
    return ImageDataset(images, labels.astype(np.int32))


def _read_array_record(builder, split: str, start: int, stop: int):
    import tensorflow_datasets as tfds
    from PIL import Image

    source = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    mode = "L" if builder.info.features["image"].shape[-1] == 1 else "RGB"
    chunks, labels = [], []
    for first in range(start, stop, _CHUNK):
        records = source.__getitems__(range(first, min(first + _CHUNK, stop)))
        images = []
        for record in records:
            with Image.open(io.BytesIO(record["image"])) as image:
                is_deep = image.mode[0] in "IF"  # Of more than 8 bits: refused.
                images.append(np.asarray(image if is_deep else image.convert(mode)))
        chunks.append(np.stack(images))
        labels += [record["label"] for record in records]
    return np.concatenate(chunks), np.asarray(labels)


def _read_tfrecord(builder, split: str, start: int, stop: int):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all its memory.
    examples = builder.as_dataset(
        split=f"{split}[{start}:{stop}]",
        batch_size=_CHUNK,
        # One file after the other: the order of the ArrayRecord files.
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    batches = list(tfds.as_numpy(examples))
    return tuple(
        np.concatenate([batch[feature] for batch in batches])
        for feature in ("image", "label")
    )


def _check(dataset: ImageDataset, spec: datasets.DatasetSpec, split: str, num: int):
    """Raises ValueError where `dataset` cannot be the published split."""
    images, labels = dataset.images, dataset.labels
    if images.shape != (num, *spec.image_shape) or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}{list(images.shape)}")
    if labels.shape != (num,) or not np.isin(labels, range(spec.num_classes)).all():
        raise ValueError(f"labels are not {num} numbers below {spec.num_classes}")
    counts = np.bincount(labels, minlength=spec.num_classes)
    published = spec.test_class_counts if split == "test" else ()
    if published and tuple(counts) != published:
        raise ValueError(f"the classes have {counts.tolist()} test images")
    mean = images.mean(axis=(0, 1, 2)) / 255
    if spec.mean and np.abs(mean - spec.mean).max() > _MEAN_TOLERANCE:
        raise ValueError(f"the pixels' mean is {mean.round(4).tolist()}")


def _damaged(path: pathlib.Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, PermissionError):
        return (
            f"The prepared data set at {path} cannot be read ({reason}): check its "
            "permissions."
        )
    return (
        f"The prepared data set at {path} is damaged ({type(error).__name__}: "
        f"{reason}). Move that folder elsewhere and have it prepared anew, or name "
        "another with --config.data.dir=DIR."
    )
