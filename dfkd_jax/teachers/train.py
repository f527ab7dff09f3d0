"""Supervised training of a teacher on real data."""

import pathlib
from typing import Any

import jax
import numpy as np

from dfkd_jax.config import TeacherTrainingConfig
from dfkd_jax.errors import ConfigError
from dfkd_jax.models.network import Model
from dfkd_jax.runtime import feed, optimization, rng, training, writers
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.teachers import step as steps


def train(
    config: TeacherTrainingConfig,
    *,
    teacher: Model,
    description: Description,
    images: np.ndarray,
    labels: np.ndarray,
    workdir: pathlib.Path,
    stopwatch: writers.Stopwatch,
) -> dict[str, Any]:
    """The teacher's variables after the last step.

    Args:
        config: Settings.
        teacher: As functions of arrays.
        description: How its images are normalized.
        images: `[n, height, width, channels]` uint8, the training part.
        labels: `[n]` classes.
        workdir: For checkpoints (`teacher/`) and `metrics.jsonl`.
        stopwatch: Gets the seconds of checkpointed steps.
    """
    root = rng.stream(jax.random.key(config.seed), "teacher training")
    steps_an_epoch = len(images) // config.batch_size
    num_steps = config.num_epochs * steps_an_epoch
    if config.warmup_steps >= num_steps:
        raise ConfigError(
            f"config.warmup_steps={config.warmup_steps} must be below the number of "
            f"steps, {num_steps}."
        )
    schedule = optimization.warmup_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        num_steps=num_steps,
    )
    state = optimization.create_state(
        teacher.init(rng.stream(root, "weights"), images.shape[1:]),
        optimization.make_optimizer(
            config.optimizer,
            schedule,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        ),
    )

    def read(step):
        chosen = feed.indices(
            config.seed,
            "teacher",
            num_images=len(images),
            start=(step - 1) * config.batch_size,
            count=config.batch_size,
        )
        pixels = description.normalize(images[chosen])
        return {"images": pixels, "labels": labels[chosen]}

    state = training.train(
        steps.make_step(
            teacher=teacher,
            augment=steps.make_augment(
                max_shift=config.max_shift, flip=config.flip, cutout=config.cutout
            ),
        ),
        state=state,
        constants=(),
        key=rng.stream(root, "augmentation"),
        read=read,
        num_steps=num_steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        stage="teacher training",
        learning_rate_key="config.learning_rate",
        folder=workdir / "teacher",
        workdir=workdir,
        stopwatch=stopwatch,
    )
    return jax.tree.map(np.asarray, optimization.variables_of(state))
