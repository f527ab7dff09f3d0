"""The same from Python, for notebooks and programs: a teacher in, a student out.

    from dfkd_jax import api

    teacher = api.network(net, variables, image_shape=(8, 8, 1), mean=0.5, std=0.5)
    student = api.distil(teacher, SmallNet(), workdir="runs/digits")
    student.predict(images)
    student.save("student.safetensors")

JAX runs on the devices that it has. On a CPU that is one; `configure`, called before
JAX is used, makes one a core. The import sets a flag in XLA_FLAGS that keeps some
versions of JAX from wrong sums; nothing else that is global is set here.
"""

import contextlib
import dataclasses
import operator
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn

from dfkd_jax import config as configs
from dfkd_jax import config_files, pipeline
from dfkd_jax import evaluate as evaluation
from dfkd_jax import inspect as inspection
from dfkd_jax.data import datasets, held_out
from dfkd_jax.errors import (
    CheckpointError,
    ConfigError,
    DfkdError,
    did_you_mean,
    shown,
)
from dfkd_jax.exporting import networks
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import admission, arrays, descriptions, parallel, places
from dfkd_jax.runtime.trained import TrainedNetwork

TEACHER = "teacher.safetensors"
_NAMES_IN_PYTHON = (
    (r"config\.(targets|synthesis|distillation)\.(\w+)", r'\1["\2"]'),
    (r"config\.teacher\.weights\b", "teacher"),
    (r"config\.student\.(network|module)\b", "student"),
    (r"config\.student\.arguments\b", "the student's fields"),
    (r"config\.(teacher\.)?(\w)", r"\2"),
    (r"--format\b", "format_name"),
    (r"--(\w)", r"\1"),
)

parallel.sum_rightly()


def configure(*, cpu_devices: int = 0) -> None:
    """Divides a CPU into devices and turns on the compilation cache.

    Call it before JAX is used. GPUs and TPUs are used as they are.

    Args:
        cpu_devices: Number of devices; 0 for one a core.
    """
    parallel.configure(cpu_devices=cpu_devices)


@contextlib.contextmanager
def _in_python() -> Iterator[None]:
    """Errors name arguments of Python where those of the commands name settings."""
    try:
        yield
    except DfkdError as error:
        text = str(error)
        for pattern, name in _NAMES_IN_PYTHON:
            text = re.sub(pattern, name, text)
        raise type(error)(text) from error


@_in_python()
def network(
    module: nn.Module,
    variables: Any,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
) -> TrainedNetwork:
    """A trained linen classifier of your own, as a teacher or to be evaluated.

    Args:
        module: Takes standardised images `[batch, height, width, channels]`, returns
            logits `[batch, classes]`.
        variables: `{"params": …}` and, where there is BatchNorm, `"batch_stats"`.
        image_shape: (height, width, channels).
        mean: Of the pixels from 0 to 1, one number or one a channel: the network gets
            (pixels - mean) / std.
        std: Likewise.
        dataset: What it classifies, if that has a name here ("mnist", …).

    Raises:
        CheckpointError: The variables do not fit the module or hold NaN, or the module
            does not take such images or returns no logits.
    """
    _check_module(module)
    try:
        shape = tuple(map(operator.index, image_shape))
        means, stds = (_per_channel(value, shape[-1]) for value in (mean, std))
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"image_shape={image_shape!r}, mean={mean!r}, std={std!r}: expected "
            "(height, width, channels), and a number or one per channel."
        ) from error
    description = descriptions.Description(
        network=registry.name_of(module),
        num_classes=2,  # Not known yet.
        image_shape=shape,
        mean=means,
        std=stds,
        dataset=dataset,
        arguments=registry.arguments_of(module),
    )
    if problem := descriptions.problem_of(description):
        raise ConfigError(f"This network cannot be: {problem}.")
    _, num_classes = admission.trace(
        Linen(module), description.image_shape, network=description.network
    )
    description = dataclasses.replace(description, num_classes=num_classes)
    if dataset in datasets.NAMES:
        evaluation.check_task(
            description,
            datasets.spec(dataset),
            source=f"The network {description.network!r}",
            setting="dataset",
        )
    found = admission.admit(Linen(module), variables, description, source="variables")
    admission.check_teacher(found, source="variables")
    return found


