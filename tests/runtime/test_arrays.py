"""Images and labels of anybody's: taken as they are, or refused with the way there."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.runtime import arrays

SHAPE = (4, 5, 3)
LABELS = np.arange(8) % 3


def random(high=1.0, low=0.0, shape=(8, *SHAPE)):
    images = np.random.default_rng(0).uniform(low, high, shape)
    images.flat[:2] = low, high
    return images


def labeled(images=None, labels=LABELS):
    images = random() if images is None else images
    return arrays.labeled(images, labels, image_shape=SHAPE, num_classes=3)


@pytest.mark.parametrize(
    "images",
    [
        random(),
        random().astype(np.float16),
        jnp.asarray(random(), jnp.bfloat16),
        random(255).astype(np.uint8),
        random().tolist(),
        random(17 / 255),  # Dark, but not black: floats say so.
        random(100).astype(np.uint8) / 255,
        random(128).astype(np.uint8),
        random(1.0005, -0.0005),  # Rounding.
    ],
    ids=[
        "float64",
        "float16",
        "bfloat16",
        "uint8",
        "lists",
        "dark",
        "dark bytes",
        "half",
        "rounded",
    ],
)
def test_images_are_taken_as_they_are(images):
    found, labels = labeled(images)
    np.testing.assert_array_equal(np.asarray(images, found.dtype), found)
    assert labels.dtype == np.int32


@pytest.mark.parametrize(
    "labels",
    [LABELS.astype(np.uint8), LABELS.astype(np.uint64), jnp.asarray(LABELS), [2] * 8],
)
def test_labels_of_any_integers(labels):
    np.testing.assert_array_equal(labeled(labels=labels)[1], np.asarray(labels))


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (random(255), "divide them by 255"),
        (random(16), "divide them by 16"),
        (random(100), "divide them by 100"),
        (random(65_535), "divide them by 65535"),
        (random(1e9), "clip or scale"),
        (random(1, -1), r"(images + 1) / 2"),
        (random(2.8, -0.4), "images * std + mean"),
        (random(127, -128), "shift and scale"),
        (random(1) * np.nan, "NaN or infinity"),
        (np.where(random() > 0.5, np.inf, 0), "NaN or infinity"),
        (random(1 / 255), "give images * 255 if they were divided by 255 twice"),
        (random(16 / 255), "give images * 15.9375 if .*divided by 255 and 16 is white"),
        (random(1.99).astype(np.uint8), "go up to 1, so .*give images / 1 then"),
        (random(15).astype(np.uint8), "give images / 15 then"),
        (random(16).astype(np.uint8), "give images / 16 then"),
        (random(63).astype(np.uint8), "give images / 63 then"),
        (random(97).astype(np.uint8), "go up to 97, so that white may be 100, not 255"),
        (random(100).astype(np.uint8), "images / 255 if they are that dark"),
        (random(127).astype(np.uint8), "give images / 127 then"),
        (np.zeros((8, *SHAPE)), "images are all black"),
        (np.zeros((8, *SHAPE), np.uint8), "images are all black"),
        (random(255).astype(int), "images are int64, .*astype(numpy.uint8)"),
        (random(255).astype(np.uint16), "images are uint16, .*value of white"),
        (random() > 0.5, "images are bool"),
        (random().astype(complex), "images are complex128"),
        (random().astype(str), "images are <U"),
        (random().astype(object), "Python objects"),
        ([[1], [1, 2]], "images are no array"),
        (None, "Python objects"),
        (np.ma.masked_less(random(), 0.5), "some images are masked"),
        (np.moveaxis(random(), -1, 1), "numpy.moveaxis(images, 1, -1)"),
        (random()[0], r"expected (n, 4, 5, 3): give images[None]"),
        (random(shape=(8, 4, 5)), r"images are (8, 4, 5), expected (n, 4, 5, 3)"),
        (random()[:0], r"images are (0, 4, 5, 3)"),
    ],
)
def test_other_images_are_refused_with_the_way_there(images, problem):
    images = np.asarray(None) if images is None else images
    with pytest.raises(ValueError, match=re.escape(problem).replace(r"\.\*", ".*")):
        labeled(images)


def test_gray_images_without_their_axis():
    with pytest.raises(ValueError, match=r"give images\[\.\.\., None\]"):
        arrays.pixels(random(shape=(8, 4, 4)), image_shape=(4, 4, 1))


def test_a_batch_may_be_dark_and_a_test_set_may_not():
    dark = np.full((arrays.MANY_IMAGES - 1, *SHAPE), 9, np.uint8)
    assert arrays.pixels(dark, image_shape=SHAPE) is dark
    assert not arrays.pixels(0 * dark, image_shape=SHAPE).any()
    with pytest.raises(ValueError, match="white may be 15"):
        arrays.pixels(np.concatenate([dark, dark]), image_shape=SHAPE)
    night = np.full((2 * arrays.MANY_IMAGES, *SHAPE), 90, np.uint8)
    assert arrays.pixels(night, image_shape=SHAPE) is night


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.where(LABELS == 1, -1, LABELS), r"3 labels are below 0 .*no label"),
        (LABELS + 2**32, "labels go up to 4294967298, expected 0 to 2"),
        (LABELS.astype(np.uint64) + 2**40, "labels go up to 1099511627778"),
        (np.ma.masked_equal(LABELS, 1), "some labels are masked"),
        (LABELS + 1, "labels go up to 3, expected 0 to 2: give labels - 1"),
        (LABELS + 2, "labels go up to 4, expected 0 to 2$"),
        (LABELS.astype(float), r"float64 \(8,\), expected integers .*astype\(int\)"),
        (LABELS * np.nan, "float64"),
        (LABELS == 1, "bool"),
        (np.eye(3)[LABELS], r"labels\.argmax\(-1\)"),
        (LABELS[:, None], r"give labels\[:, 0\]"),
        (LABELS[:5], r"int64 \(5,\), expected integers \(8,\)"),
        (np.int64(3), r"int64 \(\)"),
        ([], r"float64 \(0,\)"),
        (LABELS.astype(object), "Python objects"),
        (LABELS.astype(str), "<U"),
    ],
)
def test_other_labels_are_refused_with_the_way_there(labels, problem):
    with pytest.raises(ValueError, match=problem):
        labeled(labels=labels)
