"""A small real task that comes with scikit-learn: 1,797 images of digits, 8×8."""

import pathlib
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from dfkd_jax import api
from dfkd_jax.models.network import Linen

IMAGE_SHAPE = (8, 8, 1)
MEAN, STD = 0.3, 0.38
NUM_TRAIN = 1_400


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images from 0 to 1 and labels, of `train` and `test`."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order].reshape(-1, *IMAGE_SHAPE) / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    return {
        "train": (images[:NUM_TRAIN], labels[:NUM_TRAIN]),
        "test": (images[NUM_TRAIN:], labels[NUM_TRAIN:]),
    }


def train(module: Any, *, num_steps: int = 400) -> Any:
    """A teacher as a user trains it, who knows nothing of the package's training."""
    images, labels = load()["train"]
    images, model = (images - MEAN) / STD, Linen(module)
    variables = model.init(jax.random.key(0), IMAGE_SHAPE)
    params = variables.pop("params")
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, opt_state, key, images, labels):
        def loss(params):
            logits, new_state = model.train_logits(
                {"params": params} | state, images, key
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new_state

        (_, state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), state, opt_state

    opt_state = optimizer.init(params)
    random = np.random.default_rng(0)
    for count in range(num_steps):
        chosen = random.integers(0, len(images), 64)
        params, variables, opt_state = step(
            params,
            variables,
            opt_state,
            jax.random.key(count),
            images[chosen],
            labels[chosen],
        )
    return api.from_linen(
        module,
        {"params": params} | variables,
        image_shape=IMAGE_SHAPE,
        mean=MEAN,
        std=STD,
    )


def save_test_set(path: pathlib.Path) -> pathlib.Path:
    """The test part as `--config.data.file` takes it."""
    images, labels = load()["test"]
    np.savez(path, images=images, labels=labels)
    return path


CONFIG = """
from dfkd_jax.config import default_config


def get_config():
    config = default_config()
    config.name = "digits"
    config.teacher.module = "custom_nets:{module}"
    config.teacher.arguments = {{"width": 16}}
    config.teacher.weights = "{weights}"
    config.student.module = "custom_nets:{module}"
    config.student.arguments = {{"width": 7}}
    config.targets.feature_layer = "{layer}"
    config.synthesis.num_images = 1_600
    config.distillation.num_steps = 3_000
    config.data.dataset = ""
    config.data.file = "{test_set}"
    return config
"""
