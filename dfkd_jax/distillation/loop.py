"""Trains the student on the transfer set; the last step is the result."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import augment as augmentations
from dfkd_jax.distillation import start as starts
from dfkd_jax.distillation import step as steps
from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.models.network import Model, Network
from dfkd_jax.runtime import (
    augmentation,
    checkpoints,
    feed,
    optimization,
    parallel,
    precision,
    progress,
    rng,
    training,
    weights,
    writers,
)
from dfkd_jax.sources import shapes

START_IMAGES = 8_000  # At most, each as it is and changed.


class Source(Protocol):
    """What the student learns from: anything with a length and `gather`."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and soft labels at `indices`."""
        ...


def make_augment(config: DistillationConfig) -> Callable[[Any, Any, Any], Any]:
    """`(key, image, other image) -> image` with the changes that `config` asks for."""

    def augment(key, image, other):
        mix_key, warp_key, jitter_key = jax.random.split(key, 3)
        if config.mixup or config.cutmix:
            image = augmentations.mix(
                mix_key,
                image,
                other,
                mixup=config.mixup,
                cutmix=config.cutmix,
            )
        if config.max_shift:
            image = augmentation.shift(
                rng.stream(key, "shift"), image, max_shift=config.max_shift
            )
        if config.flip:
            image = augmentation.flip(
                rng.stream(key, "flip"), image, probability=config.flip
            )
        if config.mirror:
            image = augmentations.mirror(
                rng.stream(key, "mirror"), image, probability=config.mirror
            )
        if config.fill:
            image = augmentations.fill(
                rng.stream(key, "fill"), image, probability=config.fill
            )
        if config.shift or config.affine or config.elastic:
            image = augmentations.warp(
                warp_key,
                image,
                shift=config.shift,
                affine=config.affine,
                elastic=config.elastic,
            )
        if config.contrast or config.brightness or config.noise:
            image = augmentations.jitter(
                jitter_key,
                image,
                contrast=config.contrast,
                brightness=config.brightness,
                noise=config.noise,
            )
        return image

    return augment


def inherit(start: Any, variables: Any) -> Any:
    """`start` with what the teacher has under the same name, in the same shape.

    Where both have the same layers after the feature layer, features that are learned
    well then give logits that are.
    """
    theirs = weights.flatten(variables)
    own = weights.flatten(start)
    same = {
        name
        for name in own.keys() & theirs.keys()
        if np.shape(own[name]) == np.shape(theirs[name])
    }
    chosen = {name: theirs[name] if name in same else own[name] for name in own}
    return weights.unflatten(chosen, source="The student")


def check_networks(
    config: DistillationConfig,
    *,
    teacher: Network,
    student: Model,
) -> None:
    """Raises ConfigError where teacher and student are not as alike as they have to be.

    That is, where the student starts with a part of the teacher, or learns features.
    """
    if config.start == "teacher":
        starts.check(teacher=teacher, student=student)
    if not config.feature_layer:
        return
    shape = tuple(teacher.description.image_shape)
    own = student.graph(student.shapes(shape), shape)
    found = []
    for name, graph in (("teacher", teacher.graph()), ("student", own)):
        layers = {
            layer.name: layer.output_shape
            for layer in graph.layers.values()
            if layer.calls == 1
        }
        if config.feature_layer not in layers:
            raise ConfigError(
                f"config.distillation.feature_layer={config.feature_layer!r} is no "
                f"layer of the {name}: choose one of {', '.join(layers)}."
                + did_you_mean(config.feature_layer, layers)
            )
        found.append(layers[config.feature_layer])
    if found[0] != found[1]:
        raise ConfigError(
            f"config.distillation.feature_layer={config.feature_layer!r} gives "
            f"{found[0]} in the teacher and {found[1]} in the student: choose a layer "
            'where both are the same, or "".'
        )


def distil(
    config: DistillationConfig,
    *,
    teacher: Network,
    student: Model,
    source: Source,
    compute_dtype: str,
    seed: int,
    workdir: pathlib.Path,
    stopwatch: writers.Stopwatch,
) -> Any:
    """The student's variables after the last step.

    Args:
        config: Settings of distillation; `check_networks` has passed them.
        teacher: What it learns from.
        student: What learns.
        source: The transfer set, or another source of images.
        compute_dtype: Of steps: "float32" or "bfloat16".
        seed: Root of all keys.
        workdir: For checkpoints (`student/`) and `metrics.jsonl`.
        stopwatch: Gets the seconds of checkpointed steps.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
        CheckpointError: A checkpoint cannot be restored.
        StorageError: A checkpoint cannot be written.
    """
    root = rng.stream(jax.random.key(seed), "distillation")
    schedule = optimization.warmup_then(
        config.schedule,
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        num_steps=config.num_steps,
    )
    folder = workdir / "student"
    augment = make_augment(config)
    shape = teacher.description.image_shape
    start = student.init(rng.stream(root, "student"), shape)
    if not checkpoints.exist(folder):  # One would take the place of any start.
        started = time.monotonic()
        if config.start == "teacher" or (
            config.start == "auto"
            and not starts.obstacle(teacher=teacher, student=student)
        ):
            images = _some_images(source, augment, rng.stream(root, "start"))
            progress.say(
                f"Start: a part of the teacher, fitted on {len(images):,} images"
            )
            start = parallel.of_the_first(
                starts.init_from_pruned_teacher(teacher, student, start, images)
            )
            stopwatch.add("distillation", time.monotonic() - started)
        elif config.feature_layer:
            start = inherit(start, teacher.variables)
    state = optimization.create_state(
        start,
        optimization.make_optimizer(
            config.optimizer,
            schedule,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        ),
    )
    step = steps.make_step(
        student=precision.compute_in(student, compute_dtype),
        augment=augment,
        loss=steps.make_loss(config.loss, temperature=config.temperature),
        stored_labels_temperature=(
            config.temperature if config.labels == "stored" else None
        ),
        feature_layer=config.feature_layer,
        feature_weight=config.feature_weight,
        class_balance=config.class_balance,
        draw=functools.partial(shapes.draw, image_shape=shape)
        if config.procedural
        else None,
        draw_every=config.procedural,
    )

    def read(step):
        where = {
            "num_images": len(source),
            "start": (step - 1) * config.batch_size,
            "count": config.batch_size,
        }
        images, labels = source.gather(feed.indices(seed, "images", **where))
        others = images  # Looked at where images are mixed, and read there alone.
        if config.mixup or config.cutmix:
            others, _ = source.gather(feed.indices(seed, "others", **where))
        return {"images": images, "others": others, "labels": labels}

    state = training.train(
        step,
        state=state,
        constants=precision.network_in(teacher, compute_dtype),
        key=rng.stream(root, "augmentation"),
        read=read,
        num_steps=config.num_steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        stage="distillation",
        learning_rate_key="config.distillation.learning_rate",
        folder=folder,
        workdir=workdir,
        stopwatch=stopwatch,
    )
    return jax.tree.map(np.asarray, optimization.variables_of(state))


def _some_images(source, augment, key):
    """Images of `source` as they are, and then as a step would change them.

    With changed ones alone students start far worse (docs/recipe.md).
    """
    place = np.arange(min(START_IMAGES, len(source)))
    images, _ = source.gather(place)
    keys = rng.per_example(key, jnp.asarray(place))
    changed = jax.jit(jax.vmap(augment))(keys, images, np.roll(images, 1, axis=0))
    return np.concatenate([images, changed])
