"""Trains the LeNet-5 teacher of MNIST that comes with the package.

    python -m dfkd_jax.main --config=configs/teachers/mnist.py

About a minute on two cores.
"""

from ml_collections import ConfigDict

from dfkd_jax.config import default_teacher_config


def get_config() -> ConfigDict:
    """All but the last 5,000 training images, moved by up to a pixel; AdamW, cosine."""
    config = default_teacher_config()
    config.name = "teacher_mnist"
    config.network = "lenet5"
    config.num_epochs = 12
    config.batch_size = 128
    config.learning_rate = 2e-3
    config.warmup_steps = 200
    config.weight_decay = 1e-4
    config.max_shift = 1
    config.data.dataset = "mnist"
    return config
