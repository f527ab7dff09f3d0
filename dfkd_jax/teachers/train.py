"""Supervised training of a teacher on real data."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.config import TeacherTrainingConfig
from dfkd_jax.errors import ConfigError
from dfkd_jax.models import network as networks
from dfkd_jax.runtime import feed, optimisation, rng, training, writers
from dfkd_jax.teachers import step as steps


def train(
    config: TeacherTrainingConfig,
    *,
    teacher: Any,
    images: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    workdir: pathlib.Path,
    stopwatch: writers.Stopwatch,
) -> dict[str, Any]:
    """The teacher's variables after the last step.

    Args:
        config: Settings.
        teacher: The linen module.
        images: `[n, height, width, channels]` uint8, the training part.
        labels: `[n]` classes.
        mean: Per channel, on the pixel scale 0 to 1.
        std: Per channel, likewise.
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
    schedule = optimisation.warmup_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        num_steps=num_steps,
    )
    variables = networks.init(teacher, rng.stream(root, "weights"), images.shape[1:])
    params = variables.pop("params")
    state = steps.TeacherState.create(
        apply_fn=teacher.apply,
        params=params,
        tx=optimisation.make_optimizer(
            config.optimizer,
            schedule,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        ),
        model_state=variables,
    ).replace(step=jnp.zeros((), jnp.int32))

    def read(step):
        chosen = feed.indices(
            config.seed,
            "teacher",
            num_images=len(images),
            start=(step - 1) * config.batch_size,
            count=config.batch_size,
        )
        pixels = images[chosen].astype(np.float32) / 255
        return {"images": (pixels - mean) / std, "labels": labels[chosen]}

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
    return jax.tree.map(np.asarray, {"params": state.params} | state.model_state)
