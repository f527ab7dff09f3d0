"""A student from real images: standard distillation, labels alone, few-shot.

NOT data-free. The loop, the loss and the augmentation are those of the data-free
student; real images take the place of pseudo samples. With `distillation.labels`
"fresh" the student learns what the teacher says about them (Hinton et al., 2015), with
"stored" their labels. With `images_per_class` there are only a few (as the 200 of
Kimura et al., 2018, without the pseudo examples that they optimize besides).
"""

import time

from dfkd_jax.baselines.real_data import source
from dfkd_jax.config import RealDataConfig
from dfkd_jax.methods import pilot, soft_targets
from dfkd_jax.methods.task import MethodResult, Task
from dfkd_jax.models.network import Model
from dfkd_jax.runtime.trained import TrainedNetwork


def real_data(config: RealDataConfig) -> str:
    """What is read, in words."""
    number = source.count(config.data, images_per_class=config.images_per_class)
    what = f"{number:,} training images of {config.data.dataset}"
    if config.distillation.labels == "stored":
        return f"{what} with their labels"
    return f"{what} with the teacher's answers"


def check(config: RealDataConfig, teacher: TrainedNetwork, student: Model) -> None:
    """Raises ConfigError where the settings do not suit the networks or the devices."""
    soft_targets.check_distillation(config.distillation, teacher, student)


def make_student(task: Task) -> MethodResult:
    """The student, trained if it is not made yet.

    Raises:
        DataUnavailableError: The real images cannot be had.
        NonFiniteError: A loss became NaN or infinite.
        StorageError: A checkpoint cannot be written.
    """
    task, measured = pilot.settle(task)
    config = task.config

    def read():
        started = time.monotonic()
        images = source.load(
            config.data,
            description=task.teacher.description,
            seed=config.seed,
            images_per_class=config.images_per_class,
        )
        task.stopwatch.add("prepare", time.monotonic() - started)
        return images

    number = source.count(config.data, images_per_class=config.images_per_class)
    return MethodResult(
        student=soft_targets.distil(task, read, images="REAL images"),
        metadata={"num_pseudo_samples": 0, "num_real_images": number} | measured,
    )
