"""What DAFL and DFAD share around their steps: the loop, and samples to look at."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.baselines import step as steps
from dfkd_jax.config import GeneratedConfig, kind_of
from dfkd_jax.methods import soft_targets
from dfkd_jax.methods.task import MethodResult, Task
from dfkd_jax.models.generator import Generator
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import (
    hosts,
    optimization,
    parallel,
    precision,
    progress,
    rng,
    training,
)
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet

SAMPLED_AT_A_TIME = 250
MIN_VARIETY = 0.01  # Of a pixel over images, on the normalized scale.


def check(config: GeneratedConfig) -> None:
    """Raises ConfigError where the batch cannot be split over the devices."""
    parallel.check_devices(config.batch_size, setting="config.batch_size")


def make_student(
    task: Task,
    make_step: Callable[..., Any],
    *,
    student_optimizer: Any,
    generator_optimizer: Any,
    student_batches: int,
) -> MethodResult:
    """The student after the last step, trained if it is not made yet.

    A transfer set of generated images with the teacher's answers stays in the work
    directory, to look at; the student learned from many more.

    Args:
        task: With a `GeneratedConfig`.
        make_step: Takes the models `generator` and `student`; returns a step of
            `baselines.step`.
        student_optimizer: Of Optax.
        generator_optimizer: Of Optax.
        student_batches: That the student learns from in a step.

    Raises:
        NonFiniteError: A loss became NaN or infinite.
        CheckpointError: A checkpoint cannot be restored.
        StorageError: A checkpoint cannot be written.
    """
    config = task.config
    samples = TransferSet(task.workdir / "transfer_set", _manifest(task))

    def train():
        progress.say(
            f"Distillation: {config.student.name} and a generator for "
            f"{config.num_steps:,} steps of {config.batch_size} images, from the "
            f"weights of {config.teacher.weights}; devices: {parallel.device_count()}"
        )
        models = {
            "generator": _generator(task, batch_axis=parallel.AXIS),
            "student": precision.compute_in(task.student, config.compute_dtype),
        }
        state = _train(
            task,
            models,
            make_step(**models),
            optimizers=(student_optimizer, generator_optimizer),
        )
        if hosts.is_primary() and samples.missing():
            _keep_samples(task, state.generator, samples)
        samples.refresh()
        soft_targets.draw_samples(task, samples)
        return jax.tree.map(np.asarray, optimization.variables_of(state.student))

    return MethodResult(
        student=task.load_or_train(train),
        metadata={
            "num_pseudo_samples": config.num_steps
            * config.batch_size
            * student_batches,
            "transfer_set_sha256": samples.digest() if len(samples) else None,
        },
    )


def _generator(task, *, batch_axis):
    config = task.config
    generator = Generator(
        image_shape=tuple(task.description.image_shape),
        features=config.generator.features,
        epsilon=config.generator.epsilon,
        batch_axis=batch_axis,
    )
    return precision.compute_in(Linen(generator), config.compute_dtype)


def _train(task, models, step, *, optimizers):
    config = task.config
    root = rng.stream(jax.random.key(config.seed), kind_of(config))
    shapes = {
        "student": tuple(task.description.image_shape),
        "generator": (config.generator.latent_size,),
    }
    states = {
        name: optimization.create_state(
            models[name].init(rng.stream(root, name), shape), optimizer
        )
        for (name, shape), optimizer in zip(shapes.items(), optimizers, strict=True)
    }
    places = np.asarray(hosts.process_slice(np.arange(config.batch_size)), np.int32)
    return training.train(
        step,
        state=steps.GameState(step=jnp.zeros((), jnp.int32), **states),
        constants=precision.network_in(task.teacher, config.compute_dtype),
        key=rng.stream(root, "steps"),
        read=lambda step: {"index": places},
        num_steps=config.num_steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        stage="distillation",
        learning_rate_key="config.generator.learning_rate or config.learning_rate",
        folder=task.workdir / "student",
        workdir=task.workdir,
        stopwatch=task.stopwatch,
    )


def _manifest(task):
    config = task.config
    settings = dataclasses.asdict(config)
    return Manifest(
        num_images=config.num_samples,
        shard_size=config.num_samples,
        image_shape=task.description.image_shape,
        num_classes=task.description.num_classes,
        seed=config.seed,
        teacher_sha256=task.teacher.sha256,
        settings={kind_of(config): settings["generator"]},
    )


def _keep_samples(task, state, samples):
    """Images of the generator as it is now, with the teacher's answers at τ = 1."""
    config, teacher = task.config, task.teacher
    # As in training, with the statistics of the batch; here that is one device's.
    alone = _generator(task, batch_axis=None)
    state = jax.tree.map(np.asarray, state)
    key = rng.stream(jax.random.key(config.seed), "samples")

    @jax.jit
    def sample(index):
        latents = steps.draw_latents(key, index, size=config.generator.latent_size)
        images, _ = steps.generate(alone, state, latents, key)
        return images, jax.nn.softmax(teacher.logits(images))

    count = -(-config.num_samples // SAMPLED_AT_A_TIME) * SAMPLED_AT_A_TIME
    index = jnp.arange(count, dtype=jnp.int32).reshape(-1, SAMPLED_AT_A_TIME)
    parts = zip(*map(sample, index), strict=True)
    images, labels = (np.concatenate(part)[: config.num_samples] for part in parts)
    warn_if_alike(images)
    samples.add(0, images, labels)


def warn_if_alike(images: np.ndarray) -> None:
    """Says so where the generator has collapsed: it makes one image of any noise."""
    if images.std(axis=0).mean() < MIN_VARIETY:
        progress.warn(
            "The generator makes the same image of any noise: the student has learned "
            "next to nothing. Lower config.generator.learning_rate, or raise "
            "config.batch_size or config.generator.features, in a new --workdir."
        )
