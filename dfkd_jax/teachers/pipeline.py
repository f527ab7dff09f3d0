"""Trains a teacher on real data, evaluates it, and writes its weights and manifest."""

import dataclasses
import pathlib
import time

import numpy as np

from dfkd_jax import evaluation
from dfkd_jax.config import TeacherTrainingConfig
from dfkd_jax.data import datasets, tfds
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen
from dfkd_jax.reporting import figures
from dfkd_jax.runtime import (
    files,
    hosts,
    parallel,
    precision,
    progress,
    weights,
    writers,
)
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.runtime.workdir import (
    in_place,
    mark,
    open_workdir,
    source,
    versions,
)
from dfkd_jax.settings import recorded
from dfkd_jax.teachers import train as training


def run(config: TeacherTrainingConfig, workdir: pathlib.Path, *, command: str) -> int:
    """Trains what is not trained yet; the exit status.

    Leaves `teacher.safetensors` and, beside it, its manifest `teacher.json`.

    Raises:
        DfkdError: Data, disk, numbers or a work directory of another run.
    """
    progress.say(f"{config.name}: seed {config.seed}, work directory {workdir}")
    spec = datasets.spec(config.data.dataset, config.data.dir)

    def load(split):
        return tfds.load(
            spec.name,
            split,
            data_dir=config.data.dir,
            raw_dir=config.data.raw_dir,
            report=progress.say,
        )

    real = None if spec.mean else load("train")
    mean, std = _moments(real.images) if real else (spec.mean, spec.std)
    settings = dataclasses.asdict(config)
    settings["data"] = {"dataset": config.data.dataset}
    before = in_place(workdir).get("config")
    settings = recorded(TeacherTrainingConfig, settings, before)
    description = Description(
        network=config.network,
        num_classes=len(spec.class_names),
        image_shape=spec.image_shape,
        mean=mean,
        std=std,
        dataset=spec.name,
    )
    identity = {"config": settings, "description": description.to_json()}
    parallel.check_devices(config.batch_size, setting="config.batch_size")
    with open_workdir(workdir, identity):
        stopwatch = writers.Stopwatch(workdir / "seconds.json")
        path = workdir / "teacher.safetensors"
        if hosts.broadcast_from_process_0(_is_finished(path)):
            progress.say(f"Finished before: {path}")
            return 0
        real = real or load("train")
        model = Linen(
            registry.create(config.network, num_classes=description.num_classes)
        )
        progress.say(
            f"Teacher training: {config.network} for {config.num_epochs} epochs of "
            f"{len(real.images):,} images, with their labels"
        )
        variables = training.train(
            config,
            teacher=precision.compute_in(model, config.compute_dtype),
            description=description,
            images=real.images,
            labels=real.labels,
            workdir=workdir,
            stopwatch=stopwatch,
        )
        if not hosts.is_primary():
            return hosts.broadcast_from_process_0(None)
        figures.loss_curves(workdir)
        teacher = TrainedNetwork(
            model=model, variables=variables, description=description
        )
        teacher.save(path, run=mark(workdir))
        started = time.monotonic()
        found = {}
        for split in ("validation", "test"):
            part = load(split)
            found[split] = evaluation.evaluate(
                teacher, part.images, part.labels, class_names=spec.class_names
            )
        stopwatch.add("evaluation", time.monotonic() - started)
        manifest = {
            "experiment": config.name,
            "seed": config.seed,
            "command": command,
            "config": settings,
            "config_sha256": files.digest(settings),
            "num_training_images": len(real.images),
            "seconds": stopwatch.seconds,
        }
        manifest |= _described(teacher, path, found)
        files.write_json(path.with_suffix(".json"), manifest, sealed=True)
        progress.say(evaluation.table(found["test"]))
        progress.say(f"  {path}\n  {path.with_suffix('.json')}")
        return hosts.broadcast_from_process_0(0)


def _described(teacher, path, found):
    """What the manifest says of the network, and of what it was made with."""
    return {
        "data_free": False,
        "description": teacher.description.to_json(),
        "parameters": weights.count(teacher.variables),
        "sha256": teacher.sha256,
        "file_sha256": files.sha256(path),
        "validation_accuracy": found["validation"]["accuracy"],
        "test_accuracy": found["test"]["accuracy"],
        "test_evaluation": found["test"],
        "machine": parallel.describe(),
        "versions": versions(),
        "source": source(),
    }


def _moments(images):
    """Mean and standard deviation of the pixels from 0 to 1, one a channel."""
    each = [(x.mean((0, 1)), (x**2).mean((0, 1))) for x in (i / 255 for i in images)]
    mean, square = np.mean(each, axis=0)
    std = np.sqrt(square - mean**2)
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def _is_finished(path):
    """Whether the manifest is there and the weights are those that it describes."""
    manifest_path = path.with_suffix(".json")
    if not manifest_path.exists():
        return False
    wanted = files.read_object(manifest_path).get("file_sha256")
    if path.is_file() and files.sha256(path) == wanted:
        return True
    progress.warn(f"{path} is missing or damaged: making it again.")
    return False
