"""Any function of variables and images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dfkd_jax.errors import ConfigError
from dfkd_jax.models.adapters import Network


def from_function(
    function: Callable[[Any, Any], Any], variables: Any, *, source: str = "function"
) -> Network:
    """A network of `function(variables, images) -> logits`.

    Args:
        function: Pure; in evaluation mode.
        variables: A tree of arrays.
        source: What messages call it.

    Raises:
        ConfigError: There are no weights, or there is something else among them.
    """
    leaves = jax.tree.leaves(variables)
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise ConfigError(
                f"{source}: its variables hold a {type(leaf).__name__}, expected "
                "arrays alone: leave out what is no weight."
            )
        floating = jax.numpy.issubdtype(leaf.dtype, np.floating)
        if floating and not np.isfinite(leaf).all():
            raise ConfigError(
                f"{source}: a weight {tuple(leaf.shape)} holds NaN or infinity: load "
                "the weights of a network that was trained to the end."
            )
    if not any(jax.numpy.issubdtype(leaf.dtype, np.floating) for leaf in leaves):
        raise ConfigError(
            f"{source}: no weight of a floating dtype was found among its "
            f"{len(leaves)} variables: give the weights, not quantized."
        )
    return Network(function=function, variables=variables, source=source)
