"""Weights as safetensors files with a description of the network inside."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as serialise

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models import network as networks
from dfkd_jax.runtime import arrays, files
from dfkd_jax.runtime.descriptions import Description, describe

FORMAT = "dfkd_jax-1"
MOST_HEADER_BYTES = 16 * 2**20  # Some 100,000 tensors.
# Of safetensors, in NumPy's words; bfloat16 becomes float32.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A teacher or a student that is done, ready to be asked.

    Attributes:
        module: Its linen module.
        variables: Its variables (NumPy).
        description: What else is known of it.
    """

    module: Any
    variables: Any
    description: Description

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the variables."""
        return digest(self.variables)

    def layers(self) -> dict[str, networks.Layer]:
        """Its layers with a kernel; see `models.network.layers`."""
        shape = tuple(self.description.image_shape)
        return networks.layers(self.module, self.variables, shape)

    def logits(self, pixels: Any) -> Any:
        """Logits `[batch, classes]` of `[batch, height, width, channels]`.

        Args:
            pixels: uint8, or floats from 0 to 1; they are standardised here.

        Raises:
            CheckpointError: They are not what the network takes.
        """
        shape = tuple(self.description.image_shape)
        try:
            pixels = arrays.pixels(pixels, image_shape=shape)
        except ValueError as error:
            raise CheckpointError(
                f"The network takes images {shape}: {error}."
            ) from error
        scale = 255 if pixels.dtype == np.uint8 else 1
        mean, std = np.float32(self.description.mean), np.float32(self.description.std)
        images = jnp.asarray((pixels.astype(np.float32) / scale - mean) / std)
        return networks.logits(self.module, self.variables, images)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the weights and their description as a safetensors file."""
        save(pathlib.Path(path), self.variables, self.description)


def save(
    path: pathlib.Path, variables: Any, description: Description, *, run: str = ""
) -> None:
    """Writes `variables` and `description` atomically, with a checksum.

    Args:
        path: File to write or replace.
        variables: Of the network.
        description: What else has to be known of it.
        run: Mark of the run that made it (`workdir.mark`), if it belongs to one.
    """
    tensors = {
        name: np.ascontiguousarray(leaf) for name, leaf in flatten(variables).items()
    }
    # One entry: safetensors writes several in no fixed order.
    fields = dataclasses.asdict(description) | {"run": run}
    fields["sha256"] = _checksum(variables, fields)
    metadata = {FORMAT: json.dumps(fields)}
    with files.atomic_write(path) as temporary:
        # `save_file` reports a full disk with an error that is no OSError.
        temporary.write_bytes(serialise(tensors, metadata=metadata))


def load(path: pathlib.Path) -> tuple[dict[str, Any], Description]:
    """Variables (NumPy) and description of a file that `save` wrote.

    Raises:
        CheckpointError: The file is missing, damaged, foreign or holds NaN.
    """
    return described(path, *read_tensors(path))


def described(
    path: pathlib.Path, flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[dict[str, Any], Description]:
    """Variables and description of what `read_tensors` found in `path`.

    Raises:
        CheckpointError: `save` did not write it, or its description is damaged.
    """
    fields = _fields(path, metadata)
    wanted = fields.pop("sha256", None)
    variables = unflatten(flat, source=str(path))
    if wanted is not None and _checksum(variables, fields) != wanted:
        raise CheckpointError(
            f"{path} is damaged: its content is not what was written. Fetch or make it "
            "again."
        )
    fields.pop("run", None)
    return variables, describe(fields, source=str(path))


def made_by(path: pathlib.Path) -> str:
    """Mark of the run that made a file of `save`; empty if that is not known."""
    return str(_fields(path, read_tensors(path)[1]).get("run", ""))


def _fields(path, metadata):
    """What `save` put into the metadata."""
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path} was not written by dfkd_jax (no {FORMAT!r} in its metadata): name "
            "weights that it wrote."
        )
    try:
        return dict(json.loads(metadata[FORMAT]))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its description is damaged ({error})."
        ) from error