@_in_python()
def load(
    weights_or_checkpoint: str | pathlib.Path, *, module: nn.Module | str = ""
) -> TrainedNetwork:
    """A network from shipped weights ("mnist_lenet5"), a file or a work directory.

    Args:
        weights_or_checkpoint: A name or a path.
        module: The linen module or "package.module:Class", if the network is not one of
            this package.

    Raises:
        CheckpointError: It is missing, damaged or of another network.
    """
    if not isinstance(module, str):
        _check_module(module)
    path = places.path(weights_or_checkpoint, source="weights_or_checkpoint")
    return evaluation.load_checkpoint(path, module=module, flag="module")[1]


@_in_python()
def inspect(
    teacher: TrainedNetwork,
    *,
    targets: Mapping[str, Any] | None = None,
    maps: bool = False,
    seed: int = 0,
) -> list[inspection.Inspection]:
    """What each layer of a teacher would give as the feature layer, in calling order.

    Args:
        teacher: From `network` or `load`.
        targets: Settings that differ from the defaults of `config.TargetsConfig`.
        maps: Whether to look at layers of feature maps where the network is so large
            that it takes minutes or hours.
        seed: Of the soft labels that are drawn.
    """
    _check_network(teacher, "teacher")
    targets = {} if targets is None else targets
    settings = configs.parse(
        {"kind": "distillation", "name": "inspect", "seed": seed, "targets": targets}
    )
    layers, _ = inspection.choose_layers(settings.targets, teacher, maps=maps)
    return inspection.inspect(settings.targets, teacher, layers, seed=settings.seed)


def run(
    config: str, *, workdir: str | pathlib.Path, **changes: Mapping[str, Any]
) -> TrainedNetwork:
    """The student of a config file, as `python -m dfkd_jax.main` makes it.

    Args:
        config: "configs/mnist.py", or with a variant "configs/mnist.py:smoke". The file
            is Python and is executed.
        workdir: Everything goes here.
        **changes: Settings that differ, by section: `synthesis={"num_images": 3_200}`,
            `seed=1`.

    Raises:
        DfkdError: A setting, the weights, the disk or the numbers; see `errors`.
    """
    workdir = places.path(workdir, source="workdir")
    settings = config_files.read_settings(
        str(places.path(config, source="config")), changes=changes
    )
    if not isinstance(settings, configs.StudentConfig):
        raise ConfigError(f"{config} trains a teacher: use `python -m dfkd_jax.main`.")
    held_out.require(settings, held_out.preflight(settings.data))
    pipeline.run(settings, workdir, command=f"dfkd_jax.api.run {config}")
    return load(workdir, module=settings.student.module)


@_in_python()
def distil(
    teacher: TrainedNetwork,
    student: nn.Module | str,
    *,
    workdir: str | pathlib.Path,
    seed: int = 0,
    targets: Mapping[str, Any] | None = None,
    synthesis: Mapping[str, Any] | None = None,
    distillation: Mapping[str, Any] | None = None,
) -> TrainedNetwork:
    """The student of a teacher, from its weights alone. Reads no data.

    What was finished in `workdir` by an earlier, interrupted call is kept; the transfer
    set, pictures and figures lie there afterwards.

    Args:
        teacher: From `network` or `load`.
        student: Linen module, or the name of one ("lenet5_half"). It starts from
            scratch but for `distillation={"start": "teacher"}`.
        workdir: Everything goes here; one a teacher, student and settings.
        seed: Of everything random.
        targets: Settings that differ from the defaults of `config.TargetsConfig`.
        synthesis: Likewise, of `config.SynthesisConfig`.
        distillation: Likewise, of `config.DistillationConfig`.

    Raises:
        DfkdError: A setting, the disk or the numbers; see `errors`.
    """
    _check_network(teacher, "teacher")
    workdir = places.path(workdir, source="workdir")
    if isinstance(student, str):
        network_of = {"network": student}
        module = None
    else:
        _check_module(student)
        network_of = {
            "module": registry.name_of(student),
            "arguments": registry.arguments_of(student),
        }
        module = student
    settings = configs.parse(
        {
            "kind": "distillation",
            "name": "distil",
            "seed": seed,
            "teacher": _of_description(teacher.description) | {"weights": TEACHER},
            "student": network_of,
            "targets": {} if targets is None else targets,
            "synthesis": {} if synthesis is None else synthesis,
            "distillation": {} if distillation is None else distillation,
            "data": {"dataset": ""},
        },
    )
    pipeline.run(
        settings,
        workdir,
        command="dfkd_jax.api.distil",
        teacher=teacher,
        student=None if module is None else Linen(module),
    )
    if not (workdir / TEACHER).exists():
        # To compare with when a checkpoint is evaluated.
        teacher.save(workdir / TEACHER)
    return load(workdir, module="" if module is None else module)


