"""Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dfkd_jax.models import adapters, registry


class Nnx(adapters.Live):
    """An NNX module: parameters, and what else it keeps but for its keys."""

    def __init__(self, module: nnx.Module):
        """Takes a copy."""
        self.name = registry.name_of(module)
        module = nnx.clone(module)
        self._definitions = {}
        for train in (False, True):
            module.train() if train else module.eval()
            parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
            self._definitions[train], self._params, self._keys, self._others = parts
        self.variables = adapters.groups(
            nnx.to_pure_dict(self._params), nnx.to_pure_dict(self._others)
        )
        adapters.check_weights(
            self.variables, source=f"The NNX {type(module).__name__}"
        )

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """See `Model`."""
        params = _with(self._params, variables["params"])
        others = _with(self._others, variables.get("batch_stats", {}))
        keys = _drawn(self._keys, *key)
        own = nnx.merge(self._definitions[bool(key)], params, keys, others)
        logits = own(images)
        if not key:
            return logits
        *_, others = nnx.split(own, nnx.Param, nnx.RngState, ...)
        changed = adapters.groups({}, nnx.to_pure_dict(others))
        return logits, changed


def adapt(module: nnx.Module) -> tuple[Nnx, Any]:
    """A live NNX module, which is left as it is."""
    model = Nnx(module)
    return model, model.variables


def _with(state, variables):
    """The state with other leaves."""
    own = jax.tree.map(lambda leaf: leaf, state)
    pure = adapters.filled(nnx.to_pure_dict(state), variables)
    nnx.replace_by_pure_dict(own, pure)
    return own


def _drawn(keys, key=None):
    """The state of its random streams, drawn from a key if there is one."""
    leaves, tree = jax.tree.flatten(keys)
    if key is not None:
        leaves = [
            jax.random.fold_in(key, place)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros_like(leaf)
            for place, leaf in enumerate(leaves)
        ]
    return tree.unflatten(leaves)
