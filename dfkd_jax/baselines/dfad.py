"""DFAD: a generator that looks for what the student does not know yet.

Fang et al., "Data-Free Adversarial Distillation" (2019): student and generator play a
game about the difference of the student's answers and the teacher's.
"""

import functools

import optax

from dfkd_jax.baselines import game, step
from dfkd_jax.config import DfadConfig
from dfkd_jax.methods.task import MethodResult, Task
from dfkd_jax.models.network import Model
from dfkd_jax.runtime.trained import TrainedNetwork


def check(config: DfadConfig, teacher: TrainedNetwork, student: Model) -> None:
    """Raises ConfigError where the settings do not suit the devices."""
    del teacher, student  # Any will do.
    game.check(config)


def make_student(task: Task) -> MethodResult:
    """The student, trained if it is not made yet; raises as `game.make_student`."""
    config = task.config
    make_step = functools.partial(
        step.make_dfad_step,
        latent_size=config.generator.latent_size,
        student_steps=config.student_steps,
    )
    return game.make_student(
        task,
        make_step,
        # The decay joins the gradient, as in PyTorch's SGD.
        student_optimizer=optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(config.learning_rate, momentum=config.momentum),
        ),
        generator_optimizer=optax.adam(config.generator.learning_rate),
        student_batches=config.student_steps,
    )
