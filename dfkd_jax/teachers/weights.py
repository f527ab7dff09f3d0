"""Teachers that are trained already: shipped with the package, or anybody's weights."""

import dataclasses
import pathlib
from importlib import resources

import jax
import numpy as np
from flax import traverse_util

from dfkd_jax.config import NetworkConfig
from dfkd_jax.errors import CheckpointError, ConfigError, did_you_mean
from dfkd_jax.models import registry
from dfkd_jax.runtime import checkpoints, files, weights
from dfkd_jax.teachers import pytorch

PYTORCH = (".pt", ".pth", ".bin", ".ckpt")


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
    path = pathlib.Path(name).expanduser()
    if path.exists():
        return path
    raise CheckpointError(
        f"Teacher weights {name!r} are neither shipped ({', '.join(known)}), nor a "
        "file, nor a folder. A config of configs/teachers/ trains one."
        + did_you_mean(name, known)
    )


def load(config: NetworkConfig, *, dataset: str = "") -> weights.TrainedNetwork:
    """The teacher of a config.

    Args:
        config: Its network and weights.
        dataset: Name of what weights without a description classify.

    Raises:
        CheckpointError: The weights are missing, damaged, foreign, altered or of
            another network.
        ConfigError: Something has to be said about the network that the weights do not.
    """
    path = find(config.weights)
    variables, description = _read(path, config, dataset)
    module = registry.create(
        config.name,
        num_classes=description.num_classes,
        arguments=description.arguments,
    )
    weights.check_fits(module, variables, description, source=str(path))
    _check_variances(variables, source=str(path))
    return weights.TrainedNetwork(
        module=module, variables=variables, description=description
    )


def _read(path, config, dataset):
    """Variables and description of weights of any kind."""
    tensors, metadata = {}, {}
    if path.suffix == ".safetensors":
        tensors, metadata = weights.read_tensors(path)
    if weights.FORMAT in metadata:
        _check_manifest(path)
        variables, description = weights.described(path, tensors, metadata)
        return variables, dataclasses.replace(
            description,
            network=config.name,
            arguments=config.arguments or description.arguments,
        )
    for key in ("image_shape", "mean", "std"):
        if not getattr(config, key):
            raise ConfigError(
                f"config.teacher.{key} is missing: the weights {config.weights} do not "
                "know it."
            )
    module = registry.create(config.name, arguments=config.arguments)
    expected, num_classes = weights.trace(
        module, config.image_shape, network=config.name
    )
    description = weights.Description(
        network=config.name,
        num_classes=num_classes,
        image_shape=config.image_shape,
        mean=config.mean,
        std=config.std,
        dataset=dataset,
        arguments=config.arguments,
    )
    if path.is_dir():
        variables = checkpoints.load_variables(path)
        variables = {name: variables.get(name, {}) for name in expected}
        weights.check_finite(weights.flatten(variables), source=str(path))
    elif linen := _as_linen(tensors, expected):
        variables = linen
    elif tensors or path.suffix in PYTORCH:
        variables = pytorch.load(
            path, network=config.name, mapping=config.mapping, expected=expected
        )
    else:
        raise CheckpointError(
            f"{path} is of no kind that is known: name a .safetensors file, a state "
            f"dict of PyTorch ({', '.join(PYTORCH)}) or a folder of Orbax checkpoints."
        )
    with np.errstate(over="ignore"):  # Found out below.
        variables = jax.tree.map(lambda leaf: leaf.astype("float32"), variables)
    weights.check_finite(weights.flatten(variables), source=str(path))
    return variables, description


def _check_manifest(path):
    manifest_path = path.with_suffix(".json")
    manifest = files.read_object(manifest_path) if manifest_path.exists() else {}
    if manifest and manifest.get("file_sha256") != files.sha256(path):
        raise CheckpointError(
            f"{path} is not the file that {manifest_path.name} describes (its SHA-256 "
            "differs): install the package, or make the teacher, again."
        )


def _check_variances(variables, *, source):
    """Raises CheckpointError for a running variance whose root would be NaN."""
    for name, leaf in weights.flatten(variables.get("batch_stats", {})).items():
        if name.endswith("var") and leaf.min(initial=0) < 0:
            raise CheckpointError(
                f"{source}: tensor batch_stats/{name} holds a negative variance: fetch "
                "or train the weights again."
            )


def _as_linen(tensors, expected):
    """Variables, if `tensors` carry the names of a linen tree in any usual spelling."""
    want = weights.flatten(expected)
    names = {name.replace(".", "/"): name for name in tensors}
    if not all(name in names or name.removeprefix("params/") in names for name in want):
        return None
    return traverse_util.unflatten_dict(
        {
            name: tensors[names.get(name) or names[name.removeprefix("params/")]]
            for name in want
        },
        sep="/",
    )
