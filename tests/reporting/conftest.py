"""Work directories made by hand, with numbers that a test can know."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from dfkd_jax import config
from dfkd_jax.reporting import soft_labels
from dfkd_jax.runtime import files, metrics, writers
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet

SHARD = 25


def evaluation(confusion: Any, class_names: Any, *, agreement: float) -> dict[str, Any]:
    """Figures as `evaluate` makes them, of a confusion matrix."""
    confusion = np.asarray(confusion, float)
    count = confusion.sum()
    bins = np.zeros(metrics.NUM_BINS)
    bins[-1] = count
    return metrics.summarize(
        {
            "count": np.array(count),
            "nll": np.array(0.25 * count),
            "agreement": np.array(agreement * count),
            "confusion": confusion,
            "bin_count": bins,
            "bin_confidence": 0.98 * bins,
            "bin_correct": np.trace(confusion) / count * bins,
        },
        class_names=class_names,
    )


def confusion(accuracy: float, *, classes: int = 10, each: int = 100) -> np.ndarray:
    """Of `each` images a class, this share is right; the rest is the next class."""
    hits = round(accuracy * each)
    return hits * np.eye(classes) + (each - hits) * np.roll(np.eye(classes), 1, axis=1)


def labels(count: int, classes: int, seed: int = 0) -> np.ndarray:
    """Soft labels; class i is the likeliest of every `classes`th."""
    logits = np.random.default_rng(seed).normal(size=(count, classes))
    logits += 4 * np.eye(classes)[np.arange(count) % classes]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@dataclasses.dataclass
class Maker:
    """Makes work directories; a test changes what it is about.

    Attributes:
        root: Where they go.
    """

    root: pathlib.Path

    def make(
        self,
        name: str = "run",
        *,
        settings: Any = None,
        image_shape: Any = (8, 8, 1),
        classes: int = 10,
        class_names: Any = None,
        soft: Any = None,
        images: Any = None,
        finished_shards: int = 4,
        student: bool = True,
        results: bool = True,
        accuracy: float | None = 0.9,
        student_confusion: Any = None,
        teacher_accuracy: float = 0.95,
        changes: Any = None,
        drawn: bool = False,
        kind: str = "distillation",
        origin: Any = None,
    ) -> pathlib.Path:
        """A work directory of four shards of 25 pseudo samples."""
        folder = self.root / name
        folder.mkdir()
        class_names = class_names or [str(k) for k in range(classes)]
        defaults = {
            "targets": {"sigma": 1.5},
            "synthesis": {"num_images": 4 * SHARD, "images_per_device": SHARD},
        }
        defaults = defaults if kind == "distillation" else {}
        experiment = config.from_mapping(
            config.KINDS[kind], {"name": "toy"} | defaults | (settings or {})
        )
        values = dataclasses.asdict(experiment)
        del values["data"]
        description = {
            "network": "lenet5_half",
            "num_classes": classes,
            "image_shape": list(image_shape),
            "mean": [0.5] * image_shape[-1],
            "std": [0.25] * image_shape[-1],
            "dataset": "toys",
        }
        files.write_json(
            folder / "run.json",
            {
                "kind": kind,
                "config": values,
                "teacher_sha256": "f" * 64,
                "description": description,
            }
            | (origin or {}),
        )
        transfer_set = TransferSet(
            folder / "transfer_set",
            Manifest(
                num_images=4 * SHARD,
                shard_size=SHARD,
                image_shape=tuple(image_shape),
                num_classes=classes,
                seed=0,
                teacher_sha256="f" * 64,
                settings={},
            ),
        )
        rng = np.random.default_rng(1)
        if soft is None:
            soft = labels(4 * SHARD, classes)
        if images is None:
            images = rng.normal(size=(4 * SHARD, *image_shape))
        for shard in range(finished_shards):
            rows = slice(shard * SHARD, (shard + 1) * SHARD)
            transfer_set.add(shard, images[rows], soft[rows])
        for stage, metric in (
            ("synthesis, first batch", "cross_entropy"),
            ("distillation", "loss"),
        ):
            with writers.open_writer(folder / "metrics.jsonl", stage=stage) as writer:
                for step in range(1, 41):
                    writer.write_scalars(step, {metric: 3 / step})
        seconds = {"prepare": 2.0, "synthesis": 60.0, "distillation": 120.0}
        files.write_json(folder / "seconds.json", seconds)
        if drawn:
            drawn_labels = {
                "gaussian": labels(120, classes, seed=1),
                "dirichlet": labels(120, classes, seed=2),
            }
            soft_labels.save(folder / "soft_labels.npz", drawn_labels)
        if student:
            (folder / "student.safetensors").touch()
        if not results:
            return folder
        content = {
            "experiment": experiment.name,
            "seed": experiment.seed,
            "data_free": True,
            "dataset": "toys",
            "feature_layer": "dense_2",
            "num_pseudo_samples": 4 * SHARD,
            "teacher": {"network": "lenet5", "parameters": 61_706},
            "student": {
                "network": "lenet5_half",
                "parameters": 35_820,
                "sha256": "e" * 64,
                "test_accuracy": None,
            },
            "transfer_set_sha256": "d" * 64,
            "seconds": seconds,
            "command": "python -m dfkd_jax.main --config=toy.py",
            "machine": {"backend": "cpu", "num_devices": 2},
            "versions": {"python": "3.11.7", "jax": "0.10.2"},
            "config": values,
        }
        if accuracy is not None:
            for role, matrix, agreement in (
                ("teacher", confusion(teacher_accuracy, classes=classes), 1.0),
                (
                    "student",
                    confusion(accuracy, classes=classes)
                    if student_confusion is None
                    else student_confusion,
                    0.93,
                ),
            ):
                found = evaluation(matrix, class_names, agreement=agreement)
                content[role] |= {
                    "test_accuracy": found["accuracy"],
                    "evaluation": found,
                }
            content["seconds"] = seconds | {"evaluation": 4.0}
        files.write_json(folder / "results.json", content | (changes or {}))
        return folder


@pytest.fixture(scope="session")
def evaluations():
    """Figures of a teacher and its student, as results have them."""
    names = [str(k) for k in range(10)]
    return {
        "teacher": evaluation(confusion(0.95), names, agreement=1.0),
        "student": evaluation(confusion(0.9), names, agreement=0.93),
    }


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path)