@_in_python()
def evaluate(
    trained: TrainedNetwork,
    images: Any,
    labels: Any,
    *,
    teacher: TrainedNetwork | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration, confusion and, given a teacher, agreement with it.

    Args:
        trained: What is evaluated.
        images: `[n, height, width, channels]`, uint8, or floats from 0 to 1.
        labels: `[n]`, integers.
        teacher: To compare with.

    Returns:
        See `runtime.metrics.summarise`.

    Raises:
        CheckpointError: The images are not what the network takes.
    """
    _check_network(trained, "trained")
    if teacher is not None:
        _check_network(teacher, "teacher")
        evaluation.check_reference(
            trained.description, teacher.description, source="The teacher"
        )
    shape = tuple(trained.description.image_shape)
    try:
        images, labels = arrays.labelled(
            images,
            labels,
            image_shape=shape,
            num_classes=trained.description.num_classes,
        )
    except ValueError as error:
        raise CheckpointError(f"The network takes images {shape}: {error}.") from error
    return evaluation.evaluate(trained, images, labels, reference=teacher)


@_in_python()
def export(
    trained: TrainedNetwork, path: str | pathlib.Path, *, format_name: str = ""
) -> float:
    """Writes a network so that a product can load it; see `docs/export.md`.

    A file of that name is replaced, once what was written has been read back and
    compared with the network.

    Args:
        trained: The network.
        path: File to write.
        format_name: "onnx", "stablehlo" or "safetensors"; empty for what the name of
            the file ends with.

    Returns:
        The largest difference of a logit between file and network on random images.

    Raises:
        ConfigError: There is no such format.
        ExportError: The format cannot hold the network, or its packages are missing.
        StorageError: The disk is full or refuses.
    """
    _check_network(trained, "trained")
    path = places.path(path, source="path")
    format_name = format_name or path.suffix.removeprefix(".")
    if format_name not in networks.FORMATS:
        raise ConfigError(
            f"{path}: {format_name!r} is no format of networks; give format_name, one "
            f"of {', '.join(networks.FORMATS)}."
            + did_you_mean(format_name, networks.FORMATS)
        )
    return networks.write(
        path,
        trained,
        format_name=format_name,
        class_names=evaluation.default_class_names(trained.description),
    )


def _of_description(description):
    """A network's settings in a config, from the description in its weights."""
    place = "module" if ":" in description.network else "network"
    return {
        place: description.network,
        "arguments": dict(description.arguments),
    }


def _check_network(value, name):
    """Raises ConfigError for what is no trained network."""
    if not isinstance(value, TrainedNetwork):
        raise ConfigError(
            f"{name}={shown(value)}: expected a network, as api.network and api.load "
            "return it."
        )


def _check_module(module):
    """Raises ConfigError for what is no linen module, ready to be called."""
    if isinstance(module, nn.Module):
        return
    kind = module if isinstance(module, type) else type(module)
    remedy = "give an instance of a class that inherits flax.linen.Module"
    if isinstance(module, type) and issubclass(module, nn.Module):
        remedy = f"call the class: {kind.__name__}(...)"
    elif any(base.__module__.startswith("flax.nnx") for base in kind.__mro__):
        remedy = (
            "write an NNX module in linen (flax.linen), with the same parameters, or "
            "wrap it with flax.nnx.bridge.ToLinen"
        )
    elif any(base.__module__.startswith("torch") for base in kind.__mro__):
        remedy = (
            "save its state_dict() and load it into the same network in linen with "
            "config.teacher.weights and config.teacher.mapping"
        )
    raise ConfigError(f"Expected a linen module, got {kind.__name__}: {remedy}.")


def _per_channel(value, channels):
    """`value` as a list; as many times as there are channels if it is one number."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise TypeError("no numbers")
    numbers = numbers if numbers.ndim else np.broadcast_to(numbers, channels)
    return numbers.astype(float).ravel().tolist()
