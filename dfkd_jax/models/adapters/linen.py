"""Flax linen."""

from typing import Any

from flax import linen as nn

from dfkd_jax.models.adapters import Network, checked
from dfkd_jax.models.adapters.function import from_function
from dfkd_jax.models.network import Linen


def from_linen(module: nn.Module, variables: Any) -> Network:
    """A network of a linen module and its collections, `{"params": …}`."""
    module = checked(module, nn.Module, name="from_linen")
    return from_function(
        Linen(module), variables, source=f"linen {type(module).__name__}"
    )
