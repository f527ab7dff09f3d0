"""Networks by name. Imports no JAX until one is created."""

import importlib
from typing import Any

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    # LeNet-5: 61,706 parameters.
    "lenet5": ("lenet:LeNet5", {}),
    # Its half as in ZSKD and this paper (35,820), and as in DAFL and DFAD (15,738).
    "lenet5_half": ("lenet:LeNet5", {"conv_features": (3, 8)}),
    "lenet5_half_dafl": (
        "lenet:LeNet5",
        {"conv_features": (3, 8), "dense_features": (60, 42)},
    ),
}
FEATURE_LAYERS = {
    "lenet5": ("dense_1", "dense_2", "output"),
    "lenet5_half": ("dense_1", "dense_2", "output"),
    "lenet5_half_dafl": ("dense_1", "dense_2", "output"),
}


def create(name: str, **overrides: Any) -> Any:
    """The linen module called `name`, with fields replaced by `overrides`."""
    path, fields = NETWORKS[name]
    module_name, class_name = path.split(":")
    module = importlib.import_module(f"dfkd_jax.models.{module_name}")
    return getattr(module, class_name)(**(fields | overrides))
