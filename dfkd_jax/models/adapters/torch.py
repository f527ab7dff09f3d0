"""PyTorch, through torchax."""

import copy
from typing import Any

import jax.numpy as jnp

from dfkd_jax.models.adapters import Network, checked, needed
from dfkd_jax.models.adapters.function import from_function


def from_torch(module: Any) -> Network:
    """A network of a live `torch.nn.Module` of images, channels first.

    It is left as it is: a copy in evaluation mode is traced.

    Raises:
        MissingPackageError: torch or torchax is missing, or they do not fit together:
            torch 2.13 needs a torchax of at least 0.0.14.dev20260814.
    """
    torch = needed("torch", extra="torch")
    module = checked(module, torch.nn.Module, name="from_torch")
    torchax = needed("torchax", extra="--pre 'torchax>=0.0.14.dev20260814'")
    state, call = torchax.extract_jax(copy.deepcopy(module).eval())

    def function(variables, images):
        return call(variables, (images.transpose(0, 3, 1, 2),))

    return from_function(
        function,
        {name: jnp.asarray(value) for name, value in state.items()},
        source=f"PyTorch {type(module).__name__}",
    )
