"""Equinox."""

import inspect
from typing import Any

import jax

from dfkd_jax.models import adapters, registry


class Equinox(adapters.Live):
    """A module of one image, channels first; with its state, if it has any."""

    def __init__(self, module: Any, state: Any = None):
        """Takes the module as it was made, and the state that was made with it."""
        self.name = registry.name_of(module)
        self._eqx = eqx = adapters.needed("equinox", extra="equinox")
        self._params, _ = eqx.partition(module, eqx.is_inexact_array)
        self._rest = {
            train: eqx.partition(
                eqx.nn.inference_mode(module, value=not train), eqx.is_inexact_array
            )[1]
            for train in (False, True)
        }
        self._state, self._kept = eqx.partition(state, eqx.is_array)
        self._has_state = state is not None
        self._takes_key = "key" in inspect.signature(type(module).__call__).parameters
        is_norm = lambda leaf: isinstance(leaf, eqx.nn.BatchNorm)  # noqa: E731
        leaves = jax.tree.leaves(module, is_leaf=is_norm)
        names = [leaf.axis_name for leaf in leaves if is_norm(leaf)]
        self._axis = names[0] if names else None
        self.variables = adapters.groups(self._params, self._state)
        adapters.check_weights(
            self.variables, source=f"The Equinox {type(module).__name__}"
        )

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """See `Model`."""
        # Equinox compares types, which name the devices for some arrays and not others.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            logits, state = self._call(variables, images, *key)
        return (logits, adapters.groups({}, state)) if key else logits

    def _call(self, variables, images, *key):
        eqx = self._eqx
        params = adapters.filled(self._params, variables["params"])
        own = eqx.combine(params, self._rest[bool(key)])
        state = adapters.filled(self._state, variables.get("batch_stats", {}))
        state = eqx.combine(state, self._kept)

        def one(image, *keys):
            keys = {"key": keys[0]} if keys else {}
            if self._has_state:
                return own(image, state, **keys)
            return own(image, **keys), None

        arguments = [images.transpose(0, 3, 1, 2)]
        if key and self._takes_key:
            arguments.append(jax.random.split(key[0], len(images)))
        call = jax.vmap(one, out_axes=(0, None), axis_name=self._axis)
        logits, state = call(*arguments)
        return logits, eqx.filter(state, eqx.is_array)


def adapt(module: Any) -> tuple[Equinox, Any]:
    """A live Equinox module, or the pair that `make_with_state` returned."""
    model = Equinox(*(module if isinstance(module, tuple) else (module,)))
    return model, model.variables
