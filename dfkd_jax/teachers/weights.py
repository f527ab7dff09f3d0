"""Teachers that are trained already: shipped with the package, or anybody's weights."""

import dataclasses
import json
import pathlib
from importlib import resources

import numpy as np

from dfkd_jax.config import NetworkConfig
from dfkd_jax.errors import CheckpointError, ConfigError, did_you_mean
from dfkd_jax.models import adapters, registry
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import admission, checkpoints, files, progress, weights
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.teachers import live, pytorch

PYTORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def shipped() -> dict[str, pathlib.Path]:
    """Weights that come with the package, by name."""
    folder = pathlib.Path(str(resources.files("dfkd_jax.teachers.pretrained")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find(name: str) -> pathlib.Path:
    """The file behind `name`: shipped weights, or a path.

    Raises:
        CheckpointError: There is neither.
    """
    known = shipped()
    if name in known:
        return known[name]
    reason = ""
    try:
        path = pathlib.Path(name).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # Nobody's home; no permission; too long.
        reason = f" ({getattr(error, 'strerror', '') or error})"
    raise CheckpointError(
        f"Weights {name[:300]!r} are neither shipped ({', '.join(known)}), nor a file, "
        f"nor a folder{reason}: check the path, or train a teacher (configs/teachers/)."
        + did_you_mean(name, known)
    )


def load(config: NetworkConfig, *, dataset: str = "") -> TrainedNetwork:
    """The teacher of a config.

    Args:
        config: Its network and weights.
        dataset: Name of what weights without a description classify.

    Raises:
        CheckpointError: The weights are missing, damaged, foreign, altered or of
            another network, or are none of a teacher.
        ConfigError: Something has to be said about the network that the weights do not,
            or is said otherwise there.
    """
    path = find(config.weights)
    stored = _read(path, config, dataset)
    model = adapters.create(
        config.name,
        num_classes=stored.description.num_classes,
        arguments=stored.description.arguments,
        image_shape=tuple(stored.description.image_shape),
    )
    teacher = admission.restore(stored, model, source=str(path))
    admission.check_teacher(teacher, source=str(path))
    return teacher


def _read(path, config, dataset):
    """Weights of any kind as `weights.Stored`."""
    tensors, metadata = {}, {}
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = weights.read_tensors(path)
    if weights.FORMAT in metadata:
        _check_manifest(path)
        stored = weights.described(path, tensors, metadata)
        _check_unused(path, config, stored.description)
        stored = stored.called(config.name, source=str(path))
        arguments = {**stored.description.arguments, **config.arguments}
        description = dataclasses.replace(stored.description, arguments=arguments)
        return dataclasses.replace(stored, description=description)
    for key in ("image_shape", "mean", "std"):
        if not getattr(config, key):
            raise ConfigError(
                f"config.teacher.{key} is missing: the weights {config.weights} do not "
                "know it."
            )
    network = registry.create(config.name, arguments=config.arguments)
    shape = config.image_shape
    if adapters.framework_of(network) == "linen":
        model = admission.finished(
            Linen(network), shape, network=config.name, output=config.logits
        )
        expected, num_classes = admission.trace(model, shape, network=config.name)
        variables = _linen_variables(path, tensors, expected, config)
    else:
        if config.mapping:
            raise _unused("mapping", config.mapping, "the network knows its own names")
        model, variables = live.load(network, path, image_shape=shape)
        model = admission.finished(
            model, shape, network=config.name, output=config.logits
        )
        _, num_classes = admission.trace(model, shape, network=config.name)
    description = weights.Description(
        network=config.name,
        num_classes=num_classes,
        image_shape=config.image_shape,
        mean=config.mean,
        std=config.std,
        dataset=dataset,
        arguments=config.arguments,
        output=config.logits,
    )
    return weights.Stored(variables=variables, description=description)


def _linen_variables(path, tensors, expected, config):
    """Variables of a linen network from what does not describe it."""
    linen = _as_linen(tensors, expected)
    if path.is_dir():
        variables = checkpoints.load_variables(path)
    elif linen:
        variables = weights.unflatten(linen, source=str(path))
    elif tensors or path.name.lower().endswith(PYTORCH):
        variables = pytorch.load(
            path, network=config.name, mapping=config.mapping, expected=expected
        )
    else:
        raise CheckpointError(
            f"{path} is of no kind that is known: name a .safetensors file, a state "
            f"dict of PyTorch ({', '.join(PYTORCH)}) or a folder of Orbax checkpoints."
        )
    if config.mapping and (path.is_dir() or linen):
        raise _unused("mapping", config.mapping, f"{path} has the network's own names")
    if about := registry.about(config.name):
        progress.say(
            f"{path} does not describe its network: read as {config.name} ({about}). "
            "Name the class of one that does otherwise (config.teacher.module)."
        )
    return variables


def _check_unused(path, config, description):
    """Raises ConfigError for a setting that contradicts what the weights say."""
    if config.mapping:
        raise _unused("mapping", config.mapping, f"{path} has the network's own names")
    for key in ("image_shape", "mean", "std"):
        given, known = getattr(config, key), tuple(getattr(description, key))
        if given and (len(given) != len(known) or not np.allclose(given, known)):
            raise _unused(key, given, f"{path} says {known}")
    if config.logits not in ("", description.output):
        raise _unused("logits", config.logits, f"{path} says {description.output!r}")
    for key, given in config.arguments.items():
        known = description.arguments.get(key, given)
        if json.dumps(known) != json.dumps(given):  # Tuples are lists there.
            raise _unused(f"arguments.{key}", given, f"{path} says {known!r}")


def _unused(key, value, reason):
    return ConfigError(
        f"config.teacher.{key}={value!r} is not used: {reason}. Leave it out."
    )


def _check_manifest(path):
    manifest_path = path.with_suffix(".json")
    manifest = files.read_object(manifest_path) if manifest_path.exists() else {}
    if manifest and manifest.get("file_sha256") != files.sha256(path):
        raise CheckpointError(
            f"{path} is not the file that {manifest_path.name} describes (its SHA-256 "
            "differs): install the package, or make the teacher, again."
        )


def _as_linen(tensors, expected):
    """Tensors by linen's names, if they carry these in any usual spelling."""
    want = weights.flatten(expected)
    names = {name: name.replace(".", "/") for name in tensors}
    names = {
        name: linen
        if linen in want or f"params/{linen}" not in want
        else f"params/{linen}"
        for name, linen in names.items()
    }
    if not want.keys() <= set(names.values()):
        return None
    return {names[name]: tensor for name, tensor in tensors.items()}
