"""What a method is given and what it gives back."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models.network import Model
from dfkd_jax.runtime import admission, hosts, progress, weights, writers
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.runtime.workdir import mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A student to be made.

    Attributes:
        config: Settings of the method.
        teacher: What the student learns from.
        student: As functions of arrays; what it starts as is the method's affair.
        description: Of the student.
        class_names: One a class.
        workdir: Everything goes here.
        stopwatch: Gets the seconds of what was done.
        warn_of_images: Says what is wrong with the pseudo samples in `workdir`, before
            a student learns from them.
    """

    config: Any
    teacher: TrainedNetwork
    student: Model
    description: Description
    class_names: Sequence[str]
    workdir: pathlib.Path
    stopwatch: writers.Stopwatch
    warn_of_images: Callable[[], None]

    def load_or_train(self, train: Callable[[], Any]) -> TrainedNetwork:
        """The student: of the work directory, else with the variables of `train`.

        Process 0 writes the latter as `student.safetensors`.

        Raises:
            CheckpointError: The one that is there is damaged or of another run.
        """
        path = self.workdir / "student.safetensors"
        if hosts.broadcast_from_process_0(path.exists()):
            progress.say("Distillation: done before")
            return _load(path, self.student)
        student = TrainedNetwork(
            model=self.student,
            variables=weights.as_float32(train(), source="The student"),
            description=self.description,
        )
        if hosts.is_primary():
            student.save(path, run=mark(self.workdir))
        return student


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodResult:
    """A student that is made.

    Attributes:
        student: The network.
        metadata: For `results.json`: what it learned from.
    """

    student: TrainedNetwork
    metadata: Mapping[str, Any]


def _load(path, model):
    """What this very run has made before."""
    again = "Delete it, and the same command makes it again from the last checkpoint."
    try:
        stored = weights.read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {again}") from error
    if stored.run not in ("", mark(path.parent)):
        raise CheckpointError(f"{path} is of another run. {again}")
    return admission.restore(stored, model, source=str(path))
