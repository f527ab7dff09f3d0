"""What a method is given and what it gives back."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfkd_jax.runtime import hosts, weights, writers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A student to be made.

    Attributes:
        config: Settings of the method.
        teacher: What the student learns from.
        student: Linen module; starts from scratch.
        description: Of the student.
        class_names: One a class.
        workdir: Everything goes here.
        stopwatch: Gets the seconds of what was done.
    """

    config: Any
    teacher: weights.TrainedNetwork
    student: Any
    description: weights.Description
    class_names: Sequence[str]
    workdir: pathlib.Path
    stopwatch: writers.Stopwatch

    def student_once(self, train: Callable[[], Any]) -> Any:
        """The student's variables: those in the work directory, else what `train` says.

        Process 0 writes the latter as `student.safetensors`.
        """
        path = self.workdir / "student.safetensors"
        if hosts.first_says(path.exists()):
            return weights.load(path)[0]
        variables = train()
        if hosts.is_first():
            weights.save(path, variables, self.description)
        return variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A student that is made.

    Attributes:
        variables: Its variables (NumPy).
        facts: For `results.json`: what it learnt from.
    """

    variables: Any
    facts: Mapping[str, Any]
