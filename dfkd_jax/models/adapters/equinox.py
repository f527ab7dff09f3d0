"""Equinox."""

from typing import Any

import jax

from dfkd_jax.models.adapters import Network, checked, needed
from dfkd_jax.models.adapters.function import from_function


def from_equinox(module: Any, state: Any = None) -> Network:
    """A network of a live Equinox module of one image, channels first.

    Args:
        module: As it was trained; called in inference mode, without a key.
        state: What `equinox.nn.make_with_state` returned with it, trained too; None if
            there is none.
    """
    eqx = needed("equinox", extra="equinox")
    module = checked(module, eqx.Module, name="from_equinox")
    given = eqx.nn.inference_mode((module, state))
    variables, rest = eqx.partition(given, eqx.is_inexact_array)

    def function(variables, images):
        own, kept = eqx.combine(variables, rest)
        images = images.transpose(0, 3, 1, 2)
        if kept is None:
            return jax.vmap(own)(images)
        logits, _ = jax.vmap(
            own, in_axes=(0, None), out_axes=(0, None), axis_name="batch"
        )(images, kept)
        return logits

    return from_function(function, variables, source=f"Equinox {type(module).__name__}")
