"""What a work directory holds, read for the report: no teacher, no real data."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfkd_jax.data import datasets
from dfkd_jax.errors import CheckpointError, ConfigError
from dfkd_jax.reporting import curves, images
from dfkd_jax.runtime import arrays, files, records, writers
from dfkd_jax.runtime.descriptions import describe
from dfkd_jax.synthesis.transfer_set import TransferSet

# A set of any size is shown by a part that fits into memory, spread over its shards.
MAX_SHARDS = 64
MAX_LABELS = 20_000
MAX_IMAGES = 2_000
MAX_BYTES = 64_000_000  # Of images, and of labels.
MAX_DRAWS = 1_000  # Of soft labels, of each distribution.
DISTRIBUTIONS = ("gaussian", "dirichlet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A part of a transfer set.

    Attributes:
        num_made: Images in finished shards.
        num_wanted: Images of the whole set.
        labels: `[n, classes]` soft labels.
        pixels: `[m, height, width, channels]` on the scale 0 to 1; m is at most n.
        pixel_labels: `[m, classes]`, the soft labels of these images.
        damaged: Names of files that could not be read.
    """

    num_made: int
    num_wanted: int
    labels: np.ndarray
    pixels: np.ndarray
    pixel_labels: np.ndarray
    damaged: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A work directory of a distillation run, finished or not.

    Attributes:
        folder: Where it is.
        config: All settings but where the test set is.
        description: Of the student: classes, image shape, normalization.
        teacher_sha256: Digest of the teacher's weights.
        data_free: Whether the student learns without real data.
        real_data: What real data it learns from, in words.
        results: `results.json`; empty where there is none yet.
        seconds: By stage.
        class_names: One a class.
        curves: Of `metrics.jsonl`.
        terms: Of the loss of the last pseudo samples, as logged; empty where none are.
        sample: Of the transfer set; None where there is none yet.
        drawn: Soft labels by distribution, `[n, classes]`; empty where not stored.
        neighbors: Of `neighbors.json`, how near real images are; empty if not known.
        has_student: Whether distillation is finished.
        damaged: Names of other files that could not be read.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    description: Mapping[str, Any]
    teacher_sha256: str
    data_free: bool
    real_data: str
    results: Mapping[str, Any]
    seconds: Mapping[str, float]
    class_names: tuple[str, ...]
    curves: tuple[curves.Curve, ...]
    terms: Mapping[str, Any]
    sample: Sample | None
    drawn: Mapping[str, np.ndarray]
    neighbors: Mapping[str, Any]
    has_student: bool
    damaged: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the experiment."""
        return str(self.config["name"])

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.config["seed"]

    @property
    def feature_layer(self) -> str:
        """As found by the run, or as asked for; empty where the run was to choose."""
        settings = self.config.get("targets", self.config)
        return self.results.get("feature_layer") or settings.get("feature_layer", "")

    @property
    def distribution(self) -> str:
        """That soft labels are drawn from; empty where none are drawn from weights."""
        return self.config.get("targets", {}).get("distribution", "")

    def network(self, role: str) -> str:
        """Of "teacher" or "student": a registered name, or "package.module:Class"."""
        settings = self.config[role]
        return str(settings.get("module") or settings["network"])

    @property
    def split(self) -> str:
        """What evaluation read: "test" or "validation"."""
        return self.results.get("split", "test")

    def evaluation(self, role: str) -> Mapping[str, Any]:
        """Figures of "teacher" or "student" on `split`; empty where unknown."""
        return self.results.get(role, {}).get("evaluation") or {}


def read(folder: pathlib.Path) -> Run:
    """The run in `folder`, as far as it has come.

    Raises:
        CheckpointError: There is none, or its settings or results are damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no work directory (it has no run.json): name one that "
            "dfkd_jax.main made, as in runs/mnist/seed0."
        )
    identity = records.read(path)
    with records.as_written(path):
        return _read(folder, identity)


def _read(folder, identity):
    if "student" not in identity.get("config", {}):
        raise CheckpointError(
            f"{folder} is of teacher training: reports are of students. Its figures "
            "are in teacher.json."
        )
    results_path = folder / "results.json"
    results = records.read(results_path) if results_path.exists() else {}
    seconds_path = folder / "seconds.json"
    seconds = records.read(seconds_path) if seconds_path.exists() else {}
    description = identity["description"]
    origin = identity | results
    describe(description, source=str(folder / "run.json"))
    sample = _read_transfer_set(folder / "transfer_set", description)
    drawn, damaged = _read_drawn(folder / "soft_labels.npz", description["num_classes"])
    neighbors, unread = _read_neighbors(folder / "neighbors.json")
    return Run(
        folder=folder,
        config=identity["config"],
        description=description,
        teacher_sha256=identity["teacher_sha256"],
        data_free=origin.get("data_free", True) is True,
        real_data=origin.get("real_data", ""),
        results=results,
        seconds=results.get("seconds", seconds),
        class_names=_class_names(description, results),
        curves=tuple(curves.read(folder / "metrics.jsonl")),
        terms=_last_terms(folder / "metrics.jsonl"),
        sample=sample,
        drawn=drawn,
        neighbors=neighbors,
        has_student=(folder / "student.safetensors").is_file(),
        damaged=(*(sample.damaged if sample else ()), *damaged, *unread),
    )


