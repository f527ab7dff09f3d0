"""Pictures of whatever networks take and tell apart."""

import numpy as np
import pytest
from PIL import Image

from dfkd_jax.reporting import figures

pytest.importorskip("matplotlib")


def draw(path, *, shape, num_classes):
    random = np.random.default_rng(0)
    figures.sample_grid(
        path,
        random.normal(size=(2 * num_classes, *shape)),
        np.eye(num_classes)[np.arange(2 * num_classes) % num_classes],
        mean=np.zeros(shape[-1]),
        std=np.ones(shape[-1]),
        class_names=[str(k) for k in range(num_classes)],
    )
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize("shape", [(8, 8, 2), (1, 16, 3)])
def test_pseudo_samples_of_any_shape(tmp_path, shape):
    width, height = draw(tmp_path / "picture.png", shape=shape, num_classes=2)
    assert min(width, height) > 100


@pytest.mark.full
def test_of_many_classes_some_are_drawn(tmp_path):
    few, many = (
        draw(tmp_path / "picture.png", shape=(4, 4, 1), num_classes=number)
        for number in (figures.MAX_CLASSES, 10 * figures.MAX_CLASSES)
    )
    assert many == few
