"""Weights that PyTorch saved, as variables of linen networks.

State dicts in safetensors files are read without PyTorch; `.pt` and `.pth` files need
the extra `torch`, and only tensors are read from them, never code.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from dfkd_jax.errors import CheckpointError, did_you_mean
from dfkd_jax.models import registry
from dfkd_jax.runtime import weights
from dfkd_jax.teachers import mappings, torch_files
from dfkd_jax.teachers.mappings import LayerMapping, Shapes, Source

# What wrappers put before every name, or anywhere in it; and toolboxes before each.
PREFIXES = ("module.", "model.", "net.", "network.")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
PARTS = ("backbone.", "neck.", "head.")
# Linen's names of tensors and PyTorch's.
TENSORS = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "negative_slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Batch normalization counts its batches, averaging its models; nothing needs that.
UNUSED = "num_batches_tracked"
COUNT = "n_averaged"
MAX_PROBLEMS = 8


def load(
    path: pathlib.Path,
    *,
    network: str,
    expected: Any,
    mapping: str = "",
) -> dict[str, Any]:
    """Variables (NumPy, float32) of a linen network from a PyTorch state dict.

    Args:
        path: A `.safetensors`, `.pt` or `.pth` file.
        network: A name of `models/registry.py`, or any other with a `mapping`.
        expected: The network's variables, abstract or not.
        mapping: File that says which PyTorch layer is which (see `mappings.py`).
            Networks of the registry need none for their usual PyTorch counterpart.

    Raises:
        CheckpointError: See `read_state_dict` and `convert`. Where a mapping is needed
            and none is given, it lists what the file holds and how to begin one.
        ConfigError: The mapping is not there or not as it should be.
    """
    layers = mappings.read(pathlib.Path(mapping).expanduser()) if mapping else None
    named = [source.name for source in layers.sources.values()] if layers else []
    state_dict = read_state_dict(path, named=named)
    if layers is None:
        held = {name: array.shape for name, array in state_dict.items()}
        layers = mappings.shipped(network, _shapes(expected), held)
        about = registry.about(network)
        if layers is None:
            raise CheckpointError(
                f"{path} names its layers unlike the PyTorch counterpart of "
                f"{network!r}{f' ({about})' if about else ''}, or there is none: say "
                "which layer is which in a JSON file and set config.teacher.mapping to "
                "it.\n\n"
                f"The file holds:\n{_listing(state_dict)}\n\n"
                'Begin the mapping with this, and replace every "?":\n'
                f"{skeleton(state_dict, expected)}"
            )
    return convert(state_dict, mapping=layers, expected=expected, source=str(path))


def read_state_dict(
    path: pathlib.Path, *, named: Sequence[str] = (), names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The tensors of a file that PyTorch users save; floats as float32.

    A state dict beside other things ("state_dict", "model", …) is taken out, and what
    wrappers (`DataParallel`, `torch.compile`, Lightning, mmcls, …) give to all names is
    dropped. Weight norm, spectral norm and pruning become the weights that they make.

    Args:
        path: A `.safetensors`, `.pt` or `.pth` file.
        named: Names, or beginnings of names, that are to stay as they are.
        names: Those of the very network; where the file has all of them, nothing is
            made of its tensors.

    Raises:
        CheckpointError: The file is missing, damaged, needs code to be read, holds no
            state dict, more than one, or NaN.
    """
    if path.suffix.lower() == ".safetensors":
        tensors, _ = weights.read_tensors(path)
    else:
        tensors = torch_files.read(path)
    for name, array in tensors.items():
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # Found out below.
                tensors[name] = np.asarray(array, np.float32)
    needed = {name for name in names if not name.endswith(UNUSED)}
    if not names or not needed <= tensors.keys():
        tensors = _unwrapped(tensors, named or names)
    if not names or not needed <= tensors.keys():
        tensors = _folded(tensors, path)
    weights.check_finite(tensors, source=str(path))
    return tensors


