"""Networks by name. Imports no JAX until one is created."""

import dataclasses
import importlib
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


def create(
    name: str,
    *,
    num_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Any:
    """A linen module.

    Args:
        name: Of a network above, or "package.module:Class" of anybody's. The latter is
            imported, which runs its code: do not take it from an untrusted file.
        num_classes: Number of logits, if known; given to a class with such a field.
        arguments: Further fields.

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
    known = [field.name for field in dataclasses.fields(found) if field.init]
    known = [field for field in known if field not in ("parent", "name")]
    fields = fields | dict(arguments or {})
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise ConfigError(
            f"Network {name!r} takes no argument {unknown[0]!r}; it takes "
            f"{', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    if num_classes is not None and "num_classes" in known:
        fields.setdefault("num_classes", num_classes)
    try:
        return found(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Network {name!r}: {error}.") from error


def _import(path):
    """The linen class behind "package.module:Class"."""
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{path!r} cannot be imported ({error}): write package.module:Class of "
            "something that is installed or lies in the current folder."
        ) from error
    from flax import linen as nn

    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        classes = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise ConfigError(
            f"{path!r} is no linen module. {module_name} has: "
            f"{', '.join(classes) or 'none'}.{did_you_mean(class_name, classes)}"
        )
    return found
