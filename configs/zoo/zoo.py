"""A student of each teacher of the zoo, by the one recipe: the defaults.

    python -m dfkd_jax.main --config=configs/zoo/zoo.py:smoothing

`teachers.py` says how each teacher was trained; `train.py` trains it. A variant names
teacher, student and test set, and no number of the method.
"""

import json
import pathlib
import runpy

from ml_collections import ConfigDict

from dfkd_jax.config import default_config, unknown_variant
from dfkd_jax.models import registry

HERE = pathlib.Path(__file__).resolve().parent
TEACHERS = runpy.run_path(str(HERE / "teachers.py"))["TEACHERS"]
WEIGHTS = HERE.parents[1] / "tests/zoo"
SHIPPED = {"plain": 0.9938, "fashion": 0.906, "alexnet": 0.8795}
ACCURACIES = json.loads((WEIGHTS / "accuracies.json").read_text()) | SHIPPED


def get_config(variant: str = "plain") -> ConfigDict:
    """The recipe for a teacher of the zoo."""
    if variant not in TEACHERS:
        raise unknown_variant(variant, tuple(TEACHERS))
    teacher = TEACHERS[variant]
    config = default_config()
    config.name = f"zoo_{variant}"
    config.data.teacher_accuracy = ACCURACIES[variant]
    config.teacher.weights = teacher.weights or str(WEIGHTS / f"{variant}.safetensors")
    for network in (config.teacher, config.student):
        if teacher.network in registry.NETWORKS:
            network.network = teacher.network
        else:
            network.module = f"configs.zoo.networks:{teacher.network}"
    config.student.arguments = dict(teacher.student)
    config.data.dataset = teacher.dataset if teacher.is_whole else ""
    if not teacher.is_whole:
        config.data.file = str(WEIGHTS / f"{variant}_test.npz")
    return config
