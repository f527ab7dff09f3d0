"""Flax NNX."""

import jax
from flax import nnx

from dfkd_jax.models.adapters import Network, checked
from dfkd_jax.models.adapters.function import from_function


def from_nnx(module: nnx.Module) -> Network:
    """A network of a live NNX module, which is left as it is."""
    source = f"NNX {type(checked(module, nnx.Module, name='from_nnx')).__name__}"
    module = nnx.clone(module)
    module.eval()
    # Keys of dropout say nothing in evaluation mode.
    definition, state, rest = nnx.split(module, nnx.Not(nnx.RngState), ...)

    def function(variables, images):
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, variables)
        return nnx.merge(definition, own, rest)(images)

    return from_function(function, nnx.to_pure_dict(state), source=source)
