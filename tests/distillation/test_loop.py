"""Which changes of an image the settings of distillation ask for."""

import jax
import numpy as np

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import loop

IMAGE = jax.random.normal(jax.random.key(0), (6, 5, 3))
KEY = jax.random.key(1)
NOTHING = {"mixup": 0.0, "cutmix": 0.0, "shift": 0.0, "affine": 0.0, "elastic": 0.0}


def augmented(key=KEY, **changes):
    augment = loop.make_augment(DistillationConfig(**NOTHING | changes))
    return np.asarray(augment(key, IMAGE, IMAGE))


def test_nothing_asked_for_changes_nothing():
    np.testing.assert_array_equal(augmented(), IMAGE)


def test_images_are_moved_by_whole_pixels_and_mirrored():
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode="edge")
    crops = [padded[y : y + 6, x : x + 5] for y in range(5) for x in range(5)]
    keys = jax.random.split(KEY, 20)
    for key in keys:
        moved = augmented(key, max_shift=2)
        assert any(np.array_equal(moved, crop) for crop in crops)
        # Each change has a key of its own.
        np.testing.assert_array_equal(
            augmented(key, max_shift=2, flip=1.0), moved[:, ::-1]
        )
    assert len({augmented(key, max_shift=2).tobytes() for key in keys}) > 5


def test_moving_and_mirroring_leave_the_other_changes_as_they_are():
    noise = augmented(noise=0.5) - IMAGE
    np.testing.assert_allclose(
        augmented(noise=0.5, flip=1.0) - IMAGE[:, ::-1], noise, atol=1e-6
    )
