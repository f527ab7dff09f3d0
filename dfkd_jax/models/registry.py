"""Networks by name, of any framework. Imports no JAX until one is created."""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from dfkd_jax.errors import ConfigError, did_you_mean

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    # LeNet-5: 61,706 parameters.
    "lenet5": ("lenet:LeNet5", {}),
    # Its half as in ZSKD and this paper (35,820), and as in DAFL and DFAD (15,738).
    "lenet5_half": ("lenet:LeNet5", {"conv_features": (3, 8)}),
    "lenet5_half_dafl": (
        "lenet:LeNet5",
        {"conv_features": (3, 8), "dense_features": (60, 42)},
    ),
    # ZSKD's AlexNet (1,659,178) and its half (417,434).
    "alexnet": ("alexnet:AlexNet", {}),
    "alexnet_half": (
        "alexnet:AlexNet",
        {"conv_features": (24, 64, 96, 96, 64), "dense_features": (256, 128)},
    ),
    # ZSDB3KD's AlexNet (23,290,954) and its half (5,840,426).
    "alexnet_wang": ("alexnet:AlexNetWang", {}),
    "alexnet_wang_half": (
        "alexnet:AlexNetWang",
        {"conv_features": (32, 96, 192, 128, 128), "dense_features": (2048, 2048)},
    ),
    # ResNets for CIFAR: 11,173,962 and 21,282,122.
    "resnet18": ("resnet:ResNet", {"num_blocks": (2, 2, 2, 2)}),
    "resnet34": ("resnet:ResNet", {"num_blocks": (3, 4, 6, 3)}),
    # A quarter as wide, for a CPU; He et al. have no such ones. 701,466 and 308,826.
    "resnet18_narrow": (
        "resnet:ResNet",
        {"num_blocks": (2, 2, 2, 2), "stage_features": (16, 32, 64, 128)},
    ),
    "resnet10_narrow": (
        "resnet:ResNet",
        {"num_blocks": (1, 1, 1, 1), "stage_features": (16, 32, 64, 128)},
    ),
}

# What their tensors do not show, and a network of the same shapes may do otherwise.
_ABOUT = {
    "lenet5": "ReLU and max pooling, padding 2 and 0",
    "alexnet_wang": "ReLU, local response normalization, max pooling, BatchNorm",
    "alexnet": "ReLU, local response normalization, max pooling, BatchNorm",
    "resnet": "ReLU, BatchNorm with epsilon 1e-5, global average pooling",
}
# Whose functions and dtypes may be fields of a network, and are saved by name.
_NAMING_MODULES = ("jax.nn", "jax.numpy", "flax.linen", "jax.lax", "numpy")


def about(name: str) -> str:
    """What a network of this package does between its layers; empty for others."""
    return next((text for key, text in _ABOUT.items() if name.startswith(key)), "")


def class_of(name: str) -> str:
    """The class behind a name, without its module, which may have moved."""
    return NETWORKS.get(name, (name,))[0].rpartition(":")[2]


def name_of(module: Any) -> str:
    """The class of a network, as `create` takes it; of a function, its own name."""
    kind = module if hasattr(module, "__qualname__") else type(module)
    return f"{kind.__module__}:{kind.__qualname__}"


