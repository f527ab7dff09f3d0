"""Weights as safetensors files with a description of the network inside."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import core, errors, traverse_util
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as serialise

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models import network as networks
from dfkd_jax.models import registry
from dfkd_jax.runtime import arrays, files
from dfkd_jax.runtime.descriptions import Description, describe

FORMAT = "dfkd_jax-1"
MOST_HEADER_BYTES = 16 * 2**20  # Some 100,000 tensors.
MAX_FINGERPRINT_CLASSES = 1_000
# Of the largest logit: more than other processors round, less than another function.
TOLERANCE = 1e-3
HALF_PRECISION = 30.0  # Times that, where a network rounds to 8 bits by itself.
# What linen raises where a network is in training mode when it is evaluated.
_MODE_ERRORS = (errors.InvalidRngError, errors.ModifyScopeVariableError)
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

    @functools.cached_property
    def fingerprint(self) -> list[list[float]]:
        """Logits of fixed images, a list per image: they tell functions apart.

        With many classes, of the first ones. Empty where a logit is not finite.
        """
        logits = self._answers(fixed_images(self.description.image_shape))
        if not np.isfinite(logits).all():
            return []
        kept = logits[:, :MAX_FINGERPRINT_CLASSES].astype(np.float64)
        return [[float(f"{value:.7g}") for value in row] for row in kept]

    def _answers(self, pixels, *, contrast=1.0, scale=1.0):
        """Logits of pixels from 0 to 1 with images and parameters times a factor."""
        mean, std = np.float32(self.description.mean), np.float32(self.description.std)
        with np.errstate(over="ignore"):
            params = jax.tree.map(lambda leaf: leaf * scale, self.variables["params"])
        variables = {**self.variables, "params": params}
        # Accelerators multiply float32 with fewer digits unless they are told.
        with jax.default_matmul_precision("highest"):
            return np.asarray(
                self._logits(variables, contrast * (pixels - mean) / std), np.float32
            )

    def _is_of_half_precision(self):
        """Whether the network itself computes in float16 or bfloat16 somewhere."""
        images = fixed_images(self.description.image_shape)
        return "f16[" in str(jax.make_jaxpr(self._logits)(self.variables, images))

    @functools.cached_property
    def _logits(self):
        return jax.jit(functools.partial(networks.logits, self.module))

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

    def save(self, path: str | pathlib.Path, *, run: str = "") -> None:
        """Writes the weights and their description as a safetensors file.

        Args:
            path: File to write or replace.
            run: Mark of the run that made it (`workdir.mark`), if it belongs to one.
        """
        save(
            pathlib.Path(path),
            self.variables,
            self.description,
            run=run,
            fingerprint=self.fingerprint,
        )

    def check_fingerprint(self, wanted: Any, *, source: str) -> None:
        """Compares the logits of fixed images with those of an earlier time.

        Args:
            wanted: A `fingerprint`; empty where none was kept.
            source: Where it is from, for the message.

        Raises:
            CheckpointError: The network computes something else.
        """
        if not wanted:
            return
        now = np.float64(self.fingerprint)
        then = np.float64(wanted) if _is_matrix(wanted) else np.full_like(now, np.inf)
        apart, allowed = np.inf, TOLERANCE * np.abs(then).max(initial=0)
        if then.shape == now.shape:
            apart = np.abs(then - now).max(initial=0)
        if apart > allowed and self._is_of_half_precision():
            allowed *= HALF_PRECISION
        if apart <= allowed < np.inf:
            return
        fields = [
            field.name
            for field in dataclasses.fields(self.module)
            if field.init
            and field.name not in {"parent", "name", "num_classes"}
            and field.name not in self.description.arguments
        ]
        raise CheckpointError(
            f"{source}: the network {self.description.network!r} computes other logits "
            f"than when it was saved (up to {apart:.2g} apart, expected at most "
            f"{allowed:.2g}): its source was edited, or a field that the file does not "
            f"hold ({', '.join(fields) or 'it holds all'}) has another value. Restore "
            "the source, or set these fields: config.teacher.arguments of a teacher, "
            "api.load(path, module=Network(...)) in Python."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """What a file of `save` holds.

    Attributes:
        variables: NumPy arrays.
        description: What else is known of the network.
        run: Mark of the run that made it; empty if it belongs to none.
        fingerprint: See `TrainedNetwork`; empty in older files.
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

    def network(self, module: Any, *, source: str) -> TrainedNetwork:
        """The network, given its linen module.

        Raises:
            CheckpointError: See `admit`; or the module computes something else than
                what was saved.
        """
        found = admit(module, self.variables, self.description, source=source)
        found.check_fingerprint(self.fingerprint, source=source)
        return found


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
        fingerprint: See `TrainedNetwork`.
    """
    tensors = {name: _storable(leaf) for name, leaf in flatten(variables).items()}
    # One entry: safetensors writes several in no fixed order.
    fields = dataclasses.asdict(description) | {"run": run}
    if fingerprint:
        fields["fingerprint"] = fingerprint
    fields["sha256"] = _checksum(tensors, fields)
    metadata = {FORMAT: json.dumps(fields)}
    with files.atomic_write(path) as temporary:
        # `save_file` reports a full disk with an error that is no OSError.
        temporary.write_bytes(serialise(tensors, metadata=metadata))


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
        fields = dict(json.loads(metadata[FORMAT]))
        wanted = fields.pop("sha256", None)
        checksum = wanted is not None and _checksum(flat, fields)
        run = str(fields.pop("run", ""))
        fingerprint = fields.pop("fingerprint", [])
        if fingerprint and not _is_matrix(fingerprint):
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


def _is_matrix(value):
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


def admit(
    module: Any, variables: Any, description: Description, *, source: str
) -> TrainedNetwork:
    """A network of variables from anywhere, as float32 NumPy arrays.

    Raises:
        CheckpointError: They do not fit the module, hold NaN or a negative variance;
            or the module does not take such images or returns other logits.
    """
    name = description.network
    expected, num_classes = trace(module, description.image_shape, network=name)
    variables = as_float32(variables, source=source)
    check_shapes(variables, expected, source=source, network=name)
    if num_classes != description.num_classes:
        raise CheckpointError(
            f"Network {name!r} tells {num_classes} classes apart, not "
            f"{description.num_classes}: change its arguments."
        )
    flat = flatten(variables)
    check_finite(flat, source=source)
    for key, leaf in flat.items():
        # Whose root would be NaN.
        if key.startswith("batch_stats/") and key.endswith("/var") and (leaf < 0).any():
            raise CheckpointError(
                f"{source}: tensor {key} holds a negative variance: fetch or train the "
                "weights again."
            )
    # In the module's own tree: a name may hold a slash (`nn.SpectralNorm`).
    paths = traverse_util.flatten_dict(expected)
    variables = {path: flat["/".join(path)] for path in paths}
    return TrainedNetwork(
        module=module,
        variables=traverse_util.unflatten_dict(variables),
        description=description,
    )


def as_float32(variables: Any, *, source: str) -> dict[str, Any]:
    """Variables as nested dictionaries of NumPy arrays, floats as float32.

    Bare parameters get their level "params".

    Raises:
        CheckpointError: They are no linen variables.
    """

    def convert(leaf):
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufV":
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


def check_teacher(teacher: TrainedNetwork, *, source: str) -> None:
    """Raises CheckpointError where a network's outputs are no logits of images.

    They are constant, or probabilities: these stay within 0 and 1 even where images or
    parameters are a hundred times as large, which no logits do.
    """
    images = fixed_images(teacher.description.image_shape)
    outputs = teacher._answers(images)
    if np.isfinite(outputs).all() and (outputs == outputs[:1]).all():
        raise CheckpointError(
            f"{source}: the network {teacher.description.network!r} gives the same "
            "logits for every image, as untrained or emptied weights do: name weights "
            "that were trained."
        )
    if ((outputs < 0) | (outputs > 1)).any():
        return
    large = np.concatenate(
        [
            outputs,
            teacher._answers(images, contrast=100.0),
            teacher._answers(images, scale=100.0),
        ]
    )
    large = large[np.isfinite(large).all(-1)]
    if ((large >= 0) & (large <= 1)).all():
        ends, remedy = "sigmoid", ""
        if np.allclose(large.sum(-1), 1, atol=1e-3):
            ends, remedy = "softmax", ", or the log of its outputs (nn.log_softmax)"
        raise CheckpointError(
            f"{source}: the network {teacher.description.network!r} returns "
            f"probabilities (it ends in a {ends}), expected logits: return what the "
            f"{ends} gets{remedy}."
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

    with _explained(network, shape):
        expected, logits = jax.eval_shape(start, jax.random.key(0), _two_images(shape))
    found = getattr(logits, "shape", None)
    if not found or len(found) != 2 or found[0] != 2:
        raise CheckpointError(
            f"Network {network!r} returns {found or type(logits).__name__} for two "
            "images instead of logits (2, classes)."
        )
    if found[1] < 2:
        raise CheckpointError(
            f"Network {network!r} returns one logit, expected one per class: for two "
            "classes return jnp.concatenate([jnp.zeros_like(z), z], -1) for the logit "
            "z."
        )
    if not jax.tree.leaves(expected.get("params", {})):
        raise CheckpointError(
            f"Network {network!r} has no parameters: name a network that was trained."
        )
    return expected, found[1]


def check_trainable(
    module: Any, expected: Any, image_shape: Sequence[int], *, network: str
) -> None:
    """Raises CheckpointError where dropout or BatchNorm would never be trained.

    Args:
        module: A student.
        expected: Its variables, abstract or not.
        image_shape: (height, width, channels).
        network: Its name, for the message.
    """
    with _explained(network, tuple(image_shape)):
        off = networks.never_trained(module, expected, _two_images(image_shape))
    if off:
        raise CheckpointError(
            f"Network {network!r} leaves its {off} in evaluation mode when it is "
            "trained: expected an argument of __call__ (or a field) that says which, "
            f"one of {', '.join(networks.MODE_ARGUMENTS)}; pass it on to the {off}."
        )


def _two_images(shape):
    return jax.ShapeDtypeStruct((2, *shape), jnp.float32)


@contextlib.contextmanager
def _explained(network, shape):
    """What a network raises as one error of ours."""
    try:
        yield
    except Exception as error:  # Anybody's network may raise anything.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "Check its arguments and the images' shape."
        if "missing" in reason[0] or isinstance(error, _MODE_ERRORS):
            remedy = (
                "Of further arguments, only one that says whether it is trained is "
                f"given: {', '.join(networks.MODE_ARGUMENTS)}."
            )
        raise CheckpointError(
            f"Network {network!r} cannot be called with images "
            f"[batch, {', '.join(map(str, shape))}] ({reason[0][:200]}). {remedy}"
        ) from error


def fixed_images(image_shape: Sequence[int]) -> np.ndarray:
    """Pixels from 0 to 1, `[4, …]`, the same everywhere and for ever.

    From raw bits, which NumPy promises to keep; two images of fine noise, one of coarse
    noise, and a black one.
    """
    height, width, channels = image_shape
    bits = np.random.PCG64(0).random_raw(2 * height * width * channels)
    fine = ((bits >> np.uint64(40)) / 2.0**24).astype(np.float32)
    fine = fine.reshape(2, height, width, channels)
    rows, columns = (np.arange(size) // 4 for size in (height, width))
    return np.stack([*fine, fine[0][rows][:, columns], np.zeros_like(fine[0])])


def filled(module: Any, description: Description) -> TrainedNetwork:
    """A network that nobody has trained, the same everywhere and for ever."""
    expected, _ = trace(module, description.image_shape, network=description.network)

    def fill(path, leaf):
        seed = zlib.crc32("/".join(path).encode())
        bits = np.random.PCG64(seed).random_raw(math.prod(leaf.shape))
        values = (bits >> np.uint64(40)) / 2.0**24  # From 0 to 1.
        inputs = math.prod(leaf.shape[:-1])
        if path[-1] in ("scale", "var"):
            values = values + 0.5
        else:
            values = (2 * values - 1) * math.sqrt(3 / max(inputs, 1))
        return values.reshape(leaf.shape).astype(leaf.dtype)

    flat = traverse_util.flatten_dict(expected)
    variables = {path: fill(path, leaf) for path, leaf in flat.items()}
    return TrainedNetwork(
        module=module,
        variables=traverse_util.unflatten_dict(variables),
        description=description,
    )


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
