"""Which file makes the student of a kind of config.

A method is a module with

    check(config, teacher, student)  raises ConfigError before anything is written
    make_student(task)               returns a `MethodResult`; what was finished is kept

and, where it reads real data, `real_data(config)`: what it reads, in words.
"""

import importlib
from typing import Any

METHODS = {
    "distillation": "dfkd_jax.methods.soft_targets",
    "dafl": "dfkd_jax.baselines.dafl",
    "dfad": "dfkd_jax.baselines.dfad",
    "real_data": "dfkd_jax.baselines.real_data.images",
    "metadata": "dfkd_jax.baselines.real_data.metadata",
}


def find(kind: str) -> Any:
    """The module of a kind; no other one is imported."""
    return importlib.import_module(METHODS[kind])
