"""Weights as safetensors files with a description of the network inside."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime.files import atomic_write

FORMAT = "dfkd_jax-1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What has to be known of a network besides its weights.

    Attributes:
        network: A name of `models/registry.py`.
        num_classes: Number of logits.
        image_shape: (height, width, channels).
        mean: Per channel, on the pixel scale 0 to 1; images are standardised with it.
        std: Per channel, likewise.
        dataset: What the network was trained to classify.
    """

    network: str
    num_classes: int
    image_shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    dataset: str


def save(path: pathlib.Path, variables: Any, description: Description) -> None:
    """Writes `variables` and `description` atomically."""
    tensors = {
        name: np.ascontiguousarray(leaf)
        for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    # One entry: safetensors writes several in no fixed order.
    metadata = {FORMAT: json.dumps(dataclasses.asdict(description))}
    with atomic_write(path) as temporary:
        # `save_file` reports a full disk with an error that is no OSError.
        temporary.write_bytes(serialise(tensors, metadata=metadata))


def load(path: pathlib.Path) -> tuple[dict[str, Any], Description]:
    """Variables (NumPy) and description of a file that `save` wrote.

    Raises:
        CheckpointError: The file is missing, damaged, foreign or holds NaN.
    """
    if not path.is_file():
        raise CheckpointError(f"Weights {path} are not there: check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}): fetch or make it "
            "again."
        ) from error
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path} was not written by dfkd_jax (no {FORMAT!r} in its metadata): name "
            "weights that it wrote."
        )
    for name, leaf in flat.items():
        if not np.all(np.isfinite(leaf)):
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity.")
    try:
        description = Description(**json.loads(metadata[FORMAT]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its description is damaged ({error})."
        ) from error
    return traverse_util.unflatten_dict(flat, sep="/"), description


def check_shapes(variables: Any, expected: Any, *, source: str, network: str) -> None:
    """Compares weights with the shapes that `network` has.

    Args:
        variables: Weights as loaded.
        expected: The network's variables, abstract or not.
        source: Where the weights are from, for the message.
        network: The network's name, for the message.

    Raises:
        CheckpointError: Lists missing, extra and misshapen tensors by name.
    """
    have = {
        k: v.shape for k, v in traverse_util.flatten_dict(variables, sep="/").items()
    }
    want = {
        k: v.shape for k, v in traverse_util.flatten_dict(expected, sep="/").items()
    }
    problems = [f"{name} is missing" for name in want if name not in have]
    problems += [f"{name} is not part of it" for name in have if name not in want]
    problems += [
        f"{name} is {have[name]} instead of {want[name]}"
        for name in want
        if name in have and tuple(have[name]) != tuple(want[name])
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{source} does not fit the network {network!r}: "
            f"{'; '.join(problems[:4])}{more}. Name the network it was trained with."
        )


def check_fits(
    module: Any, variables: Any, description: Description, *, source: str, network: str
) -> None:
    """Compares weights with what `module` would start with, without starting it.

    Raises:
        CheckpointError: See `check_shapes`.
    """
    images = jnp.zeros((1, *description.image_shape))
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    check_shapes(variables, expected, source=source, network=network)


def count(variables: Any) -> int:
    """The number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def digest(variables: Any) -> str:
    """SHA-256 over names, shapes and bytes of all tensors, in hexadecimal."""
    total = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name}:{array.dtype}:{array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()
