"""Any function of variables and images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dfkd_jax.errors import ConfigError
from dfkd_jax.models import adapters, registry


class Function(adapters.Live):
    """`function(variables, images) -> logits`, which cannot be trained."""

    def __init__(
        self, function: Callable[[Any, Any], Any], variables: Any, *, source: str
    ):
        """Takes a pure function in evaluation mode, with a tree of arrays.

        Raises:
            ConfigError: There are no weights, or there is something else among them.
        """
        adapters.check_weights(variables, source=source)
        self._function, self._tree, self._source = function, variables, source
        self.name = registry.name_of(function)
        self._is_grouped = isinstance(variables, Mapping) and "params" in variables
        if self._is_grouped:
            self.variables = adapters.nested(variables)
        else:
            self.variables = adapters.groups(
                jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, variables),
                jax.tree.map(lambda leaf: None if _is_float(leaf) else leaf, variables),
            )

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """Logits."""
        if key:
            raise ConfigError(
                f"{self._source} is a teacher alone: for a student give a network of "
                "linen, NNX, Equinox or Keras."
            )
        parts = [variables] if self._is_grouped else variables.values()
        return self._function(adapters.filled(self._tree, *parts), images)


def _is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)
