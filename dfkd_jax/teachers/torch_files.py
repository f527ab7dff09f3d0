"""Files that `torch.save` wrote: their tensors, and never the code that they name.

A file may hold a state dict, a state dict among other things, or a whole model, whose
classes are somebody's code. None of them is imported: classes that only keep what they
are given stand in their place, with tensors where every `torch.nn.Module` has them.
"""

import pathlib
import pickle
import pickletools
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import weights

# Where checkpoints keep the state dict: the last ones hold averages over training.
NESTED_UNDER = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema",
)
MAX_NAMED = 8
MAX_ENTRIES = 100_000
# What tensors are made with, by PyTorch itself.
_REBUILDING = {"_rebuild_tensor_v2", "_rebuild_parameter"}
# Of pickle's second protocol.
_CODES = {ord(code.code) for code in pickletools.opcodes if code.proto <= 2}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pt` or `.pth` file by their names in the model.

    Raises:
        CheckpointError: PyTorch is not here; the file is missing, damaged, holds no
            weights, or more than those of one network.
    """
    weights.check_readable(path)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs PyTorch to be read: install it "
            '(pip install "dfkd_jax[torch]"), or save the state dict with '
            "safetensors.torch.save_file."
        ) from error
    try:
        _check_archive(path)
        content = _without_modules(_content(path))
    except CheckpointError:
        raise
    except Exception as error:  # PyTorch raises nearly anything on damaged files.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged or no file of torch.save ({reason}): fetch or make it "
            "again, or save model.state_dict()."
        ) from error
    found = _state_dict(content, path)
    return {name: _array(name, tensor, path) for name, tensor in found.items()}


def _check_archive(path):
    """Raises for an archive that is code, or that grows when it is read."""
    if not zipfile.is_zipfile(path):  # As PyTorch wrote before 1.6.
        if tarfile.is_tarfile(path):
            raise ValueError("an archive of PyTorch 0.1, which would be unpacked")
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"{path} is a TorchScript program, which is code: save its weights with "
            "torch.save(torch.jit.load(path).state_dict(), ...)."
        )
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"{len(entries):,} files inside")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its files overlap")


# Reading without code --------------------------------------------------------------


class Unknown:
    """In place of an object whose class is not imported: what it was given."""

    def __new__(cls, *_, **__):  # noqa: D102 - as any object's.
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)

    def _ignore(self, *_):
        pass

    __setitem__ = append = extend = add = _ignore


class Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Imports nothing but what tensors are made with.

    It is the one that is written in Python, and knows what `torch.save` writes alone:
    else a large number in a small file takes gigabytes.
    """

    dispatch: ClassVar = {
        code: function
        for code, function in pickle._Unpickler.dispatch.items()  # pyright: ignore[reportAttributeAccessIssue]
        if code in _CODES
    }

    def find_class(self, module: str, name: str) -> Any:
        """The class or function, or a class without code in its place."""
        import torch

        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name == "set":
            return set
        if module == "torch._utils" and name in _REBUILDING:
            return getattr(torch._utils, name)
        if name.startswith("_rebuild"):
            raise ValueError(f"it holds tensors by {name}, which are not read")
        if module == "torch" and (
            name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return getattr(torch, name)
        return type(name, (Unknown,), {"__module__": module})


def _content(path):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What matters is in the errors.
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            reader: Any = types.ModuleType("reader")
            reader.Unpickler, reader.UnpicklingError = Unpickler, pickle.UnpicklingError
            reader.load = lambda file, **options: Unpickler(file, **options).load()
            return torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=reader
            )


def _without_modules(content):
    """Models by their state dicts: the only one, or those among other things."""
    if _is_module(content):
        return dict(_entries(content))
    if not isinstance(content, Mapping):
        return content
    return {
        key: dict(_entries(value)) if _is_module(value) else value
        for key, value in content.items()
    }


def _is_module(value):
    parts = ("_parameters", "_buffers", "_modules")
    return isinstance(value, Unknown) and all(
        isinstance(vars(value).get(part), Mapping) for part in parts
    )


def _entries(module, before="") -> Iterator[tuple[str, Any]]:
    """Names and tensors, as `state_dict` of an `nn.Module` has them."""
    kept = vars(module)
    passing = kept.get("_non_persistent_buffers_set", ())
    buffers = {k: v for k, v in kept["_buffers"].items() if k not in passing}
    for name, tensor in (kept["_parameters"] | buffers).items():
        if tensor is not None:
            yield before + name, tensor
    for name, child in kept["_modules"].items():
        if _is_module(child):
            yield from _entries(child, f"{before}{name}.")


# Which of its tensors are the network's --------------------------------------------


def _state_dict(content, path) -> dict[str, Any]:
    """The tensors of the one network that a file holds."""
    found, beside = _tensors(content), []
    nested = {}
    if isinstance(content, Mapping):
        nested = {key: _tensors(content.get(key)) for key in NESTED_UNDER}
        nested = {key: tensors for key, tensors in nested.items() if tensors}
    if len(nested) > 1:
        raise CheckpointError(
            f"{path} holds several sets of weights ({', '.join(nested)}): save the one "
            f"that was measured, as in torch.save(content[{list(nested)[-1]!r}], ...)."
        )
    if nested:
        beside = [name for name, tensor in found.items() if tensor.numel() > 1]
        [(key, found)] = nested.items()
        content = content[key]
    if found:
        beside += [
            str(name)
            for name, value in content.items()
            if name not in found and _holds_tensors(value)
        ]
    if beside:
        raise CheckpointError(
            f"{path} holds tensors besides its state dict "
            f"({', '.join(beside[:MAX_NAMED])}): save model.state_dict() alone."
        )
    if not found:
        keys = [str(key) for key in content] if isinstance(content, Mapping) else []
        raise CheckpointError(
            f"{path} holds no state dict, only "
            + (", ".join(keys[:MAX_NAMED]) or type(content).__name__)
            + ": save model.state_dict()."
        )
    return found


def _tensors(value) -> dict[str, Any]:
    import torch

    if not isinstance(value, Mapping):
        return {}
    return {
        name: tensor
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }


def _holds_tensors(value):
    import torch

    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)


def _array(name, tensor, path):
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise CheckpointError(
            f"{path}: tensor {name} is sparse, quantized or complex: save it as "
            "dense float32."
        )
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {list(tensor.shape)} is larger than "
            "the file: save its contiguous() copy."
        )
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16.
    return tensor.detach().numpy()
