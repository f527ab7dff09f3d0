"""Teachers that are trained already: shipped with the package, or a file."""

import dataclasses
import pathlib
from importlib import resources
from typing import Any

from flax import linen as nn

from dfkd_jax.config import NetworkConfig
from dfkd_jax.errors import CheckpointError, did_you_mean
from dfkd_jax.models import registry
from dfkd_jax.runtime import files, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network, ready to be asked.

    Attributes:
        module: Its linen module.
        variables: Its variables (NumPy).
        description: What else is known of it.
        sha256: Digest of the variables.
    """

    module: nn.Module
    variables: Any
    description: weights.Description
    sha256: str


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
    if path.is_file():
        return path
    raise CheckpointError(
        f"Teacher weights {name!r} are neither shipped ({', '.join(known)}) nor a file."
        + did_you_mean(name, known)
    )


def load(config: NetworkConfig, **overrides: Any) -> Teacher:
    """The teacher of a config.

    Args:
        config: Its network and weights.
        **overrides: Fields of the linen module.

    Raises:
        CheckpointError: The weights are missing, damaged, foreign, altered or of
            another network.
    """
    path = find(config.weights)
    variables, description = weights.load(path)
    manifest_path = path.with_suffix(".json")
    manifest = files.read_json(manifest_path) if manifest_path.exists() else {}
    if manifest and manifest.get("file_sha256") != files.sha256(path):
        raise CheckpointError(
            f"{path} is not the file that {manifest_path.name} describes (its SHA-256 "
            "differs): install the package, or make the teacher, again."
        )
    module = registry.create(
        config.network, num_classes=description.num_classes, **overrides
    )
    weights.check_fits(
        module, variables, description, source=str(path), network=config.network
    )
    return Teacher(
        module=module,
        variables=variables,
        description=description,
        sha256=weights.digest(variables),
    )