def arguments_of(module: Any) -> dict[str, Any]:
    """The fields of a linen module that a file can hold, as JSON values.

    Functions and dtypes of JAX are there by name ("jax.nn.gelu"), which `create` turns
    back. Others (functions of one's own, modules) are left out: that the network is
    still the same is found out by its fingerprint.
    """
    fields = {
        field.name: _plain(getattr(module, field.name))
        for field in dataclasses.fields(module)
        if field.init and field.name not in ("parent", "name", "num_classes")
    }
    return {name: value for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    """A JSON value, or None for what has none."""
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        return None if None in plain.values() else plain
    if isinstance(value, tuple | list):
        items = tuple(map(_plain, value))
        return None if None in items else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name in _NAMING_MODULES:
        for key, known in vars(importlib.import_module(name)).items():
            if known is value and not key.startswith("_"):
                return f"{name}.{key}"
    if type(value).__module__ == "numpy.dtypes" or hasattr(value, "newbyteorder"):
        return str(value)
    is_number = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if is_number else None


def _named(value: Any, kind: Any) -> Any:
    """What `_plain` gave a name to; other values as they are."""
    module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    if module not in _NAMING_MODULES or kind in (str, "str"):
        return value
    return getattr(importlib.import_module(module), name, value)


def create(
    name: str,
    *,
    num_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    """A live network, of the framework that its class is of.

    Args:
        name: Of a network above, or "package.module:Class" of anybody's, or of a
            function that makes one. The latter are imported, which runs their code: do
            not take them from an untrusted file.
        num_classes: Number of logits, if known; given to a class that takes it.
        arguments: Further fields, or arguments.
        seed: Of the weights that NNX, Equinox and Keras start with.

    Raises:
        ConfigError: There is no such network, or it does not take the arguments.
    """
    path, fields = name, {}
    if ":" not in name:
        if name not in NETWORKS:
            raise ConfigError(
                f"Network {name!r} is not known: there are {', '.join(NETWORKS)}, or "
                f'"package.module:Class" of your own.{did_you_mean(name, NETWORKS)}'
            )
        path, fields = NETWORKS[name]
        path = f"dfkd_jax.models.{path}"
    found = _import(path)
    kinds, takes_any = _parameters(found)
    fields = fields | dict(arguments or {})
    known = [field for field in kinds if field not in ("rngs", "key")]
    unknown = [field for field in fields if field not in known]
    if unknown and not takes_any:
        raise ConfigError(
            f"Network {name!r} takes no argument {unknown[0]!r}; it takes "
            f"{', '.join(known) or 'none'}.{did_you_mean(unknown[0], known)}"
        )
    if num_classes is not None and "num_classes" in known:
        fields.setdefault("num_classes", num_classes)
    fields = {key: _named(value, kinds.get(key)) for key, value in fields.items()}
    try:
        return _make(found, fields, kinds, seed)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"Network {name!r} cannot be made of the arguments {fields} ({error}): set "
            "its fields in arguments, or give the module itself in Python."
        ) from error


def _parameters(found):
    """Kinds of what a class or function takes by name, and whether it takes more."""
    if dataclasses.is_dataclass(found) and _framework(found) == "linen":
        fields = [field for field in dataclasses.fields(found) if field.init]
        kinds = {field.name: field.type for field in fields}
        return {k: v for k, v in kinds.items() if k not in ("parent", "name")}, False
    # A class's own signature may be that of its metaclass, which takes anything.
    is_class = isinstance(found, type)
    spec = inspect.getfullargspec(found.__init__ if is_class else found)
    named = [*spec.args[is_class:], *spec.kwonlyargs]
    return {name: spec.annotations.get(name) for name in named}, bool(spec.varkw)


def _make(found, fields, kinds, seed):
    """Calls the class or function, with what its framework wants for random numbers."""
    framework = _framework(found)
    if "rngs" in kinds:
        from flax import nnx

        fields = fields | {"rngs": nnx.Rngs(seed)}
    if "key" in kinds:
        import jax

        fields = fields | {"key": jax.random.key(seed)}
    if framework == "keras" or "keras" in sys.modules:
        importlib.import_module("keras").utils.set_random_seed(seed)
    if framework == "equinox":
        eqx = importlib.import_module("equinox")
        module, state = eqx.nn.make_with_state(found)(**fields)
        leaves = importlib.import_module("jax").tree.leaves(state)
        return (module, state) if leaves else module
    return found(**fields)


def _framework(found):
    from dfkd_jax.models import adapters

    return adapters.framework_of(found)


def _import(path):
    """The class or function behind "package.module:Class"."""
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # Anybody's code may raise anything.
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path!r} cannot be imported ({reason}): "
            "write package.module:Class of something that is installed or lies in the "
            "current folder."
        ) from error
    found = getattr(module, class_name, None)
    if inspect.isfunction(found) or (isinstance(found, type) and _framework(found)):
        return found
    classes = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and _framework(value)
    ]
    raise ConfigError(
        f"{path!r} is no network of linen, NNX, Equinox, Keras or PyTorch. "
        f"{module_name} has: {', '.join(classes) or 'none'}."
        + did_you_mean(class_name, classes)
    )
