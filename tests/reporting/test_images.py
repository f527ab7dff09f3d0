import base64
import io

import numpy as np
import pytest
from PIL import Image

from dfkd_jax.reporting import images


def decode(uri):
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_pixels_undo_the_standardization_of_each_channel():
    standardized = np.array([[[0.0, 1.0, -9.0]]])
    found = images.to_pixels(standardized, mean=(0.5, 0.2, 0.5), std=(0.1, 0.3, 0.1))
    np.testing.assert_allclose(found, [[[0.5, 0.5, 0.0]]])


@pytest.mark.parametrize(
    ("channels", "shape"), [(1, (4, 5)), (3, (4, 5, 3)), (4, (4, 5, 4)), (2, (4, 5))]
)
def test_png_holds_the_pixels(channels, shape):
    pixels = np.random.default_rng(0).uniform(size=(4, 5, channels))
    found = decode(images.data_uri(pixels))
    assert found.shape == shape
    expected = pixels.mean(-1) if channels == 2 else pixels.squeeze()
    np.testing.assert_allclose(found / 255, expected, atol=0.5 / 255 + 1e-9)


def test_large_images_are_averaged_over_blocks():
    pixels = np.kron(np.array([[0.0, 1.0], [0.25, 0.5]]), np.ones((40, 40)))[..., None]
    found = images.shrink(pixels, largest=2)
    np.testing.assert_allclose(found[..., 0], [[0, 1], [0.25, 0.5]])
    assert decode(images.thumbnail_uri(pixels)).shape == (40, 40)


@pytest.mark.parametrize("shape", [(28, 28, 1), (48, 3, 1)])
def test_small_images_stay_as_they_are(shape):
    pixels = np.random.default_rng(0).uniform(size=shape)
    np.testing.assert_array_equal(images.shrink(pixels, largest=48), pixels)


@pytest.mark.parametrize("shape", [(49, 49), (224, 224), (500, 1), (97, 130)])
def test_no_side_is_too_long(shape):
    found = images.shrink(np.full((*shape, 3), 0.3), largest=48)
    assert max(found.shape[:2]) <= 48
    np.testing.assert_allclose(found, 0.3)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 99])
def test_spread_is_from_the_first_to_the_last(count):
    found = images.spread(range(10), count)
    assert len(found) == len(set(found)) == min(count, 10)
    assert found == sorted(found)
    if count > 1:
        assert (found[0], found[-1]) == (0, 9)


def test_spread_of_nothing():
    assert images.spread([], 5) == []
