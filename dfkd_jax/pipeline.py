"""From a teacher's weights to an evaluated student: the stages in order.

Each stage leaves its result in the work directory and is skipped when that is there:
`transfer_set/` (synthesis), `student.safetensors` (distillation), `results.json`
(evaluation). Only the last stage reads real data.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from dfkd_jax import evaluate as evaluation
from dfkd_jax.config import ExperimentConfig, TargetsConfig
from dfkd_jax.data import datasets, held_out
from dfkd_jax.distillation import loop as distillation_loop
from dfkd_jax.errors import (
    CheckpointError,
    ConfigError,
    DataUnavailableError,
    did_you_mean,
)
from dfkd_jax.models import network as networks
from dfkd_jax.models import registry
from dfkd_jax.reporting import figures, findings, pages, soft_labels, tables
from dfkd_jax.runtime import (
    files,
    hosts,
    parallel,
    precision,
    progress,
    weights,
    writers,
)
from dfkd_jax.runtime.workdir import mark, open_workdir, source, versions
from dfkd_jax.synthesis import loop as synthesis_loop
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet
from dfkd_jax.targets import dirichlet, gaussian
from dfkd_jax.teachers import weights as teachers


def run(
    config: ExperimentConfig,
    workdir: pathlib.Path,
    *,
    command: str,
    teacher: weights.TrainedNetwork | None = None,
    student: Any = None,
) -> int:
    """Runs what is not finished yet; the exit status (0, or 3 without a test set).

    Args:
        config: Settings.
        workdir: Everything goes here.
        command: For `results.json`.
        teacher: In place of what `config.teacher` names.
        student: Linen module, in place of what `config.student` names.

    Raises:
        DfkdError: Of any stage; what was finished before is kept.
    """
    started = time.monotonic()
    progress.say(f"{config.name}: seed {config.seed}, work directory {workdir}")
    if teacher is None:
        teacher = teachers.load(config.teacher, dataset=config.data.dataset)
    description = dataclasses.replace(
        teacher.description,
        network=config.student.name,
        arguments=config.student.arguments,
    )
    if config.data.dataset:
        evaluation.check_task(
            teacher.description,
            datasets.spec(config.data.dataset),
            source=f"The teacher {config.teacher.weights}",
            setting="config.data.dataset",
        )
    if student is None:
        student = registry.create(
            config.student.name,
            num_classes=description.num_classes,
            arguments=config.student.arguments,
        )
    _check_student(student, description)
    feature_layer = find_feature_layer(config.targets, teacher)
    settings = dataclasses.asdict(config)
    del settings["data"]  # Where the test set is may change between two starts.
    identity = {
        "config": settings,
        "teacher_sha256": teacher.sha256,
        "description": dataclasses.asdict(description),
    }
    with open_workdir(workdir, identity):
        parallel.check_devices(
            config.distillation.batch_size, setting="config.distillation.batch_size"
        )
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
        draw_labels = make_targets(config.targets, teacher, feature_layer)
        stopwatch.add("prepare", time.monotonic() - started)

        _synthesise(
            config,
            teacher,
            feature_layer.name,
            draw_labels,
            transfer_set,
            workdir,
            stopwatch,
        )
        variables = _distil(
            config, teacher, student, description, transfer_set, workdir, stopwatch
        )
        if not hosts.is_first():
            return hosts.first_says(None)
        figures.loss_curves(workdir)
        _keep_soft_labels(config, teacher, feature_layer, workdir / "soft_labels.npz")

        results = {
            "experiment": config.name,
            "seed": config.seed,
            "data_free": True,
            "dataset": config.data.dataset or config.data.file,
            "feature_layer": feature_layer.name,
            "num_pseudo_samples": len(transfer_set),
            "teacher": {
                "network": config.teacher.name,
                "weights": config.teacher.weights,
                "sha256": teacher.sha256,
                "parameters": weights.count(teacher.variables),
                "test_accuracy": None,
            },
            "student": {
                "network": config.student.name,
                "sha256": weights.digest(variables),
                "parameters": weights.count(variables),
                "test_accuracy": None,
            },
            "transfer_set_sha256": transfer_set.digest(),
            "seconds": stopwatch.seconds,
            "command": command,
            "machine": parallel.describe(),
            "versions": versions(),
            "source": source(),
            "config_sha256": files.digest(settings),
            "config": settings,
        }
        status = _evaluate(
            config, teacher, student, variables, results, workdir, stopwatch
        )
        pages.write(workdir)
        return hosts.first_says(status)


def find_feature_layer(
    targets: TargetsConfig, teacher: weights.TrainedNetwork
) -> networks.Layer:
    """The layer of the teacher whose output the normal models.

    Raises:
        ConfigError: There is none of this name, or it cannot be one.
    """
    found = teacher.layers()
    if not found:
        raise ConfigError(
            f"The teacher {teacher.description.network!r} has no layer with a kernel "
            "and one output a unit: nothing can be a feature layer."
        )
    name = targets.feature_layer or networks.penultimate(found)
    key = f"config.targets.feature_layer={name!r}"
    if name not in found:
        raise ConfigError(
            f"{key} is no layer of the teacher: choose one of {', '.join(found)}."
            + did_you_mean(name, found)
        )
    layer = found[name]
    if layer.calls > 1:
        raise ConfigError(
            f"{key} is called {layer.calls} times by the teacher, so it is not one "
            f"feature space: choose another of {', '.join(found)}."
        )
    if targets.weights == "outgoing" and not layer.next_layer:
        raise ConfigError(
            f"config.targets.weights='outgoing' is not possible: after {name!r} comes "
            "no layer with one input a unit."
        )
    if targets.mean == "bias" and "bias" not in networks.lookup(
        teacher.variables["params"], layer.name
    ):
        raise ConfigError(
            f"config.targets.mean='bias' is not possible: {name!r} has no bias."
        )
    if targets.mean == "batch_norm" and not layer.batch_norm:
        raise ConfigError(
            f"config.targets.mean='batch_norm' is not possible: no BatchNorm follows "
            f"{name!r} directly."
        )
    return layer


def find_kernel(
    targets: TargetsConfig, teacher: weights.TrainedNetwork, layer: networks.Layer
) -> Any:
    """The kernel that the correlation of the units of `layer` is built from."""
    name = layer.next_layer if targets.weights == "outgoing" else layer.kernel_layer
    return jnp.asarray(networks.lookup(teacher.variables["params"], name)["kernel"])


def make_targets(
    targets: TargetsConfig, teacher: weights.TrainedNetwork, layer: networks.Layer
) -> Any:
    """`draw(keys [batch]) -> soft labels [batch, classes]` as the config asks."""
    params = teacher.variables["params"]
    if targets.distribution == "dirichlet":
        last = list(teacher.layers().values())[-1]
        kernel = jnp.asarray(networks.lookup(params, last.kernel_layer)["kernel"])
        return dirichlet.soft_labels(kernel, betas=targets.betas)
    mean, std = None, None
    if targets.mean == "bias":
        mean = jnp.asarray(networks.lookup(params, layer.name)["bias"])
    elif targets.mean == "batch_norm" or (targets.mean == "auto" and layer.batch_norm):
        statistics = networks.lookup(teacher.variables["batch_stats"], layer.batch_norm)
        mean, std = jnp.asarray(statistics["mean"]), jnp.sqrt(statistics["var"])
    normal = gaussian.feature_normal(
        find_kernel(targets, teacher, layer),
        sigma=targets.sigma,
        scale=targets.scale,
        weights=targets.weights,
        window=targets.window,
        mean=mean,
        std=std,
    )

    def head(features):
        return networks.head(
            teacher.module,
            teacher.variables,
            features,
            layer=layer.name,
            image_shape=tuple(teacher.description.image_shape),
        )

    return gaussian.soft_labels(
        head,
        normal,
        shape=layer.output_shape,
        grid=targets.grid,
        candidates=targets.candidates,
    )


def _check_student(student, description):
    """Before work starts: it takes the teacher's images and tells its classes apart."""
    _, num_classes = weights.trace(
        student, description.image_shape, network=description.network
    )
    if num_classes != description.num_classes:
        raise CheckpointError(
            f"The student {description.network!r} tells {num_classes} classes apart, "
            f"the teacher {description.num_classes}: change config.student.arguments."
        )


