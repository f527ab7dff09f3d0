"""What the settings of distillation ask for: changes of images, learnt features."""

import described
import jax
import numpy as np
import pytest

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import loop
from dfkd_jax.errors import ConfigError
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen

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


SHAPE = (28, 28, 1)


def make(name):
    return registry.create(name, num_classes=10, arguments={})


def check(layer, student):
    loop.check_networks(
        DistillationConfig(feature_layer=layer),
        teacher=described.network(
            make("lenet5"), Linen(make("lenet5")).shapes(SHAPE), SHAPE
        ),
        student=Linen(make(student)),
    )


@pytest.mark.parametrize("layer", ["", "dense_1", "dense_2", "output"])
def test_a_layer_that_both_have_alike(layer):
    check(layer, "lenet5_half")


def test_a_layer_of_another_width_is_refused():
    with pytest.raises(ConfigError, match=r"\(120,\).*\(60,\)"):
        check("dense_1", "lenet5_half_dafl")


def test_a_layer_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"dense_3.*no layer of the teacher"):
        check("dense_3", "lenet5_half")


def test_a_student_inherits_what_has_the_same_name_and_shape():
    teacher, student = (
        Linen(make(name)).init(jax.random.key(number), SHAPE)
        for number, name in enumerate(("lenet5", "lenet5_half"))
    )
    found = loop.inherit(student, teacher)["params"]
    for layer in ("dense_2", "output"):
        jax.tree.map(
            np.testing.assert_array_equal, found[layer], teacher["params"][layer]
        )
    for layer in ("conv_1", "conv_2", "dense_1"):
        np.testing.assert_array_equal(
            found[layer]["kernel"], student["params"][layer]["kernel"]
        )
