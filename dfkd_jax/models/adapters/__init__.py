"""Ways in: a live network of any framework as a function of variables and images.

Each takes a network as its framework has it, in evaluation mode, and returns a
`Network`. What it computes is then read from its graph (see `models.graph`), so that
nothing else of the package knows the framework. Frameworks are imported when asked for.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax

from dfkd_jax.errors import ConfigError, MissingPackageError
from dfkd_jax.models import fast, graph


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A classifier in evaluation mode.

    Attributes:
        function: Takes `variables` and images `[batch, height, width, channels]`;
            returns logits `[batch, classes]`.
        variables: A tree of arrays: weights, and statistics that training moves.
        source: What it was made from, for messages.
    """

    function: Callable[[Any, Any], Any]
    variables: Any
    source: str = "function"

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.variables)
        numbers = sum(leaf.size for leaf in leaves)
        return f"Network({self.source}, {numbers:,} numbers in {len(leaves)} arrays)"

    def logits(self, images: Any) -> Any:
        """Logits of `[batch, height, width, channels]`, in the fastest form."""
        return fast.faster(self.function)(self.variables, images)

    def graph(self, image_shape: tuple[int, int, int]) -> graph.Graph:
        """The network, looked into; nothing is computed.

        Raises:
            ConfigError: It takes no such images, or does not return logits.
        """
        images = jax.ShapeDtypeStruct((graph.MANY, *image_shape), "float32")
        try:
            found = jax.eval_shape(self.function, self.variables, images)
        except (TypeError, ValueError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            sides = ", ".join(map(str, image_shape))
            raise ConfigError(
                f"{self.source} does not take images [batch, {sides}] ({reason}): give "
                "the (height, width, channels) that it was trained on."
            ) from error
        shape = getattr(found, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != graph.MANY:
            raise ConfigError(
                f"{self.source} returns {_described(found)}, expected logits "
                "[batch, classes]: wrap it in a function that returns them alone."
            )
        return graph.of(self.function, self.variables, images)


def _described(found):
    shape = getattr(found, "shape", None)
    if shape is None:
        return f"a {type(found).__name__}"
    return f"[{', '.join('batch' if n == graph.MANY else str(n) for n in shape)}]"


def needed(name: str, *, extra: str) -> Any:
    """A framework's module.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{name} cannot be imported ({error}): pip install {extra}."
        ) from error


def checked(value: Any, kind: type, *, name: str) -> Any:
    """Raises ConfigError where a network is not of its adapter's kind."""
    if not isinstance(value, kind):
        raise ConfigError(
            f"{name} takes a live {kind.__module__.split('.')[0]} "
            f"{kind.__qualname__}, got a {type(value).__name__}: make the network "
            "first and load its weights."
        )
    return value