def _unwrapped(tensors, named):
    """Tensors by the names that they have in the model alone."""

    def renamed(rename):
        names = {rename(name): tensor for name, tensor in tensors.items()}
        return names if len(names) == len(tensors) else tensors

    def every(*prefixes):
        return all(name.startswith(prefixes) for name in tensors) and not any(
            name.startswith(prefixes) for name in named
        )

    tensors = {name: tensor for name, tensor in tensors.items() if name != COUNT}
    for wrapper in WRAPPERS:
        tensors = renamed(lambda name, wrapper=wrapper: name.replace(wrapper, ""))
    while prefix := next(filter(every, PREFIXES if tensors else ()), ""):
        tensors = renamed(lambda name, prefix=prefix: name.removeprefix(prefix))
    if every(*PARTS):
        tensors = renamed(lambda name: name.partition(".")[2])
    return tensors


def _weight_norm(size, direction):
    """`size · direction / ‖direction‖`, the norm over the axes that `size` lacks."""
    axes = None
    if size.ndim:
        axes = tuple(axis for axis in range(size.ndim) if size.shape[axis] == 1)
        if len(axes) < size.ndim - 1 or size.ndim != direction.ndim:
            raise ValueError(f"sizes {size.shape} of directions {direction.shape}")
    return size * direction / np.sqrt(np.sum(direction**2, axes, keepdims=True))


def _spectral_norm(weight, left, right):
    """The weight over its largest singular value, as kept in evaluation mode."""
    return weight / (left @ weight.reshape(len(weight), -1) @ right)


# Endings of a tensor's name and of its partners', and what they make together.
_FOLDS = (
    (("_g", "_v"), _weight_norm),
    ((".original0", ".original1"), _weight_norm),
    (("_orig", "_u", "_v"), _spectral_norm),
    ((".original", ".0._u", ".0._v"), _spectral_norm),
    (("_orig", "_mask"), np.multiply),
)
_PARAMETRIZED = "parametrizations."


def _folded(tensors, path):
    """Tensors with weights in place of what weight norm and its like keep of them."""
    found = dict(tensors)
    for endings, make in _FOLDS:
        for name in tensors:
            base = name.removesuffix(endings[0])
            parts = [base + ending for ending in endings]
            if name == base or not found.keys() >= set(parts):
                continue
            made = base.replace(_PARAMETRIZED, "")
            try:
                with np.errstate(invalid="ignore", divide="ignore"):  # Found out later.
                    array = make(*(found.pop(part) for part in parts))
                if array.shape not in {tensors[part].shape for part in parts}:
                    raise ValueError(f"it would be {array.shape}")
                if made in found:
                    raise ValueError(f"{made} is there, too")
            except (ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{path}: {', '.join(parts)} make no weight ({error}): remove the "
                    "parametrization in PyTorch before saving."
                ) from error
            found[made] = np.asarray(array, np.float32)
    for name in found:
        if _PARAMETRIZED in name:
            raise CheckpointError(
                f"{path}: tensor {name} is of a parametrization that is not known: "
                "call torch.nn.utils.parametrize.remove_parametrizations in PyTorch "
                "before saving."
            )
    return found


