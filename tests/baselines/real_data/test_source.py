import described
import numpy as np
import pytest

from dfkd_jax.baselines.real_data import source
from dfkd_jax.config import DataConfig
from dfkd_jax.errors import ConfigError

CLASSES = np.repeat(np.arange(4), 30)[np.random.default_rng(0).permutation(120)]


def test_images_are_standardized_and_labels_one_hot():
    pixels = np.full((3, 2, 2, 1), 51, np.uint8)
    pixels[1] = 255
    images = source.RealImages(
        pixels,
        np.array([2, 0, 1]),
        described.description((2, 2, 1), num_classes=4, mean=0.1307, std=0.3081),
    )
    found, labels = images.gather(np.array([1, 0, 1]))
    assert len(images) == 3
    assert found.dtype == labels.dtype == np.float32
    values = (np.array([1.0, 0.2, 1.0]) - 0.1307) / 0.3081
    np.testing.assert_allclose(found, np.tile(values[:, None, None, None], (2, 2, 1)))
    np.testing.assert_array_equal(labels, np.eye(4)[[0, 2, 0]])


def test_each_class_is_drawn_as_often():
    chosen = source.draw(CLASSES, images_per_class=7, seed=3)
    np.testing.assert_array_equal(np.bincount(CLASSES[chosen]), [7] * 4)
    assert len(set(chosen)) == 28
    np.testing.assert_array_equal(
        chosen, source.draw(CLASSES, images_per_class=7, seed=3)
    )
    assert set(chosen) != set(source.draw(CLASSES, images_per_class=7, seed=4))


def test_too_few_images_of_a_class():
    with pytest.raises(ConfigError, match="images_per_class=31: class 0 has only 30"):
        source.draw(CLASSES, images_per_class=31, seed=0)


def test_validation_images_are_not_counted():
    data = DataConfig(dataset="mnist")
    assert source.count(data) == 55_000
    assert source.count(data, images_per_class=20) == 200