def _synthesise(
    config, teacher, feature_layer, draw_labels, transfer_set, workdir, stopwatch
):
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
            teacher=precision.compute_in(teacher.module, config.compute_dtype),
            feature_layer=feature_layer,
            variables=teacher.variables,
            mean=teacher.description.mean,
            std=teacher.description.std,
            draw_labels=draw_labels,
            transfer_set=transfer_set,
            seed=config.seed,
            workdir=workdir,
            stopwatch=stopwatch,
        )
    if not hosts.is_first():
        return
    images, labels = transfer_set.gather(np.arange(min(len(transfer_set), 1_000)))
    figures.sample_grid(
        workdir / "pseudo_samples.png",
        images,
        labels,
        mean=teacher.description.mean,
        std=teacher.description.std,
        class_names=evaluation.class_names(teacher.description),
    )


def _distil(config, teacher, student, description, transfer_set, workdir, stopwatch):
    path = workdir / "student.safetensors"
    if hosts.first_says(path.exists()):
        return _load_student(path)
    progress.say(
        f"Distillation: {config.student.name} for {config.distillation.num_steps:,} "
        f"steps of {config.distillation.batch_size} augmented pseudo samples"
    )
    variables = distillation_loop.distil(
        config.distillation,
        teacher=precision.compute_in(teacher.module, config.compute_dtype),
        variables=teacher.variables,
        student=precision.compute_in(student, config.compute_dtype),
        source=transfer_set,
        image_shape=description.image_shape,
        seed=config.seed,
        workdir=workdir,
        stopwatch=stopwatch,
    )
    if hosts.is_first():
        weights.save(path, variables, description, run=mark(workdir))
    return variables