def convert(
    state_dict: Mapping[str, np.ndarray],
    *,
    mapping: LayerMapping,
    expected: Any,
    source: str = "The state dict",
) -> dict[str, Any]:
    """Variables (NumPy, float32) with the tensors of a state dict.

    What a linen layer holds tells its kind: the kernel of a convolution turns from
    OIHW to HWIO (in any number of dimensions), that of a Dense from [out, in] to [in,
    out], in the order of what was flattened before it; scale, bias, mean and var of a
    normalization are its weight, bias, running_mean and running_var. Two things are
    not in a state dict and must be the same in the linen module: the epsilon of
    normalizations and the padding. Transposed convolutions are not converted.

    Args:
        state_dict: As `read_state_dict` gives it.
        mapping: Which layer is which.
        expected: The network's variables, abstract or not.
        source: Where the state dict is from, for messages.

    Raises:
        CheckpointError: Lists tensors that are missing, extra or of another shape, and
            layers that the mapping leaves open.
    """
    want = _shapes(expected)
    problems = _mapping_problems(mapping, want)
    used = set()
    converted: dict[str, np.ndarray] = {}
    for path, shape in want.items():
        try:
            name, origin = _find(path, mapping)
            used.add(name)
            array = _held(name, state_dict, path)
            converted[path] = _convert_tensor(name, array, path, origin, want)
            if shape == () and array.shape == (1,):  # PyTorch's PReLU.
                converted[path] = converted[path].reshape(())
            if converted[path].shape != shape:
                raise _MisfitError(
                    f"{name} of shape {array.shape} gives {_inner(path)} of shape "
                    f"{converted[path].shape} instead of {shape}"
                )
        except _MisfitError as error:
            problems.append(str(error))
    problems += [
        f"{name} is not used: map it, or put it into {mappings.IGNORE}"
        for name in state_dict
        if name not in used
        and name.rpartition(".")[2] != UNUSED
        and not name.startswith(mapping.ignore)
    ]
    if problems:
        problems = list(dict.fromkeys(problems))
        more = len(problems) - MAX_PROBLEMS
        raise CheckpointError(
            f"{source} does not fit the network. {mapping.origin} leads to:\n  "
            + "\n  ".join(problems[:MAX_PROBLEMS])
            + (f"\n  and {more} more." if more > 0 else "")
        )
    return traverse_util.unflatten_dict(converted, sep="/")


def skeleton(state_dict: Mapping[str, np.ndarray], expected: Any) -> str:
    """The JSON of a mapping to be filled in, one line a layer of the network.

    A PyTorch layer is named where it alone has the right shapes; the others are "?".
    """
    want = _shapes(expected)
    open_layers = _after_a_flatten(want)
    held: dict[str, Shapes] = {}
    for name, array in state_dict.items():
        layer, _, tensor = name.rpartition(".")
        if tensor != UNUSED:
            held.setdefault(layer, {})[tensor] = array.shape
    layers: dict[str, Shapes] = {}
    values: dict[str, Any] = {}
    for path, shape in want.items():
        layer, tensor = _split(path)
        if tensor in TENSORS:
            layers.setdefault(layer, {})[tensor] = shape
            values[layer] = "?"
        else:
            values[_inner(path)] = "?"
    torch_shapes = {
        layer: {
            TENSORS[tensor]: _torch_shape(shape) if tensor == "kernel" else shape
            for tensor, shape in own.items()
        }
        for layer, own in layers.items()
    }
    for layer, own in torch_shapes.items():
        fitting = [name for name, shapes in held.items() if shapes == own]
        alike = [other for other, shapes in torch_shapes.items() if shapes == own]
        if len(fitting) == len(alike) == 1:
            values[layer] = fitting[0]
        if layer in open_layers:
            values[layer] = {
                "from": values[layer],
                "flatten": ["channels?", "height?", "width?"],
            }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _shapes(variables: Any) -> Shapes:
    flat = weights.flatten(variables)
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _inner(path: str) -> str:
    """`params/block/conv/kernel` to `block/conv/kernel`."""
    return path.partition("/")[2]


def _split(path: str) -> tuple[str, str]:
    """`params/block/conv/kernel` to `block/conv` and `kernel`."""
    layer, _, tensor = _inner(path).rpartition("/")
    return layer, tensor


class _MisfitError(Exception):
    """What is wrong with one tensor."""


def _find(path: str, mapping: LayerMapping) -> tuple[str, Source]:
    """Name of the PyTorch tensor for a linen tensor, and its source in the mapping."""
    layer, tensor = _split(path)
    origin = mapping.sources.get(_inner(path))
    if origin is not None:
        return origin.name, origin
    origin = mapping.sources.get(layer)
    if origin is None:
        missing = layer if layer and tensor in TENSORS else _inner(path)
        raise _MisfitError(f"{missing} is not in the mapping")
    if tensor not in TENSORS:
        raise _MisfitError(
            f"{_inner(path)} is of no known kind: name it alone in the mapping"
        )
    return f"{origin.name}.{TENSORS[tensor]}", origin


