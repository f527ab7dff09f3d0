"""Trains a ResNet-34 (21,282,122 parameters) on CIFAR-10.

    python -m dfkd_jax.main --config=configs/teachers/cifar10_resnet34.py

It is to reach 94 % of the test set; not measured yet. For a GPU: add
`--config.compute_dtype=bfloat16`. Leaves
runs/teacher_cifar10_resnet34/seed0/teacher.safetensors, where configs/cifar10_resnet.py
looks for it. Stop it at any moment: the same command goes on. How long it takes is
calculated in docs/cost.md.
"""

from ml_collections import ConfigDict

from dfkd_jax.config import default_teacher_config


def get_config() -> ConfigDict:
    """All but the last 5,000 training images; the usual SGD with momentum, cosine."""
    config = default_teacher_config()
    config.name = "teacher_cifar10_resnet34"
    config.network = "resnet34"
    config.num_epochs = 100
    config.batch_size = 128
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.warmup_steps = 350  # An epoch: at the full rate a deep net may not start.
    config.weight_decay = 5e-4
    config.momentum = 0.9
    config.max_shift = 4
    config.flip = 0.5
    config.cutout = 8
    config.data.dataset = "cifar10"
    return config