def _load_student(path):
    """What this very run has made before."""
    again = "Delete it, and the same command makes it again from the last checkpoint."
    try:
        variables, _ = weights.load(path)
        run = weights.made_by(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {again}") from error
    if run not in ("", mark(path.parent)):
        raise CheckpointError(f"{path} is of another run. {again}")
    return variables


def _keep_soft_labels(config, teacher, feature_layer, path):
    """Of both distributions, for the map in the report."""
    if soft_labels.is_whole(path):
        return
    labels = {}
    for distribution in ("gaussian", "dirichlet"):
        targets = dataclasses.replace(config.targets, distribution=distribution)
        drawn = soft_labels.draw(
            make_targets(targets, teacher, feature_layer),
            seed=config.seed,
            count=soft_labels.NUM_DRAWS,
        )
        # ZSKD's is of the last layer's units, which need not be the classes.
        if drawn.shape[1] == teacher.description.num_classes:
            labels[distribution] = drawn
    soft_labels.save(path, labels)


def _evaluate(config, teacher, student, variables, results, workdir, stopwatch):
    path = workdir / "results.json"
    if path.exists():
        before = files.read_object(path)
        _check_results(path, before, results)
        if before["student"].get("test_accuracy") is not None:
            tables.print_summary(before, workdir)
            return 0
    _keep_results(results, workdir)
    started = time.monotonic()
    try:
        real = held_out.load(config.data, split="test", report=progress.say)
    except DataUnavailableError as error:
        _tell_warnings(results)
        progress.warn(
            f"The student is made ({workdir / 'student.safetensors'}) but not "
            "evaluated. "
            f"{error} The same command then does the evaluation only."
        )
        return error.exit_status
    if real is None:
        _tell_warnings(results)
        progress.say(
            f"The student is made: {workdir / 'student.safetensors'}. No test set is "
            "named in config.data, so it is not evaluated."
        )
        return 0
    progress.say(f"Evaluation on the test set of {real.name}")
    real.check(teacher.description, source=f"The teacher {config.teacher.weights}")
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
            class_names=real.class_names or evaluation.class_names(teacher.description),
        )
        results[role] |= {"test_accuracy": found["accuracy"], "evaluation": found}
    stopwatch.add("evaluation", time.monotonic() - started)
    results["test_set_sha256"] = real.sha256
    results["seconds"] = stopwatch.seconds
    _keep_results(results, workdir)
    tables.print_summary(results, workdir)
    return 0


def _keep_results(results, workdir):
    """Writes `results.json`, with what must not be missed of them."""
    path = workdir / "results.json"
    files.write_json(path, results, sealed=True)
    results["warnings"] = findings.warnings(workdir)
    files.write_json(path, results, sealed=True)


def _tell_warnings(results):
    for warning in results["warnings"]:
        progress.warn(warning)


def _check_results(path, before, results):
    """Raises CheckpointError where `results.json` is of another run."""
    for key in ("seed", "teacher.sha256", "student.sha256", "transfer_set_sha256"):
        old, new = before, results
        for name in key.split("."):
            old, new = old.get(name) if isinstance(old, dict) else None, new[name]
        if old != new:
            raise CheckpointError(
                f"{path} is of another run ({key} is {old}, not {new}): delete it, and "
                "the same command makes it again."
            )
