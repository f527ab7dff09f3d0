"""From Python, for notebooks and programs: a teacher in, a student out.

    from dfkd_jax import distill, from_torch

    teacher = from_torch(net, image_shape=(28, 28, 1), mean=0.13, std=0.31)
    student = distill(teacher, SmallNet())
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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dfkd_jax import config as configs
from dfkd_jax import config_files, evaluation, inspection, pipeline
from dfkd_jax.data import datasets, held_out
from dfkd_jax.errors import (
    CheckpointError,
    ConfigError,
    DfkdError,
    did_you_mean,
    shown,
)
from dfkd_jax.exporting import networks
from dfkd_jax.methods import referee
from dfkd_jax.models import adapters
from dfkd_jax.models.adapters.function import Function
from dfkd_jax.runtime import admission, arrays, descriptions, parallel, places
from dfkd_jax.runtime import progress as progress_bars
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
def from_linen(
    module: Any,
    variables: Any,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
    logits: str | int = "",
) -> TrainedNetwork:
    """A trained classifier of your own, as a teacher or to be evaluated.

    Args:
        module: A linen module; takes normalized images `[batch, height, width,
            channels]`, returns logits `[batch, classes]`.
        variables: `{"params": …}` and, where there is BatchNorm, `"batch_stats"`.
        image_shape: (height, width, channels), wherever the framework has its channels.
        mean: Of the pixels from 0 to 1, one number or one a channel: the network gets
            (pixels - mean) / std.
        std: The same of the standard deviation.
        dataset: What it classifies, if that has a name here ("mnist", …).
        logits: Name or index of the logits, where it returns several things. A softmax
            at the end is cut off; a single sigmoid is two classes.

    Raises:
        ConfigError: It is no such network, or there are no such images.
        CheckpointError: The variables do not fit the network or hold NaN, or it does
            not take such images or returns no logits.
    """
    return _network("linen", module, variables, image_shape, mean, std, dataset, logits)


@_in_python()
def from_nnx(
    module: Any,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
    logits: str | int = "",
) -> TrainedNetwork:
    """A trained NNX module; otherwise as `from_linen`."""
    return _network("nnx", module, None, image_shape, mean, std, dataset, logits)


@_in_python()
def from_equinox(
    module: Any,
    state: Any = None,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
    logits: str | int = "",
) -> TrainedNetwork:
    """A trained Equinox module of one image, channels first; else as `from_linen`.

    Args:
        module: Called in inference mode, without a key.
        state: What `equinox.nn.make_with_state` returned with it, trained too.
        image_shape: (height, width, channels).
        mean: See `from_linen`.
        std: See `from_linen`.
        dataset: See `from_linen`.
        logits: See `from_linen`.
    """
    pair = module if state is None else (module, state)
    return _network("equinox", pair, None, image_shape, mean, std, dataset, logits)


@_in_python()
def from_keras(
    model: Any,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
    logits: str | int = "",
) -> TrainedNetwork:
    """A trained Keras 3 model, computing with JAX; otherwise as `from_linen`."""
    return _network("keras", model, None, image_shape, mean, std, dataset, logits)


@_in_python()
def from_torch(
    module: Any,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
    logits: str | int = "",
) -> TrainedNetwork:
    """A trained PyTorch module of images, channels first; else as `from_linen`."""
    return _network("torch", module, None, image_shape, mean, std, dataset, logits)


@_in_python()
def from_function(
    function: Callable[[Any, Any], Any],
    params: Any,
    *,
    image_shape: Sequence[int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dataset: str = "",
    logits: str | int = "",
) -> TrainedNetwork:
    """Any pure `function(params, images) -> logits` of JAX; else as `from_linen`.

    Args:
        function: In evaluation mode; its images have their channels last.
        params: A tree of arrays.
        image_shape: (height, width, channels).
        mean: See `from_linen`.
        std: See `from_linen`.
        dataset: See `from_linen`.
        logits: See `from_linen`.
    """
    name = getattr(function, "__name__", type(function).__name__)
    model = Function(function, params, source=f"The function {name}")
    return _admitted(model, model.variables, image_shape, mean, std, dataset, logits)


def _network(framework, live, variables, image_shape, mean, std, dataset, logits):
    found = adapters.framework_of(live)
    if found != framework and not isinstance(live, type):
        kind = type(live).__name__
        raise ConfigError(
            f"from_{framework} takes a live network of {framework}, got a {kind}"
            + (f": give it to from_{found}." if found else ".")
        )
    model, variables = adapters.adapt(live, variables)
    return _admitted(model, variables, image_shape, mean, std, dataset, logits)


def _admitted(model, variables, image_shape, mean, std, dataset, logits):
    try:
        shape: tuple[Any, ...] = tuple(map(operator.index, image_shape))
        means, stds = (_per_channel(value, shape[-1]) for value in (mean, std))
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"image_shape={image_shape!r}, mean={mean!r}, std={std!r}: expected "
            "(height, width, channels), and a number or one per channel."
        ) from error
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 4:
        raise ConfigError(
            f"image_shape={shape} has its channels first: give "
            f"{(*shape[1:], shape[0])}, (height, width, channels)."
        )
    description = descriptions.Description(
        network=model.name,
        num_classes=2,  # Not known yet.
        image_shape=shape,
        mean=means,
        std=stds,
        dataset=dataset,
        arguments=model.arguments,
        output=str(logits),
    )
    if problem := descriptions.problem_of(description):
        raise ConfigError(f"This network cannot be: {problem}.")
    model = admission.finished(
        model, shape, network=model.name, output=description.output
    )
    _, num_classes = admission.trace(model, shape, network=model.name)
    description = dataclasses.replace(description, num_classes=num_classes)
    with contextlib.suppress(ConfigError):  # Of a name that is none here.
        evaluation.check_task(
            description,
            datasets.spec(dataset),
            source=f"The network {description.network!r}",
            setting="dataset",
        )
    found = admission.admit(model, variables, description, source="variables")
    admission.check_teacher(found, source="variables")
    return found


@_in_python()
def load(
    weights_or_checkpoint: str | pathlib.Path, *, module: Any = ""
) -> TrainedNetwork:
    """A network from shipped weights ("mnist_lenet5"), a file or a work directory.

    Args:
        weights_or_checkpoint: A name or a path.
        module: A live network like the one that was saved, or "package.module:Class" of
            one, if it is none of this package.

    Raises:
        CheckpointError: It is missing, damaged or of another network.
    """
    if not isinstance(module, str):
        module, _ = adapters.adapt(module)
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
        teacher: From one of the functions above, or `load`.
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
    assert isinstance(settings, configs.ExperimentConfig)
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
    pipeline.run(settings, workdir, command=f"dfkd_jax.run {config}")
    return load(workdir, module=settings.student.module)


@_in_python()
def distill(
    teacher: TrainedNetwork,
    student: Any,
    workdir: str | pathlib.Path | None = None,
    seed: int = 0,
    progress: bool = True,
    *,
    targets: Mapping[str, Any] | None = None,
    synthesis: Mapping[str, Any] | None = None,
    distillation: Mapping[str, Any] | None = None,
) -> TrainedNetwork:
    """The student of a teacher, from its weights alone. Reads no data.

    Sizes that are not given follow from those that are: a small number of images or
    steps alone is enough. The number of images is rounded up to whole shards.

    Args:
        teacher: From one of the functions above, or `load`.
        student: A live network of linen, NNX, Equinox or Keras, or the name of one of
            this package ("lenet5_half"). Linen's starts from scratch, by the seed; the
            others start as they are.
        workdir: Transfer set, pictures and figures go here; what was finished here by
            an earlier, interrupted call is kept. One a teacher, student and settings.
            None for a folder that is deleted afterwards.
        seed: Of everything random.
        progress: Whether to show how far it is.
        targets: Settings that differ from the defaults of `config.TargetsConfig`.
        synthesis: Settings that differ from those of `config.SynthesisConfig`.
        distillation: Settings that differ from those of `config.DistillationConfig`.

    Raises:
        DfkdError: A setting, the disk or the numbers; see `errors`.
    """
    _check_network(teacher, "teacher")
    synthesis, distillation = _sized(synthesis, distillation)
    if isinstance(student, str):
        model, network = None, {"network": student}
    else:
        model, _ = adapters.adapt(student)
        network = {"module": model.name, "arguments": model.arguments}
    settings = configs.parse(
        {
            "kind": "distillation",
            "name": "distill",
            "seed": seed,
            "teacher": _of_description(teacher.description) | {"weights": TEACHER},
            "student": network,
            "targets": {} if targets is None else targets,
            "synthesis": synthesis,
            "distillation": distillation,
            "data": {"dataset": ""},
        },
    )
    assert isinstance(settings, configs.ExperimentConfig)
    with contextlib.ExitStack() as stack:
        if not progress:
            stack.enter_context(progress_bars.muted())
        if workdir is None:
            workdir = stack.enter_context(tempfile.TemporaryDirectory("dfkd_jax"))
        folder = places.path(workdir, source="workdir")
        pipeline.run(
            settings,
            folder,
            command="dfkd_jax.distill",
            teacher=teacher,
            student=model,
        )
        if not (folder / TEACHER).exists():
            # To compare with when a checkpoint is evaluated.
            teacher.save(folder / TEACHER)
        module = "" if model is None else model
        return evaluation.load_checkpoint(folder, module=module, flag="module")[1]


def _sized(synthesis, distillation):
    """The settings, with sizes that suit those that are given."""
    synthesis = {} if synthesis is None else synthesis
    distillation = {} if distillation is None else distillation
    if not all(isinstance(one, Mapping) for one in (synthesis, distillation)):
        return synthesis, distillation  # Refused where they are parsed.
    images, steps = configs.SynthesisConfig(), configs.DistillationConfig()
    synthesis, distillation = dict(synthesis), dict(distillation)
    number = synthesis.get("num_images", images.num_images)
    if "images_per_device" not in synthesis and _is_count(number):
        shards = -(-number // images.images_per_device)
        synthesis["images_per_device"] = -(-number // shards)
        synthesis["num_images"] = shards * synthesis["images_per_device"]
    number = synthesis.get("num_steps", images.num_steps)
    if "steps_per_call" not in synthesis and _is_count(number):
        most = range(1, images.steps_per_call + 1)
        synthesis["steps_per_call"] = max(n for n in most if number % n == 0)
    number = distillation.get("num_steps", steps.num_steps)
    if "warmup_steps" not in distillation and _is_count(number):
        distillation["warmup_steps"] = min(steps.warmup_steps, number // 10)
    return synthesis, distillation


def _is_count(value):
    return type(value) is int and value > 0


@_in_python()
def estimate(
    teacher: TrainedNetwork,
    student: TrainedNetwork,
    teacher_accuracy: float | None = None,
) -> dict[str, Any]:
    """How often a student will agree with its teacher on real data, told without any.

    Args:
        teacher: What the student learned from, without data.
        student: Of `distill`, or `load`.
        teacher_accuracy: On held-out data, from 0 to 1, where it is known: with it the
            estimate is far nearer the truth.

    Returns:
        `agreement`, expected between `low` and `high`; `is_poor`, below 90 %; and
        `is_known`, whether students like this one are among those of the calibration.
        See `methods.referee`.

    Raises:
        CheckpointError: They are not of the same images and classes.
    """
    _check_network(teacher, "teacher")
    _check_network(student, "student")
    evaluation.check_reference(
        student.description, teacher.description, source="The teacher"
    )
    if teacher_accuracy is not None and not 0 < teacher_accuracy <= 1:
        raise ConfigError(
            f"teacher_accuracy={shown(teacher_accuracy)}: expected a share from 0 to 1."
        )
    return referee.estimate(referee.judge(teacher, student), teacher_accuracy)


@_in_python()
def evaluate(
    network: TrainedNetwork,
    images: Any,
    labels: Any,
    reference: TrainedNetwork | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration, confusion and, given a reference, agreement with it.

    Args:
        network: What is evaluated.
        images: `[n, height, width, channels]`, uint8, or floats from 0 to 1.
        labels: `[n]`, integers.
        reference: To compare with: the teacher, say.

    Returns:
        See `runtime.metrics.summarize`.

    Raises:
        CheckpointError: The images are not what the network takes.
    """
    _check_network(network, "network")
    if reference is not None:
        _check_network(reference, "reference")
        evaluation.check_reference(
            network.description, reference.description, source="The reference"
        )
    shape = tuple(network.description.image_shape)
    try:
        images, labels = arrays.labeled(
            images,
            labels,
            image_shape=shape,
            num_classes=network.description.num_classes,
        )
    except ValueError as error:
        raise CheckpointError(f"The network takes images {shape}: {error}.") from error
    return evaluation.evaluate(network, images, labels, reference=reference)


@_in_python()
def export(
    network: TrainedNetwork, path: str | pathlib.Path, *, format_name: str = ""
) -> float:
    """Writes a network so that a product can load it; see `docs/export.md`.

    A file of that name is replaced, once what was written has been read back and
    compared with the network.

    Args:
        network: The network.
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
    _check_network(network, "network")
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
        network,
        format_name=format_name,
        class_names=evaluation.default_class_names(network.description),
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
            f"{name}={shown(value)}: expected a network, as from_linen, …, and load "
            "return it."
        )


def _per_channel(value, channels):
    """`value` as a list; as many times as there are channels if it is one number."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise TypeError("no numbers")
    numbers = numbers if numbers.ndim else np.broadcast_to(numbers, channels)
    return numbers.astype(float).ravel().tolist()
