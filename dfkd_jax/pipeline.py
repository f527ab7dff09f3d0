"""From a teacher's weights to an evaluated student: the stages in order.

Each stage leaves its result in the work directory and is skipped when that is there:
`transfer_set/` (synthesis), `student.safetensors` (distillation), `results.json`
(evaluation). Only the last stage reads real data.
"""

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np

from dfkd_jax import evaluate as evaluation
from dfkd_jax.config import ExperimentConfig
from dfkd_jax.data import datasets, tfds
from dfkd_jax.distillation import loop as distillation_loop
from dfkd_jax.errors import ConfigError, DataUnavailableError
from dfkd_jax.models import registry
from dfkd_jax.reporting import figures, tables
from dfkd_jax.runtime import files, parallel, progress, weights, writers
from dfkd_jax.runtime.workdir import open_workdir, versions
from dfkd_jax.synthesis import loop as synthesis_loop
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet
from dfkd_jax.targets import dirichlet, gaussian
from dfkd_jax.teachers import weights as teachers


def run(config: ExperimentConfig, workdir: pathlib.Path, *, command: str) -> int:
    """Runs what is not finished yet; the exit status (0, or 3 without a test set).

    Args:
        config: Settings.
        workdir: Everything goes here.
        command: For `results.json`.

    Raises:
        DfkdError: Of any stage; what was finished before is kept.
    """
    started = time.monotonic()
    progress.say(f"{config.name}: seed {config.seed}, work directory {workdir}")
    parallel.configure(cpu_devices=config.cpu_devices)
    teacher = teachers.load(config.teacher, feature_layer=config.targets.feature_layer)
    description = dataclasses.replace(
        teacher.description, network=config.student.network
    )
    spec = datasets.spec(config.data.dataset)
    evaluation.check_task(
        teacher.description,
        spec,
        source=f"The teacher {config.teacher.weights}",
        setting="config.data.dataset",
    )
    student = registry.create(
        config.student.network, num_classes=description.num_classes
    )
    settings = dataclasses.asdict(config)
    del settings["data"]  # Where the test set is may change between two starts.
    identity = {
        "config": settings,
        "teacher_sha256": teacher.sha256,
        "description": dataclasses.asdict(description),
    }
    with open_workdir(workdir, identity):
        _check_devices(config)
        stopwatch = writers.Stopwatch(workdir / "seconds.json")
        transfer_set = TransferSet(
            workdir / "transfer_set",
            Manifest(
                num_images=config.synthesis.num_images,
                shard_size=config.synthesis.images_per_device,
                image_shape=description.image_shape,
                num_classes=description.num_classes,
                seed=config.seed,
                teacher_sha256=teacher.sha256,
                settings={
                    "targets": settings["targets"],
                    "synthesis": settings["synthesis"],
                },
            ),
        )
        draw_labels = make_targets(config, teacher)
        stopwatch.add("prepare", time.monotonic() - started)

        _synthesise(config, teacher, draw_labels, transfer_set, workdir, stopwatch)
        variables = _distil(
            config, teacher, student, description, transfer_set, workdir, stopwatch
        )
        figures.loss_curves(workdir)

        results = {
            "experiment": config.name,
            "seed": config.seed,
            "data_free": True,
            "dataset": config.data.dataset,
            "num_pseudo_samples": len(transfer_set),
            "teacher": {
                "network": config.teacher.network,
                "weights": config.teacher.weights,
                "sha256": teacher.sha256,
                "parameters": weights.count(teacher.variables),
                "test_accuracy": None,
            },
            "student": {
                "network": config.student.network,
                "sha256": weights.digest(variables),
                "parameters": weights.count(variables),
                "test_accuracy": None,
            },
            "transfer_set_sha256": transfer_set.digest(),
            "seconds": stopwatch.seconds,
            "command": command,
            "machine": parallel.describe(),
            "versions": versions(),
            "config": settings,
        }
        return _evaluate(
            config, teacher, student, variables, results, workdir, stopwatch
        )


