"""A teacher of two layers on 8×8 images, which compiles in a third of the time.

Its weights are random: what is tested with it is how a run goes, not how well.
"""

import pathlib
import runpy

import custom_nets
import jax
import numpy as np
from ml_collections import ConfigDict

from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import descriptions, weights

IMAGE_SHAPE = (8, 8, 1)
MEAN, STD = 0.3, 0.4
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def get_config(variant: str = "smoke") -> ConfigDict:
    """A variant of configs/mnist.py from the toy teacher; its weights are a flag."""
    config = runpy.run_path(str(CONFIGS / "mnist.py"))["get_config"](variant)
    config.name = f"toy_{variant}"
    config.teacher.module = config.student.module = "custom_nets:Toy"
    config.student.arguments = {"width": 6}
    config.data.dataset = ""
    for part in (config, config.get("targets", {}), config.get("distillation", {})):
        if part.get("feature_layer"):
            part.feature_layer = "hidden"
    return config


def write_teacher(path: pathlib.Path) -> pathlib.Path:
    """Weights with soft labels that differ."""
    variables = Linen(custom_nets.Toy()).init(jax.random.key(0), IMAGE_SHAPE)
    description = descriptions.Description(
        network="custom_nets:Toy",
        num_classes=10,
        image_shape=IMAGE_SHAPE,
        mean=(MEAN,),
        std=(STD,),
        dataset="",
    )
    weights.save(
        path, jax.tree.map(lambda x: 2 * np.asarray(x), variables), description
    )
    return path


def write_test_set(path: pathlib.Path, num_images: int = 50) -> pathlib.Path:
    """Noise with labels, in place of a data set."""
    images = np.random.default_rng(0).integers(
        0, 256, (num_images, *IMAGE_SHAPE), np.uint8
    )
    np.savez(path, images=images, labels=np.arange(num_images) % 10)
    return path
