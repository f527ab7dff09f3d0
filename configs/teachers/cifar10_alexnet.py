"""Trains the AlexNet (ZSKD's, 1,659,178 parameters) of CIFAR-10 that is shipped.

    python -m dfkd_jax.main --config=configs/teachers/cifar10_alexnet.py

One to two hours on two cores; 87.95 % of the test set. Stop it at any moment: the same
command goes on. On a GPU add `--config.compute_dtype=bfloat16`.
"""

from ml_collections import ConfigDict

from dfkd_jax.config import default_teacher_config


def get_config() -> ConfigDict:
    """All but the last 5,000 training images, cropped and mirrored; AdamW, cosine."""
    config = default_teacher_config()
    config.name = "teacher_cifar10_alexnet"
    config.network = "alexnet"
    config.num_epochs = 20
    config.batch_size = 128
    config.optimizer = "adamw"
    config.learning_rate = 2e-3
    config.warmup_steps = 500
    config.weight_decay = 2e-2
    config.max_shift = 4
    config.flip = 0.5
    config.cutout = 0  # With two layers of dropout there is little left to overfit.
    config.data.dataset = "cifar10"
    return config
