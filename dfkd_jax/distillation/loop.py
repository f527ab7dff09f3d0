"""Trains the student on the transfer set; the last step is the result."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from flax import linen as nn

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import augment as augmentations
from dfkd_jax.distillation import step as steps
from dfkd_jax.models import network
from dfkd_jax.runtime import (
    augmentation,
    feed,
    optimisation,
    rng,
    training,
    writers,
)


class Source(Protocol):
    """What the student learns from: anything with a length and `gather`."""

    def __len__(self) -> int:
        """Number of images."""

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and soft labels at `indices`."""


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


def distil(
    config: DistillationConfig,
    *,
    teacher: nn.Module,
    variables: Any,
    student: nn.Module,
    source: Source,
    image_shape: Any,
    seed: int,
    workdir: pathlib.Path,
    stopwatch: writers.Stopwatch,
) -> Any:
    """The student's variables after the last step.

    Args:
        config: Settings of distillation.
        teacher: The teacher's linen module.
        variables: Its variables.
        student: The student's linen module; starts from scratch.
        source: The transfer set, or another source of images.
        image_shape: (height, width, channels).
        seed: Root of all keys.
        workdir: For checkpoints (`student/`) and `metrics.jsonl`.
        stopwatch: Gets the seconds of checkpointed steps.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
        CheckpointError: A checkpoint cannot be restored.
        StorageError: A checkpoint cannot be written.
    """
    root = rng.stream(jax.random.key(seed), "distillation")
    schedule = optimisation.warmup_then(
        config.schedule,
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        num_steps=config.num_steps,
    )
    state = steps.create_state(
        student=student,
        variables=network.init(student, rng.stream(root, "student"), image_shape),
        optimizer=optimisation.make_optimizer(
            config.optimizer,
            schedule,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        ),
    )
    step = steps.make_step(
        student=student,
        teacher=teacher,
        augment=make_augment(config),
        loss=steps.make_loss(config.loss, temperature=config.temperature),
        stored_labels_temperature=(
            config.temperature if config.labels == "stored" else None
        ),
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
        constants=variables,
        key=rng.stream(root, "augmentation"),
        read=read,
        num_steps=config.num_steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        stage="distillation",
        learning_rate_key="config.distillation.learning_rate",
        folder=workdir / "student",
        workdir=workdir,
        stopwatch=stopwatch,
    )
    return jax.tree.map(np.asarray, {"params": state.params} | state.model_state)