def _held(name: str, state_dict: Mapping[str, np.ndarray], path: str) -> np.ndarray:
    if name not in state_dict:
        raise _MisfitError(
            f"{name} (for {_inner(path)}) is missing.{did_you_mean(name, state_dict)}"
        )
    array = np.asarray(state_dict[name])
    if array.dtype.kind != "f":
        raise _MisfitError(f"{name} is {array.dtype}, not a floating-point tensor")
    return array


def _convert_tensor(
    name: str, array: np.ndarray, path: str, origin: Source, want: Shapes
) -> np.ndarray:
    """A PyTorch tensor in the layout of the linen tensor at `path`."""
    layer, tensor = _split(path)
    if name == origin.name:
        axes = origin.transpose
        fits = axes is not None and len(axes) == array.ndim
        array = array.transpose(axes) if fits else array
    else:
        has_kernel = f"params/{layer}/kernel" in want
        # What a Dense puts out, and so its bias, is in one order everywhere.
        if tensor == "kernel" or not has_kernel:
            array = _channels_last(array, layer, origin, _after_a_flatten(want))
        if tensor == "kernel" and array.ndim > 1:
            # OIHW to HWIO, [out, in] to [in, out].
            array = array.transpose(*range(2, array.ndim), 1, 0)
    return np.asarray(array, np.float32, order="C")


def _channels_last(
    array: np.ndarray, layer: str, origin: Source, open_layers: set[str]
) -> np.ndarray:
    """With the last axis in the order of a flatten of channels last, not first."""
    num_inputs = array.shape[-1] if array.ndim else 0
    if origin.flatten is None and layer in open_layers:
        raise _MisfitError(
            f"{layer} has {num_inputs} inputs, which no layer before it gives: say "
            'what was flattened in "flatten": [channels, height, width], or "flatten": '
            "false"
        )
    if not origin.flatten:
        return array
    if math.prod(origin.flatten) != num_inputs:
        raise _MisfitError(
            f'"flatten" of {layer} is {list(origin.flatten)}, which does not make the '
            f"{num_inputs} inputs of {origin.name}"
        )
    order = np.arange(num_inputs).reshape(origin.flatten)
    return array[..., order.transpose(1, 2, 0).ravel()]


def _after_a_flatten(want: Shapes) -> set[str]:
    """Layers whose number of inputs is no other layer's number of outputs.

    Most of them are Dense layers after a flatten, or normalizations between the two:
    the order of their inputs has to be known, and the shapes would not give away a
    wrong one. (Others come after a concatenation.)
    """
    kernels = {
        _split(path)[0]: shape
        for path, shape in want.items()
        if _split(path)[1] == "kernel" and len(shape) > 1
    }

    def given(num_inputs: int, others: set[str]) -> bool:
        return any(kernels[other][-1] == num_inputs for other in others)

    dense = {
        layer
        for layer, shape in kernels.items()
        if len(shape) == 2 and not given(shape[0], kernels.keys() - {layer})
    }
    sizes = {kernels[layer][0] for layer in dense}
    norms = {
        _split(path)[0]
        for path, shape in want.items()
        if _split(path)[1] in ("scale", "mean")
        and shape[-1] in sizes
        and not given(shape[-1], kernels.keys() - dense)
    }
    return dense | norms


def _mapping_problems(mapping: LayerMapping, want: Shapes) -> list[str]:
    layers = {_split(path)[0] for path in want}
    known = layers | set(map(_inner, want))
    problems = [
        f"the network has no layer {layer!r}.{did_you_mean(layer, known)}"
        for layer in mapping.sources
        if layer not in known
    ]
    names = [source.name for source in mapping.sources.values()]
    problems += [
        f"{name} is mapped to {names.count(name)} layers"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    return problems


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """OIHW from HWIO."""
    return shape if len(shape) < 2 else (shape[-1], shape[-2], *shape[:-2])


def _listing(state_dict: Mapping[str, np.ndarray]) -> str:
    return "\n".join(
        f"  {name} {list(array.shape)}"
        for name, array in state_dict.items()
        if name.rpartition(".")[2] != UNUSED
    )
