"""Weights of networks that are not linen's, from their frameworks' own files.

PyTorch's state dict (`.pt`, `.pth`, `.safetensors`), Keras's `.keras` and `.h5`,
Equinox's `.eqx`, and for NNX a folder of Orbax checkpoints or safetensors by the names
of its parameters. Names are the network's own: nothing has to be mapped. Only arrays
are read, never code.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models import adapters
from dfkd_jax.models.network import Model
from dfkd_jax.runtime import checkpoints, weights
from dfkd_jax.teachers import pytorch


def load(
    network: Any, path: pathlib.Path, *, image_shape: Sequence[int]
) -> tuple[Model, Any]:
    """A network with the weights in `path`, as a model and its variables.

    Args:
        network: Live; of NNX, Equinox, Keras or PyTorch.
        path: A file or folder of its framework.
        image_shape: (height, width, channels), for what is built by a first call.

    Raises:
        CheckpointError: It is missing, damaged or of another network.
        MissingPackageError: The framework does not go together with JAX here.
    """
    framework = adapters.framework_of(network)
    if framework != "nnx" or path.is_file():
        weights.check_readable(path)
    network = {
        "torch": _torch,
        "keras": _keras,
        "equinox": _equinox,
        "nnx": lambda network, *_: network,
    }[framework](network, path, tuple(image_shape))
    model, variables = adapters.adapt(network)
    if framework == "nnx":
        variables = _nnx(variables, path)
    return model, variables


def _torch(network, path, image_shape):
    del image_shape
    torch = adapters.needed("torch", extra="torch")
    wanted = network.state_dict()
    found = pytorch.read_state_dict(path, names=list(wanted))
    _check_names(
        {name: tuple(array.shape) for name, array in found.items()},
        {
            name: tuple(tensor.shape)
            for name, tensor in wanted.items()
            if not name.endswith(pytorch.UNUSED)
        },
        path,
    )
    tensors = {
        name: torch.from_numpy(np.array(found[name]))
        for name in wanted
        if name in found
    }
    network.load_state_dict(tensors, strict=False)
    return network


def _keras(network, path, image_shape):
    if not network.built:
        network(np.zeros((1, *image_shape), np.float32))
    try:
        network.load_weights(str(path))
    except Exception as error:  # HDF5 and Keras raise nearly anything.
        raise _unfit(path, error, "save it with model.save or save_weights") from error
    return network


def _equinox(network, path, image_shape):
    del image_shape
    eqx = adapters.needed("equinox", extra="equinox")
    try:
        return eqx.tree_deserialise_leaves(str(path), network)
    except Exception as error:  # NumPy raises nearly anything on damaged files.
        remedy = "save it with equinox.tree_serialise_leaves, with its state if it has"
        raise _unfit(path, error, f"{remedy} one") from error


def _nnx(variables, path):
    if path.is_dir():
        held = checkpoints.load_tree(path)
        found: dict[str, Any] = traverse_util.flatten_dict(held, sep="/")
        found = {name.removesuffix("/value"): leaf for name, leaf in found.items()}
    else:
        tensors, _ = weights.read_tensors(path)
        found = {name.replace(".", "/"): leaf for name, leaf in tensors.items()}
    flat: dict[Any, Any] = traverse_util.flatten_dict(variables)
    wanted = {"/".join(place[1:]): place for place in flat}
    if not wanted.keys() <= found.keys():  # A state beside others: {"model": …}.
        tops = {name.partition("/")[0] for name in found}
        for top in sorted(tops):
            inner = {n.removeprefix(f"{top}/"): leaf for n, leaf in found.items()}
            found = inner if wanted.keys() <= inner.keys() else found
    _check_names(
        {n: np.shape(found[n]) for n in found if n in wanted},
        {name: tuple(flat[place].shape) for name, place in wanted.items()},
        path,
    )
    return traverse_util.unflatten_dict(
        {place: found[name] for name, place in wanted.items()}
    )


def _check_names(found, wanted, path):
    """Raises CheckpointError where names or shapes are not the network's."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    for name, shape in found.items():
        if name in wanted and shape != wanted[name]:
            problems.append(f"{name} is {shape} instead of {wanted[name]}")
        elif name not in wanted and not name.endswith(pytorch.UNUSED):
            problems.append(f"{name} is not part of it")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{path} is not of this network: {'; '.join(problems[:4])}{more}. Name the "
            "class it was trained with (config.teacher.module), with its arguments."
        )


def _unfit(path, error, remedy):
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(
        f"{path} does not fit the network, or is damaged ({reason}): {remedy}, and "
        "name the class it was trained with (config.teacher.module)."
    )
