"""PyTorch, through torchax."""

import copy
from typing import Any

import jax.numpy as jnp

from dfkd_jax.models import registry
from dfkd_jax.models.adapters import needed
from dfkd_jax.models.adapters.function import Function


def adapt(module: Any) -> tuple[Function, Any]:
    """A live `torch.nn.Module` of images, channels first; a teacher alone.

    A copy in evaluation mode is traced.

    Raises:
        MissingPackageError: torchax is missing, or it does not fit torch: 2.13 needs at
            least 0.0.14.dev20260814.
    """
    needed("torch", extra="torch")
    torchax = needed("torchax", extra="torch")
    module = copy.deepcopy(module).eval()
    state, call = torchax.extract_jax(module)
    state = {name: jnp.asarray(value) for name, value in state.items()}
    buffers = {name for name, _ in module.named_buffers()}

    def function(variables, images):
        own = {**variables["params"], **variables.get("batch_stats", {})}
        return call(own, (images.transpose(0, 3, 1, 2),))

    variables = {
        "params": {name: state[name] for name in state.keys() - buffers},
        "batch_stats": {name: state[name] for name in state.keys() & buffers},
    }
    variables = {group: tree for group, tree in variables.items() if tree}
    model = Function(function, variables, source=f"PyTorch {type(module).__name__}")
    model.name = registry.name_of(module)
    return model, model.variables
