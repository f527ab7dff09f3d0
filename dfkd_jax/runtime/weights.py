"""Weights as safetensors files with a description of the network inside."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import core, traverse_util
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as serialize

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models import registry
from dfkd_jax.runtime import files
from dfkd_jax.runtime.descriptions import Description, describe

FORMAT = "dfkd_jax-1"
MAX_HEADER_BYTES = 16 * 2**20  # Some 100,000 tensors.
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
class Stored:
    """What a file of `save` holds.

    Attributes:
        variables: NumPy arrays.
        description: What else is known of the network.
        run: Mark of the run that made it; empty if it belongs to none.
        fingerprint: See `trained.TrainedNetwork`; empty in older files.
    """

    variables: Any
    description: Description
    run: str = ""
    fingerprint: Any = ()

    def called(self, name: str, *, source: str) -> "Stored":
        """The same, of the network `name`, where code has moved since it was saved.

        Raises:
            CheckpointError: It is another network, and no fingerprint would tell.
        """
        known = self.description.network
        moved = ":" in name and ":" in known and self.fingerprint
        moved = moved or registry.class_of(name) == registry.class_of(known)
        if name != known and not moved:
            raise CheckpointError(
                f"{source} is of the network {known!r}, not of {name!r}: name that one."
            )
        described = dataclasses.replace(self.description, network=name)
        return dataclasses.replace(self, description=described)


def save(
    path: pathlib.Path,
    variables: Any,
    description: Description,
    *,
    run: str = "",
    fingerprint: Any = (),
) -> None:
    """Writes `variables` and `description` atomically, with a checksum.

    Args:
        path: File to write or replace.
        variables: Of the network.
        description: What else has to be known of it.
        run: Mark of the run that made it (`workdir.mark`), if it belongs to one.
        fingerprint: See `trained.TrainedNetwork`.
    """
    tensors = {name: _storable(leaf) for name, leaf in flatten(variables).items()}
    # One entry: safetensors writes several in no fixed order.
    fields = description.to_json() | {"run": run}
    if fingerprint:
        fields["fingerprint"] = fingerprint
    fields["sha256"] = _checksum(tensors, fields)
    metadata = {FORMAT: json.dumps(fields)}
    with files.atomic_write(path) as temporary:
        # `save_file` reports a full disk with an error that is no OSError.
        temporary.write_bytes(serialize(tensors, metadata=metadata))


def load(path: pathlib.Path) -> tuple[dict[str, Any], Description]:
    """Variables (NumPy) and description of a file that `save` wrote; see `read`."""
    stored = read(path)
    return stored.variables, stored.description


def read(path: pathlib.Path) -> Stored:
    """What a file that `save` wrote holds.

    Raises:
        CheckpointError: The file is missing, damaged, foreign or holds NaN.
    """
    return described(path, *read_tensors(path))


def described(
    path: pathlib.Path, flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> Stored:
    """What `read_tensors` found in `path`, if `save` wrote it.

    Raises:
        CheckpointError: `save` did not write it, or its description is damaged.
    """
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path} was not written by dfkd_jax (no {FORMAT!r} in its metadata): name "
            "weights that it wrote, or load it as a teacher's (config.teacher.weights)."
        )
    try:
        fields = dict(files.parse_json(metadata[FORMAT]))
        wanted = fields.pop("sha256", None)
        checksum = wanted is not None and _checksum(flat, fields)
        run = str(fields.pop("run", ""))
        fingerprint = fields.pop("fingerprint", [])
        if fingerprint and not is_matrix(fingerprint):
            raise ValueError("its fingerprint is no matrix of numbers")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its description is damaged ({error})."
        ) from error
    if wanted is not None and checksum != wanted:
        raise CheckpointError(
            f"{path} is damaged: its content is not what was written. Fetch or make it "
            "again."
        )
    return Stored(
        variables=unflatten(flat, source=str(path)),
        description=describe(fields, source=str(path)),
        run=run,
        fingerprint=fingerprint,
    )


def is_matrix(value):
    """Whether a JSON value is a list of equally long lists of finite numbers."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    numbers = [number for row in value for number in row]
    return len({len(row) for row in value}) == 1 and all(
        type(number) in (int, float) and abs(number) < 1e38 for number in numbers
    )