def _checksum(variables, fields):
    return files.digest(fields | {"variables": digest(variables)})


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of any safetensors file.

    Raises:
        CheckpointError: The file is missing, damaged, of a dtype that NumPy lacks, or
            holds NaN.
    """
    if not path.is_file():
        raise CheckpointError(f"Weights {path} are not there: check the path.")
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        # `safe_open` has no bfloat16 for NumPy.
        entries = deserialize(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}): fetch or make it "
            "again."
        ) from error
    flat = {name: _tensor(entry, name, path) for name, entry in entries}
    check_finite(flat, source=str(path))
    return flat, metadata


def _check_header(path):
    """Before anything is made from a header: it must be of a sensible size."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER_BYTES:
        raise ValueError(f"its header claims {size:,} bytes")


def _tensor(entry, name, path):
    data, dtype = entry["data"], entry["dtype"]
    if dtype == "BF16":
        # The upper half of a float32.
        array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in DTYPES:
        array = np.frombuffer(data, DTYPES[dtype])
    else:
        raise CheckpointError(f"{path}: tensor {name} is {dtype}: save it as float32.")
    return array.reshape(entry["shape"])


def check_finite(flat: Mapping[str, np.ndarray], *, source: str) -> None:
    """Raises CheckpointError for the first tensor that holds NaN or infinity."""
    for name, leaf in flat.items():
        if not np.all(np.isfinite(leaf)):
            raise CheckpointError(f"{source}: tensor {name} holds NaN or infinity.")


def unflatten(flat: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Leaves by name as a tree; the inverse of `flatten`.

    Raises:
        CheckpointError: A tensor is called like a group of others, or like nothing.
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *groups, last = name.split("/")
        node: Any = tree
        for group in groups:
            node = node.setdefault(group, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last in node or not all((*groups, last)):
            raise CheckpointError(
                f"{source}: tensor {name!r} has no place among the others: fetch or "
                "make the file again."
            )
        node[last] = leaf
    return tree


def flatten(variables: Any) -> dict[str, Any]:
    """Leaves by name: `params/dense_1/kernel`."""
    return traverse_util.flatten_dict(variables, sep="/")


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
    have = {name: leaf.shape for name, leaf in flatten(variables).items()}
    want = {name: leaf.shape for name, leaf in flatten(expected).items()}
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
    module: Any, variables: Any, description: Description, *, source: str
) -> None:
    """Compares weights with what `module` would start with, and its logits.

    Raises:
        CheckpointError: See `check_shapes` and `trace`; or another number of classes.
    """
    name = description.network
    expected, num_classes = trace(module, description.image_shape, network=name)
    check_shapes(variables, expected, source=source, network=name)
    if num_classes != description.num_classes:
        raise CheckpointError(
            f"Network {name!r} tells {num_classes} classes apart, not "
            f"{description.num_classes}: change its arguments."
        )


def trace(module: Any, image_shape: Sequence[int], *, network: str) -> tuple[Any, int]:
    """Shapes of a network's variables and its number of classes, without running it.

    Raises:
        CheckpointError: It cannot take such images, or returns other than logits.
    """
    shape = tuple(image_shape)

    def start(key, images):
        variables = networks.init(module, key, shape)
        return variables, networks.logits(module, variables, images)

    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    try:
        expected, logits = jax.eval_shape(start, jax.random.key(0), images)
    except Exception as error:  # Anybody's network may raise anything.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"Network {network!r} cannot be called with images "
            f"[batch, {', '.join(map(str, shape))}] ({reason[0][:200]}). Check its "
            "arguments and the images' shape."
        ) from error
    found = getattr(logits, "shape", None)
    if not found or len(found) != 2 or found[0] != 2:
        raise CheckpointError(
            f"Network {network!r} returns {found or type(logits).__name__} for two "
            "images instead of logits (2, classes)."
        )
    return expected, found[1]


def count(variables: Any) -> int:
    """The number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def digest(variables: Any) -> str:
    """SHA-256 over names, shapes and bytes of all tensors, in hexadecimal."""
    total = hashlib.sha256()
    for name, leaf in sorted(flatten(variables).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name}:{array.dtype}:{array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()
