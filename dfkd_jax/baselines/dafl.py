"""DAFL: a generator that the teacher trusts (Chen et al., ICCV 2019).

The generator learns to make images that the teacher is sure about, of all classes
alike, with strong features; the student learns the teacher's answers about them.
"""

import functools

import optax

from dfkd_jax.baselines import game, step
from dfkd_jax.config import DaflConfig
from dfkd_jax.methods import soft_targets
from dfkd_jax.methods.task import MethodResult, Task
from dfkd_jax.models.network import Model
from dfkd_jax.runtime import optimization
from dfkd_jax.runtime.trained import TrainedNetwork


def check(config: DaflConfig, teacher: TrainedNetwork, student: Model) -> None:
    """Raises ConfigError where the settings do not suit the teacher or the devices."""
    del student  # Any will do.
    _find_layer(config, teacher)
    game.check(config)


def make_student(task: Task) -> MethodResult:
    """The student, trained if it is not made yet; raises as `game.make_student`."""
    config = task.config
    feature_layer = _find_layer(config, task.teacher).name
    make_step = functools.partial(
        step.make_dafl_step,
        feature_layer=feature_layer,
        latent_size=config.generator.latent_size,
        one_hot_weight=config.one_hot_weight,
        information_weight=config.information_weight,
        activation_weight=config.activation_weight,
    )
    made = game.make_student(
        task,
        make_step,
        student_optimizer=optimization.make_optimizer(
            config.optimizer,
            optimization.warmup_then(
                config.schedule,
                config.learning_rate,
                warmup_steps=0,
                num_steps=config.num_steps,
            ),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        ),
        generator_optimizer=optax.adam(config.generator.learning_rate),
        student_batches=1,
    )
    return MethodResult(
        student=made.student,
        metadata={"feature_layer": feature_layer, **made.metadata},
    )


def _find_layer(config, teacher):
    return soft_targets.find_layer(
        config.feature_layer, teacher, setting="config.feature_layer"
    )
