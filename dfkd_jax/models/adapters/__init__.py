"""Ways in: a live network of any framework as a `Model` and its variables.

A file each: `adapt(live network) -> (model, variables)`. The network is left as it is.
What it computes is then read from its graph (see `models.graph`), so that nothing else
of the package knows the framework. Frameworks are imported when asked for.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from dfkd_jax.errors import ConfigError, MissingPackageError
from dfkd_jax.models import graph, registry
from dfkd_jax.models.network import Linen, Model

# By the package of a class that theirs inherit.
FRAMEWORKS = {
    "flax.linen": "linen",
    "flax.nnx": "nnx",
    "equinox": "equinox",
    "keras": "keras",
    "torch": "torch",
}


class Live(Model):
    """A network that is there already, with weights: as a student, it starts as it is.

    Attributes:
        name: Of its class.
        variables: What it was found with.
    """

    name: str = ""
    variables: Any

    def init(self, key: Any, image_shape: tuple[int, ...]) -> Any:
        """The variables that it was found with, whatever the key."""
        del key, image_shape
        return self.variables


def framework_of(network: Any) -> str:
    """Which of `FRAMEWORKS` a live network or its class is of; empty for none."""
    kind = network if isinstance(network, type) else type(network)
    if isinstance(network, tuple) and network:  # Equinox: with its state.
        kind = type(network[0])
    for base in kind.__mro__:
        for package, name in FRAMEWORKS.items():
            if f"{base.__module__}.".startswith(f"{package}."):
                return name
    return ""


def create(
    name: str, *, image_shape: tuple[int, ...] | None = None, **options: Any
) -> Model:
    """A network by name, as a model.

    Args:
        name: See `registry.create`.
        image_shape: (height, width, channels), if known.
        options: Of `registry.create`.

    Raises:
        ConfigError: There is no such network.
    """
    network = registry.create(name, **options)
    if framework_of(network) == "keras" and not network.built and image_shape:
        network(np.zeros((1, *image_shape), np.float32))
    return adapt(network)[0]


def adapt(network: Any, variables: Any = None) -> tuple[Model, Any]:
    """A live network of any framework as a model, and its variables.

    Args:
        network: Of one of `FRAMEWORKS`; of Equinox with its state as a pair, too.
        variables: Of a linen module, which holds none; None where it has none yet.

    Raises:
        ConfigError: It is of no framework that is known, or a class.
        MissingPackageError: Its framework does not go together with JAX here.
    """
    name = framework_of(network)
    if isinstance(network, type):
        raise ConfigError(
            f"Expected a live network, got the class {network.__name__}: call it: "
            f"{network.__name__}(...)."
        )
    if not name:
        raise ConfigError(
            "Expected a network of linen, NNX, Equinox, Keras or PyTorch, got "
            f"{type(network).__name__}: give an instance of a class that inherits one "
            "of theirs, or a function to from_function."
        )
    if name == "linen":
        return Linen(network), variables
    module = importlib.import_module(f"{__name__}.{name}")
    return module.adapt(network)


def nested(tree: Any) -> dict[str, Any]:
    """Any tree's leaves in dictionaries by name."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return traverse_util.unflatten_dict({_name(path): leaf for path, leaf in paths})


def filled(tree: Any, *parts: Mapping[str, Any]) -> Any:
    """The tree, with leaves from what `nested` makes of it, in one part or several."""
    flat: dict[Any, Any] = {}
    for part in parts:
        flat |= traverse_util.flatten_dict(dict(part))
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_name(path)], tree)


def _name(path):
    return tuple((graph.path_of(path) or "weight").split("/"))


def groups(params: Any, others: Any) -> dict[str, Any]:
    """Variables of both kinds, as `models.network` has them."""
    found = {"params": nested(params), "batch_stats": nested(others)}
    return {name: tree for name, tree in found.items() if tree}


def check_weights(variables: Any, *, source: str) -> None:
    """Raises ConfigError where there are no weights, or there is something else."""
    leaves = jax.tree.leaves(variables)
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise ConfigError(
                f"{source}: its variables hold a {type(leaf).__name__}, expected "
                "arrays alone: leave out what is no weight."
            )
    if not any(jax.numpy.issubdtype(leaf.dtype, np.floating) for leaf in leaves):
        raise ConfigError(
            f"{source}: no weight of a floating dtype was found among its "
            f"{len(leaves)} variables: give the weights, not quantized."
        )


def needed(name: str, *, extra: str) -> Any:
    """A framework's module.

    Raises:
        MissingPackageError: It is not installed, or too old for what it stands on.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:  # The latter of versions that clash.
        raise MissingPackageError(
            f"{name} cannot be imported ({error}): pip install --upgrade "
            f'"dfkd_jax[{extra}]".'
        ) from error
