"""Teacher training goes on where it was, BatchNorm and dropout included."""

import shutil

import described
import jax
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.config import TeacherTrainingConfig
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import precision, writers
from dfkd_jax.teachers import train

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (96, 6, 6, 3), np.uint8)
LABELS = RANDOM.integers(0, 4, 96)


class Net(nn.Module):
    """Everything that has a state or a key of its own."""

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        hidden = nn.Conv(4, (3, 3))(images)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
        hidden = nn.Dropout(0.3, deterministic=not train)(hidden.mean((1, 2)))
        return nn.Dense(4)(hidden)


def trained(workdir, **changes):
    settings = {
        "name": "net",
        "num_epochs": 3,
        "batch_size": 16,
        "warmup_steps": 2,
        "max_shift": 1,
        "flip": 0.5,
        "cutout": 2,
        "log_every": 6,
        "checkpoint_every": 6,
    }
    config = TeacherTrainingConfig(**settings | changes)
    return train.train(
        config,
        teacher=precision.compute_in(Linen(Net()), config.compute_dtype),
        description=described.description(IMAGES.shape[1:], num_classes=4),
        images=IMAGES,
        labels=LABELS,
        workdir=workdir,
        stopwatch=writers.Stopwatch(workdir / "seconds.json"),
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_equals_uninterrupted(tmp_path, optimizer):
    expected = trained(tmp_path, optimizer=optimizer)
    assert set(expected) == {"params", "batch_stats"}
    shutil.rmtree(tmp_path / "teacher" / "18")
    (tmp_path / "metrics.jsonl").unlink()
    again = trained(tmp_path, optimizer=optimizer)
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    logged = writers.read_scalars(tmp_path / "metrics.jsonl", stage="teacher training")
    assert list(logged) == [18]  # It went on from step 12.


def test_settings_reach_the_training(tmp_path):
    """Each of them changes the teacher."""
    changes = [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "weight_decay": 0.5},
        {"flip": 0.0},
        {"cutout": 0},
        {"max_shift": 0},
        {"compute_dtype": "bfloat16"},
    ]
    found = []
    for place, change in enumerate(changes):
        workdir = tmp_path / str(place)
        workdir.mkdir()
        found.append(trained(workdir, num_epochs=1, **change))
        for leaf in jax.tree.leaves(found[-1]):
            assert leaf.dtype == np.float32
    kernels = [np.asarray(each["params"]["Dense_0"]["kernel"]) for each in found]
    for place, kernel in enumerate(kernels):
        for other in kernels[:place]:
            assert np.abs(kernel - other).max() > 1e-7
