"""Procedural images: what they are made of, and that each is its key's alone."""

import jax
import numpy as np
import pytest

from dfkd_jax.sources import shapes


def draw(number, image_shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), number)
    return np.asarray(jax.jit(lambda k: shapes.draw(k, image_shape=image_shape))(keys))


@pytest.fixture(scope="module")
def gray():
    return draw(400, (16, 16, 1))


@pytest.fixture(scope="module")
def filled(gray):
    """Those in which there is something: shapes may lie outside, or be black."""
    filled = gray[gray.std((1, 2, 3)) > 0.01]
    assert len(filled) > 360
    return filled


@pytest.mark.parametrize("shape", [(16, 24, 3), (5, 4, 2), (1, 1, 1)])
def test_pixels_of_any_size_and_color(shape):
    images = draw(20, shape)
    assert images.shape == (20, *shape)
    assert np.isfinite(images).all()
    assert images.min() >= 0 and images.max() <= 1


def test_an_image_is_its_keys_alone(gray):
    keys = jax.random.split(jax.random.key(0), 400)[7:9]
    np.testing.assert_allclose(
        shapes.draw(keys, image_shape=(16, 16, 1)), gray[7:9], atol=1e-5
    )


def test_half_are_symmetric_and_most_grounds_black(filled):
    mirrored = np.abs(filled - filled[:, :, ::-1]).max((1, 2, 3)) < 1e-4
    assert 0.4 < mirrored.mean() < 0.65
    upright = np.abs(filled - filled[:, ::-1]).max((1, 2, 3)) < 1e-4
    assert 0.02 < upright.mean() < 0.25
    corner = (filled[:, 0, 0, 0] < 0.01).mean()
    assert 0.3 < corner < 0.8  # Shapes lie on some of the black ones.


def test_no_two_are_alike(filled):
    flat = filled.reshape(len(filled), -1)
    distance = np.linalg.norm(flat[:, None] - flat, axis=-1)
    assert (distance + np.eye(len(flat)) > 0.01).all()


def test_colors_differ_where_there_are_channels():
    images = draw(100, (12, 12, 3))
    spread = images.std(-1).max((1, 2))
    assert (spread > 0.05).mean() > 0.6