def _last_terms(path):
    records = writers.read_scalars(path, stage="synthesis")
    return records[max(records)] if records else {}


def _class_names(description, results):
    evaluation = results.get("student", {}).get("evaluation") or {}
    names = [str(row["class"]) for row in evaluation.get("per_class", ())]
    if not names:
        try:
            names = datasets.spec(description["dataset"]).class_names
        except ConfigError:
            names = ()  # A data set of the user's own.
    if len(names) != description["num_classes"]:
        names = map(str, range(description["num_classes"]))
    return tuple(names)


def _read_transfer_set(folder, description):
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    transfer_set = TransferSet.existing(folder)
    manifest = transfer_set.manifest
    missing = set(transfer_set.missing())
    finished = [s for s in range(manifest.num_shards) if s not in missing]
    shards = images.spread(finished, MAX_SHARDS)
    shape = tuple(manifest.image_shape)
    per_shard = max(1, len(shards))
    num_labels = _rows(MAX_LABELS, per_shard, manifest.num_classes)
    num_images = min(num_labels, _rows(MAX_IMAGES, per_shard, int(np.prod(shape))))
    labels = [np.empty((0, manifest.num_classes), np.float32)]
    pixels, pixel_labels = [np.empty((0, *shape), np.float32)], labels[:]
    damaged = []
    for shard in shards:
        try:
            shard_images, shard_labels = (
                np.load(path, mmap_mode="r", allow_pickle=False)
                for path in transfer_set.paths(shard)
            )
            rows = images.spread(range(manifest.shard_size), num_labels)
            some = images.spread(rows, num_images)
            part = shard_images[some], shard_labels[some], shard_labels[rows]
        except (OSError, ValueError, IndexError, EOFError):
            damaged.append(f"transfer_set/images-{shard:05d}.npy or its labels")
            continue
        fits = part[0].shape[1:] == shape and part[2].shape[1:] == labels[0].shape[1:]
        if not fits or not all(np.isfinite(array).all() for array in part):
            damaged.append(f"transfer_set/images-{shard:05d}.npy or its labels")
            continue
        pixels.append(
            images.to_pixels(part[0], mean=description["mean"], std=description["std"])
        )
        pixel_labels.append(part[1])
        labels.append(part[2])
    return Sample(
        num_made=len(transfer_set),
        num_wanted=manifest.num_images,
        labels=np.concatenate(labels),
        pixels=np.concatenate(pixels),
        pixel_labels=np.concatenate(pixel_labels),
        damaged=tuple(damaged),
    )


def _rows(most, num_shards, numbers):
    """Rows of a shard to read, so that all together stay within the bounds."""
    return max(1, min(most, MAX_BYTES // (4 * numbers)) // num_shards)


def _read_neighbors(path):
    if not path.is_file():
        return {}, ()
    try:
        found = files.read_object(path)
        rows = {
            key: [float(value) for value in found[key]]
            for key in ("quantiles", "pseudo_samples", "held_out_images")
        }
        counts = {
            key: int(found[key])
            for key in ("num_training_images", "num_nearer_than_near", "num_equal")
        }
        if len(set(map(len, rows.values()))) == 1:
            return {"dataset": str(found["dataset"])} | rows | counts, ()
    except (CheckpointError, KeyError, TypeError, ValueError):
        pass
    return {}, (path.name,)


def _read_drawn(path, num_classes):
    if not path.is_file():
        return {}, ()
    try:
        read = arrays.read_npz(path, DISTRIBUTIONS, max_bytes=MAX_BYTES)
        drawn = {
            name: np.asarray(labels, np.float32)[:MAX_DRAWS]
            for name, labels in read.items()
        }
    except (OSError, ValueError):
        return {}, (path.name,)
    if not all(
        labels.ndim == 2
        and labels.shape[1] == num_classes
        and np.isfinite(labels).all()
        for labels in drawn.values()
    ):
        return {}, (path.name,)
    return drawn, ()
