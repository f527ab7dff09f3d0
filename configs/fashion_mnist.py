"""Fashion-MNIST: LeNet-5 to its half, from the weights of the shipped teacher alone.

    python -m dfkd_jax.main --config=configs/fashion_mnist.py

The recipe of configs/mnist.py with the other teacher. Nothing was tuned for it, and no
accuracy is promised yet. `:smoke` shows the way in under a minute.

All variants of configs/mnist.py are here too. `:kd`, `:labels`, `:few_shot` and
`:metadata` read the real training images: NOT data-free.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

MNIST = runpy.run_path(str(pathlib.Path(__file__).with_name("mnist.py")))
VARIANTS = MNIST["VARIANTS"]


def get_config(variant: str = "default") -> ConfigDict:
    """The recipe, or a variant of it."""
    config = MNIST["get_config"](variant)
    config.name = config.name.replace("mnist", "fashion_mnist", 1)
    config.teacher.weights = "fashion_mnist_lenet5"
    config.data.dataset = "fashion_mnist"
    if variant == "zskd":
        config.synthesis.num_images = 48_000  # Published.
        config.distillation.num_steps = 375_000  # Published: 500 epochs.
    return config
