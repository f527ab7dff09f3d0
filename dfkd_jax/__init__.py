"""Data-free knowledge distillation in JAX: from weights to student.

The names below are of `dfkd_jax.api`, which is imported, and JAX with it, when one of
them is asked for. The commands (`python -m dfkd_jax.evaluate`) are modules of this
package that nothing imports.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "TrainedNetwork",
    "configure",
    "distill",
    "estimate",
    "evaluate",
    "export",
    "from_equinox",
    "from_function",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_torch",
    "inspect",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dfkd_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
