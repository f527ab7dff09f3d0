"""Wang (AAAI 2021): soft labels from the teacher's weights, images for them, a student.

The paper's own distribution of soft labels, ZSKD's Dirichlet and DeepInversion's hard
labels are choices of `config.targets`; images that are left as they start
(`config.synthesis.num_steps=0`) are the baseline of unoptimized noise.

Two stages leave their results in the work directory and are skipped when these are
there: `transfer_set/` (synthesis) and `student.safetensors` (distillation).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.config import (
    DistillationConfig,
    ExperimentConfig,
    SynthesisConfig,
    TargetsConfig,
)
from dfkd_jax.distillation import loop as distillation_loop
from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.methods import pilot
from dfkd_jax.methods.task import MethodResult, Task
from dfkd_jax.models.graph import Layer
from dfkd_jax.models.network import LOGITS, Model, logits_layer, penultimate
from dfkd_jax.reporting import figures, soft_labels
from dfkd_jax.runtime import files, hosts, parallel, precision, progress
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.settings import recorded
from dfkd_jax.synthesis import loop as synthesis_loop
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet
from dfkd_jax.targets import dirichlet, gaussian, one_hot


def check(config: ExperimentConfig, teacher: TrainedNetwork, student: Model) -> None:
    """Raises ConfigError where the settings do not suit the networks or the devices."""
    find_feature_layer(config.targets, teacher)
    check_priors(config.synthesis, teacher)
    check_distillation(config.distillation, teacher, student)


def check_priors(synthesis: SynthesisConfig, teacher: TrainedNetwork) -> None:
    """Raises ConfigError where a prior needs what the teacher has not.

    But for the default, which `pilot.settle` takes back then.
    """
    left = (0.0, SynthesisConfig().batch_norm)
    if synthesis.batch_norm not in left and not teacher.graph().has_batch_norm:
        raise ConfigError(
            f"config.synthesis.batch_norm={synthesis.batch_norm} is not possible: the "
            f"teacher {teacher.description.network!r} has no BatchNorm of images "
            "(after a convolution) that keeps statistics. Set it to 0."
        )


def check_distillation(
    distillation: DistillationConfig,
    teacher: TrainedNetwork,
    student: Model,
) -> None:
    """Raises ConfigError where the student cannot learn from the teacher as asked."""
    parallel.check_devices(
        distillation.batch_size, setting="config.distillation.batch_size"
    )
    distillation_loop.check_networks(
        distillation,
        teacher=teacher,
        student=student,
    )


def make_student(task: Task) -> MethodResult:
    """The student; see above.

    Raises:
        NonFiniteError: A loss or an image became NaN or infinite.
        CheckpointError: What is in the work directory is damaged or foreign.
        StorageError: The work directory cannot be written.
    """
    started = time.monotonic()
    targets = task.config.targets
    feature_layer = find_feature_layer(targets, task.teacher)
    measure = functools.partial(find_sigma, targets, task.teacher, feature_layer)
    task, measured = pilot.settle(
        task, find_sigma=measure if targets.distribution == "gaussian" else None
    )
    config = task.config
    if feature_layer.name == LOGITS:
        progress.say(
            f"The teacher {task.teacher.description.network!r} has no layer that can "
            "be looked into: soft labels are drawn over its logits, each by itself."
        )
    draw_labels = make_targets(config.targets, task.teacher, feature_layer)
    transfer_set = open_transfer_set(task, {"targets": config.targets})
    task.stopwatch.add("prepare", time.monotonic() - started)
    synthesize(
        task,
        feature_layer=feature_layer.name,
        draw_labels=draw_labels,
        transfer_set=transfer_set,
    )
    student = distil(task, lambda: transfer_set, images="pseudo samples")
    if hosts.is_primary():
        _keep_soft_labels(task, feature_layer)
    return MethodResult(
        student=student, metadata=metadata(feature_layer.name, transfer_set) | measured
    )


def metadata(feature_layer: str, transfer_set: TransferSet) -> dict[str, Any]:
    """For `results.json`: what a student learned from that has a transfer set."""
    return {
        "feature_layer": feature_layer,
        "num_pseudo_samples": len(transfer_set),
        "transfer_set_sha256": transfer_set.digest(),
    }


def open_transfer_set(task: Task, origin: Mapping[str, Any]) -> TransferSet:
    """The transfer set in the work directory, as far as it is made.

    Args:
        task: With `config.synthesis`.
        origin: Where its soft labels come from: groups of settings by name.
    """
    synthesis = task.config.synthesis
    folder = task.workdir / "transfer_set"
    path = folder / "manifest.json"
    before = files.read_object(path).get("settings") if path.exists() else {}
    before = before if isinstance(before, Mapping) else {}
    settings = {
        name: recorded(type(group), dataclasses.asdict(group), before.get(name))
        if dataclasses.is_dataclass(group) and not isinstance(group, type)
        else group
        for name, group in {**origin, "synthesis": synthesis}.items()
    }
    return TransferSet(
        folder,
        Manifest(
            num_images=synthesis.num_images,
            shard_size=synthesis.images_per_device,
            image_shape=task.description.image_shape,
            num_classes=task.description.num_classes,
            seed=task.config.seed,
            teacher_sha256=task.teacher.sha256,
            settings=settings,
        ),
    )


def synthesize(
    task: Task,
    *,
    feature_layer: str,
    draw_labels: Callable[[Any], Any],
    transfer_set: TransferSet,
) -> None:
    """Makes what the transfer set misses, and a picture of it.

    Args:
        task: With `config.synthesis`.
        feature_layer: Whose responses the activation loss looks at.
        draw_labels: Keys `[batch]` to soft labels `[batch, classes]`.
        transfer_set: From `open_transfer_set`.
    """
    config, teacher = task.config, task.teacher
    for shard in transfer_set.verify():
        progress.warn(f"Shard {shard} of the transfer set is damaged: making it again.")
    if not transfer_set.missing():
        progress.say(f"Synthesis: done before, {len(transfer_set):,} pseudo samples")
    else:
        made = f" ({len(transfer_set):,} made before)" if len(transfer_set) else ""
        progress.say(
            f"Synthesis: {config.synthesis.num_images:,} pseudo samples{made}, "
            f"{config.synthesis.num_steps} steps each, from the weights of "
            f"{config.teacher.weights}; devices: {parallel.device_count()}"
        )
        synthesis_loop.synthesize(
            config.synthesis,
            teacher=precision.network_in(teacher, config.compute_dtype),
            feature_layer=feature_layer,
            draw_labels=draw_labels,
            transfer_set=transfer_set,
            seed=config.seed,
            workdir=task.workdir,
            stopwatch=task.stopwatch,
        )
    draw_samples(task, transfer_set)
    if hosts.is_primary():
        task.warn_of_images()


def draw_samples(task: Task, transfer_set: TransferSet) -> None:
    """Writes `pseudo_samples.png`: images of the transfer set by likeliest class."""
    if not hosts.is_primary():
        return
    images, labels = transfer_set.gather(np.arange(min(len(transfer_set), 1_000)))
    with progress.busy("Drawing pseudo samples"):
        figures.sample_grid(
            task.workdir / "pseudo_samples.png",
            images,
            labels,
            mean=task.description.mean,
            std=task.description.std,
            class_names=task.class_names,
        )


def distil(
    task: Task, open_source: Callable[[], distillation_loop.Source], *, images: str
) -> TrainedNetwork:
    """The student, trained if it is not made yet.

    Args:
        task: With `config.distillation`.
        open_source: What it learns from; called where it is to be trained.
        images: What that is, for the person who waits.
    """
    config = task.config

    def train():
        source = open_source()
        progress.say(
            f"Distillation: {config.student.name} for "
            f"{config.distillation.num_steps:,} steps of "
            f"{config.distillation.batch_size} augmented {images}"
        )
        return distillation_loop.distil(
            config.distillation,
            teacher=task.teacher,
            student=task.student,
            source=source,
            compute_dtype=config.compute_dtype,
            seed=config.seed,
            workdir=task.workdir,
            stopwatch=task.stopwatch,
        )

    return task.load_or_train(train)


def find_layer(name: str, teacher: TrainedNetwork, *, setting: str) -> Layer:
    """The layer of the teacher called `name`; the layer before the last if empty.

    Where none is there, it is the logits.

    Args:
        name: In the parameter tree, or empty.
        teacher: Whose layers are looked at.
        setting: What names the layer, for the message.

    Raises:
        ConfigError: There is none of this name, or it is no feature space.
    """
    found = teacher.layers()
    name = name or penultimate(found)
    if not name:
        return logits_layer(teacher.description.num_classes)
    if name not in found:
        raise ConfigError(
            f"{setting}={name!r} is no layer of the teacher: choose one of "
            f"{', '.join(found) or 'none'}." + did_you_mean(name, found)
        )
    if found[name].calls > 1:
        raise ConfigError(
            f"{setting}={name!r} is called {found[name].calls} times by the teacher, "
            "so it is not one feature space: choose another of "
            f"{', '.join(found)}."
        )
    if found[name].is_of_tokens:
        raise ConfigError(
            f"{setting}={name!r} gives tokens {found[name].output_shape}, expected a "
            "vector or feature maps: choose another of "
            f"{', '.join(k for k, v in found.items() if not v.is_of_tokens) or 'none'}."
        )
    return found[name]


def find_feature_layer(targets: TargetsConfig, teacher: TrainedNetwork) -> Layer:
    """The layer of the teacher whose output the normal models.

    Raises:
        ConfigError: There is none of this name, or it cannot be one.
    """
    layer = find_layer(
        targets.feature_layer, teacher, setting="config.targets.feature_layer"
    )
    name = layer.name
    if targets.weights == "outgoing" and not layer.next_layer:
        raise ConfigError(
            f"config.targets.weights='outgoing' is not possible: after {name!r} comes "
            "no layer with one input a unit."
        )
    if targets.mean == "bias" and teacher.bias(name) is None:
        raise ConfigError(
            f"config.targets.mean='bias' is not possible: {name!r} has no bias."
        )
    if targets.mean == "batch_norm" and not layer.batch_norm:
        raise ConfigError(
            f"config.targets.mean='batch_norm' is not possible: no BatchNorm follows "
            f"{name!r} directly."
        )
    return layer


def find_kernel(targets: TargetsConfig, teacher: TrainedNetwork, layer: Layer) -> Any:
    """The kernel that the correlation of the units of `layer` is built from."""
    name = layer.next_layer if targets.weights == "outgoing" else layer.kernel_layer
    assert name is not None
    return teacher.kernel(name)


def make_targets(targets: TargetsConfig, teacher: TrainedNetwork, layer: Layer) -> Any:
    """`draw(keys [batch]) -> soft labels [batch, classes]` as the config asks."""
    if targets.distribution == "one_hot":
        return one_hot.labels(teacher.description.num_classes)
    if targets.distribution == "dirichlet":
        last = [logits_layer(0), *teacher.layers().values()][-1]
        return dirichlet.soft_labels(
            teacher.kernel(last.kernel_layer), betas=targets.betas
        )
    return labels_of(
        _normal(
            targets,
            teacher,
            layer,
            sigma=targets.sigma or find_sigma(targets, teacher, layer),
        ),
        teacher,
        layer,
        grid=targets.grid,
        candidates=targets.candidates,
    )


def _normal(targets, teacher, layer, *, sigma):
    mean, std = None, None
    if targets.mean == "bias":
        mean = teacher.bias(layer.name)
    elif targets.mean == "batch_norm" or (targets.mean == "auto" and layer.batch_norm):
        mean, variance = teacher.statistics(layer.batch_norm)
        std = jnp.sqrt(variance)
    return gaussian.feature_normal(
        find_kernel(targets, teacher, layer),
        sigma=sigma,
        scale=targets.scale,
        weights=targets.weights,
        window=targets.window,
        mean=mean,
        std=std,
    )


def find_sigma(targets: TargetsConfig, teacher: TrainedNetwork, layer: Layer) -> float:
    """The variance (or deviation) with which soft labels suit the teacher."""
    unit = _normal(targets, teacher, layer, sigma=1.0)

    @jax.jit
    def draw(sigma, keys):
        root = jnp.sqrt(sigma) if targets.scale == "variance" else sigma
        labels = labels_of(
            unit.replace(factor=root * unit.factor),
            teacher,
            layer,
            grid=targets.grid,
            candidates=1,
        )(keys)
        return jnp.log(jnp.maximum(labels, jnp.finfo(jnp.float32).tiny))

    return pilot.fitting_sigma(draw)


def labels_of(
    normal: gaussian.Normal,
    teacher: TrainedNetwork,
    layer: Layer,
    *,
    grid: int,
    candidates: int,
) -> Any:
    """`draw(keys [batch]) -> soft labels`, of a normal over the units of `layer`."""
    return gaussian.soft_labels(
        functools.partial(teacher.head, layer=layer.name),
        normal,
        shape=layer.output_shape,
        grid=grid,
        candidates=candidates,
    )


def _keep_soft_labels(task, feature_layer):
    """Of both distributions, for the map in the report."""
    path = task.workdir / "soft_labels.npz"
    if soft_labels.is_whole(path):
        return
    labels = {}
    for distribution in ("gaussian", "dirichlet"):
        targets = dataclasses.replace(task.config.targets, distribution=distribution)
        drawn = soft_labels.draw(
            make_targets(targets, task.teacher, feature_layer),
            seed=task.config.seed,
            count=soft_labels.NUM_DRAWS,
        )
        # ZSKD's is of the last layer's units, which need not be the classes.
        if drawn.shape[1] == task.description.num_classes:
            labels[distribution] = drawn
    soft_labels.save(path, labels)