def make_targets(config: ExperimentConfig, teacher: teachers.Teacher) -> Any:
    """`draw(keys [batch]) -> soft labels [batch, classes]` as the config asks."""
    targets = config.targets
    params = teacher.variables["params"]
    layers = registry.FEATURE_LAYERS[config.teacher.network]
    if targets.distribution == "dirichlet":
        return dirichlet.soft_labels(params[layers[-1]]["kernel"], betas=targets.betas)
    after = layers.index(targets.feature_layer) + 1
    normal = gaussian.feature_normal(
        params,
        layer=targets.feature_layer,
        next_layer=layers[after] if after < len(layers) else None,
        sigma=targets.sigma,
        scale=targets.scale,
        weights=targets.weights,
        window=targets.window,
        mean=targets.mean,
    )
    return gaussian.soft_labels(teacher.module, teacher.variables, normal)


def _check_devices(config):
    count = parallel.device_count()
    if config.distillation.batch_size % count:
        raise ConfigError(
            f"config.distillation.batch_size={config.distillation.batch_size} "
            f"cannot be split over {count} devices: make it a multiple, or set "
            "config.cpu_devices on a CPU."
        )


def _synthesise(config, teacher, draw_labels, transfer_set, workdir, stopwatch):
    for shard in transfer_set.verify():
        progress.warn(f"Shard {shard} of the transfer set is damaged: making it again.")
    if transfer_set.missing():
        progress.say(
            f"Synthesis: {config.synthesis.num_images:,} pseudo samples, "
            f"{config.synthesis.num_steps} steps each, from the weights of "
            f"{config.teacher.weights}; devices: {parallel.device_count()}"
        )
        synthesis_loop.synthesise(
            config.synthesis,
            teacher=teacher.module,
            variables=teacher.variables,
            mean=teacher.description.mean,
            std=teacher.description.std,
            draw_labels=draw_labels,
            transfer_set=transfer_set,
            seed=config.seed,
            workdir=workdir,
            stopwatch=stopwatch,
        )
    images, labels = transfer_set.gather(np.arange(min(len(transfer_set), 1_000)))
    figures.sample_grid(
        workdir / "pseudo_samples.png",
        images,
        labels,
        mean=teacher.description.mean,
        std=teacher.description.std,
        class_names=datasets.spec(config.data.dataset).class_names,
    )


def _distil(config, teacher, student, description, transfer_set, workdir, stopwatch):
    path = workdir / "student.safetensors"
    if path.exists():
        return weights.load(path)[0]
    progress.say(
        f"Distillation: {config.student.network} for {config.distillation.num_steps:,} "
        f"steps of {config.distillation.batch_size} augmented pseudo samples"
    )
    variables = distillation_loop.distil(
        config.distillation,
        teacher=teacher.module,
        variables=teacher.variables,
        student=student,
        source=transfer_set,
        image_shape=description.image_shape,
        seed=config.seed,
        workdir=workdir,
        stopwatch=stopwatch,
    )
    weights.save(path, variables, description)
    return variables


def _evaluate(config, teacher, student, variables, results, workdir, stopwatch):
    path = workdir / "results.json"
    if path.exists() and files.read_json(path)["student"]["test_accuracy"] is not None:
        tables.print_summary(files.read_json(path), workdir)
        return 0
    files.write_json(path, results)
    started = time.monotonic()
    progress.say(f"Evaluation on the test set of {config.data.dataset}")
    try:
        real = tfds.load(
            config.data.dataset,
            "test",
            data_dir=config.data.dir,
            raw_dir=config.data.raw_dir,
            report=progress.say,
        )
    except DataUnavailableError as error:
        progress.warn(
            f"The student is made ({workdir / 'student.safetensors'}) but not "
            "evaluated. "
            f"{error} The same command then does the evaluation only."
        )
        return error.exit_status
    spec = datasets.spec(config.data.dataset)
    for role, network, values in (
        ("teacher", teacher.module, teacher.variables),
        ("student", student, variables),
    ):
        found = evaluation.evaluate(
            network,
            values,
            teacher.module,
            teacher.variables,
            images=real.images,
            labels=real.labels,
            mean=teacher.description.mean,
            std=teacher.description.std,
            class_names=spec.class_names,
        )
        results[role] |= {"test_accuracy": found["accuracy"], "evaluation": found}
    stopwatch.add("evaluation", time.monotonic() - started)
    results["seconds"] = stopwatch.seconds
    files.write_json(path, results)
    tables.print_summary(results, workdir)
    return 0