def _storable(leaf):
    """An array in a dtype that NumPy and safetensors have; bfloat16 as float32."""
    array = np.asarray(leaf, order="C")
    return array if array.dtype.str in DTYPES.values() else array.astype(np.float32)


def _checksum(flat, fields):
    return files.digest(fields | {"variables": _digest(flat)})


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of any safetensors file.

    Raises:
        CheckpointError: The file is missing, damaged, of a dtype that NumPy lacks, or
            holds NaN.
    """
    check_readable(path)
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


def check_readable(path: pathlib.Path) -> None:
    """Raises CheckpointError where `path` is no file that this user may read."""
    try:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            found = f"{kind}: name a file" if path.exists() else "not there"
            raise CheckpointError(f"Weights {path} are {found}: check the path.")
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(
            f"Weights {path} cannot be read ({error.strerror}): check who may read the "
            "file and its folder."
        ) from error


def _check_header(path):
    """Before anything is made from a header: it must be of a sensible size."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
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
    """Compares weights with the shapes and kinds of dtype that `network` has.

    Args:
        variables: Weights as loaded.
        expected: The network's variables, abstract or not.
        source: Where the weights are from, for the message.
        network: The network's name, for the message.

    Raises:
        CheckpointError: Lists missing, extra and misshapen tensors by name, and
            integers in place of floats.
    """
    have, want = flatten(variables), flatten(expected)
    problems = [f"{name} is missing" for name in want if name not in have]
    problems += [f"{name} is not part of it" for name in have if name not in want]
    for name in (name for name in want if name in have):
        found, wanted = have[name], want[name]
        if tuple(found.shape) != tuple(wanted.shape):
            problems.append(f"{name} is {found.shape} instead of {wanted.shape}")
        elif _is_float(found) != _is_float(wanted):
            problems.append(f"{name} is {found.dtype} instead of {wanted.dtype}")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{source} does not fit the network {network!r}: "
            f"{'; '.join(problems[:4])}{more}. Name the network it was trained with, "
            "and save its variables alone, as floats."
        )


def _is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def as_float32(variables: Any, *, source: str) -> dict[str, Any]:
    """Variables as nested dictionaries of NumPy arrays, floats as float32.

    Bare parameters get their level "params".

    Raises:
        CheckpointError: They are no linen variables.
    """

    def convert(leaf):
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufV" or np.ma.is_masked(leaf):
            raise TypeError(f"it holds a {type(leaf).__name__}")
        with np.errstate(over="ignore"):  # Found out by `check_finite`.
            return array.astype(np.float32) if _is_float(array) else array

    try:
        tree = dict(core.unfreeze(core.meta.unbox(variables)))
        tree = tree if "params" in tree else {"params": tree}
        flat = {k: v for k, v in flatten(tree).items() if v is not None}
        return unflatten({k: convert(v) for k, v in flat.items()}, source=source)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: expected linen's variables, {{'params': …}} of arrays, got "
            f"{type(variables).__name__} ({error}). Of a train state give "
            "{'params': state.params} and, where there is one, 'batch_stats'."
        ) from error


def count(variables: Any) -> int:
    """The number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def digest(variables: Any) -> str:
    """SHA-256 over names, shapes and bytes of all tensors, in hexadecimal."""
    return _digest(flatten(variables))


def _digest(flat):
    total = hashlib.sha256()
    for name, leaf in sorted(flat.items()):
        array = np.asarray(leaf, order="C")
        total.update(f"{name}:{array.dtype}:{array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()
