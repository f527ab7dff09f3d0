"""Statistics are of thousands of draws: tolerances are above four standard errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.distillation import augment

KEYS = jax.random.split(jax.random.key(0), 2_000)
SIZE = 13
# The row and the column of each pixel: a warp of it shows where pixels come from.
RAMPS = np.moveaxis(np.indices((SIZE, SIZE), np.float32), 0, -1)
IMAGE, OTHER = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 2))
ZEROS = np.zeros((SIZE, SIZE, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def draws(function, strengths, *images):
    """`function` of the images once for every key."""
    return jax.vmap(lambda key: function(key, *images, **dict(strengths)))(KEYS)


def mixes(image, other, **strengths):
    images = jnp.float32(image), jnp.float32(other)
    return np.asarray(draws(augment.mix, tuple(strengths.items()), *images))


def mirrors(image, **strengths):
    return np.asarray(
        draws(augment.mirror, tuple(strengths.items()), jnp.float32(image))
    )


def fills(image, **strengths):
    return np.asarray(draws(augment.fill, tuple(strengths.items()), jnp.float32(image)))


def warps(image, **strengths):
    strengths = {"shift": 0.0, "affine": 0.0, "elastic": 0.0} | strengths
    image = jnp.float32(image)
    return np.asarray(draws(augment.warp, tuple(strengths.items()), image))


def jitters(image, **strengths):
    strengths = {"contrast": 0.0, "brightness": 0.0, "noise": 0.0} | strengths
    image = jnp.float32(image)
    return np.asarray(draws(augment.jitter, tuple(strengths.items()), image))


@pytest.mark.parametrize(
    "results",
    [
        lambda: mixes(IMAGE, OTHER, mixup=0.0, cutmix=0.0),
        lambda: mirrors(IMAGE, probability=0.0),
        lambda: fills(IMAGE, probability=0.0),
        lambda: warps(IMAGE),
        lambda: jitters(IMAGE),
    ],
    ids=["mix", "mirror", "fill", "warp", "jitter"],
)
def test_nothing_asked_for_is_the_identity(results):
    found = results()
    np.testing.assert_allclose(found, np.broadcast_to(IMAGE, found.shape), atol=1e-6)


def test_mixup_is_one_weight_between_the_two():
    weights = (mixes(IMAGE, OTHER, mixup=1.0, cutmix=0.0) - IMAGE) / (OTHER - IMAGE)
    weight = np.median(weights, axis=(1, 2, 3))
    np.testing.assert_allclose(
        weights, np.broadcast_to(weight[:, None, None, None], weights.shape), atol=1e-3
    )
    # U(0, 1): mean 1/2, variance 1/12.
    assert 0 <= weight.min() < weight.max() <= 1
    np.testing.assert_allclose(
        (weight.mean(), weight.var()), (1 / 2, 1 / 12), atol=0.025
    )


def test_cutmix_takes_a_rectangle_of_the_other():
    masks = mixes(ZEROS, ZEROS + 1, mixup=0.0, cutmix=1.0)
    assert set(np.unique(masks)) == {0, 1}
    np.testing.assert_array_equal(masks[..., 0], masks[..., 1])
    # A rectangle is the outer product of its rows and columns, each without a gap.
    rows, columns = masks[..., 0].max(2), masks[..., 0].max(1)
    np.testing.assert_array_equal(masks[..., 0], rows[:, :, None] * columns[:, None, :])
    for sides in (rows, columns):
        edges = np.abs(np.diff(sides, axis=1, prepend=0, append=0)).sum(1)
        assert set(edges) <= {0, 2}
    cut = mixes(IMAGE, OTHER, mixup=0.0, cutmix=1.0)
    np.testing.assert_allclose(cut, np.where(masks, OTHER, IMAGE), atol=1e-6)


def test_probabilities_of_mixing():
    results = mixes(ZEROS, ZEROS + 1, mixup=0.2, cutmix=0.5)
    mixed = ((results > 0) & (results < 1)).all((1, 2, 3))
    cut = ~mixed & (results.max((1, 2, 3)) == 1)
    assert mixed.mean() == pytest.approx(0.2, abs=0.03)
    # A rectangle can fall between the pixels, but seldom.
    assert cut.mean() == pytest.approx(0.49, abs=0.045)


def test_the_left_half_is_mirrored_onto_the_right_one():
    mirrored = mirrors(IMAGE, probability=1.0)[0]
    half = SIZE // 2 + 1
    np.testing.assert_allclose(mirrored[:, :half], IMAGE[:, :half], rtol=1e-6)
    np.testing.assert_array_equal(mirrored, mirrored[:, ::-1])


def test_probability_of_mirroring():
    changed = (mirrors(IMAGE, probability=0.3) != np.float32(IMAGE)).any((1, 2, 3))
    np.testing.assert_allclose(changed.mean(), 0.3, atol=0.045)


def test_filled_images_keep_to_the_range_of_the_image():
    filled = fills(IMAGE, probability=1.0)
    assert (filled >= IMAGE.min((0, 1)) - 1e-5).all()
    assert (filled <= IMAGE.max((0, 1)) + 1e-5).all()
    assert len(np.unique(filled[:, 0, 0, 0])) > 0.6 * len(KEYS)


def test_a_flat_image_has_nothing_to_fill_a_shape_with():
    flat = np.full((SIZE, SIZE, 2), 3.0)
    np.testing.assert_allclose(fills(flat, probability=1.0) - flat, 0, atol=1e-5)


def test_probability_of_filling():
    changed = (np.abs(fills(IMAGE, probability=0.3) - IMAGE) > 1e-6).any((1, 2, 3))
    np.testing.assert_allclose(changed.mean(), 0.3, atol=0.045)


def test_shapes_are_in_the_middle_and_often_symmetric():
    """On a ramp from dark to bright, what became darker is ground or shade."""
    image = np.ones((SIZE, SIZE, 1))
    image[0] = 0.0  # Dark enough for a ground; elsewhere the image is bright.
    filled = fills(image, probability=1.0)
    middle, corner = filled[:, SIZE // 2, SIZE // 2, 0], filled[:, -1, -1, 0]
    assert middle.mean() > corner.mean()
    symmetric = (np.abs(filled - filled[:, :, ::-1]) < 1e-5).all((1, 2, 3))
    np.testing.assert_allclose(symmetric.mean(), augment.SYMMETRIC, atol=0.05)


def test_shift_moves_every_pixel_alike_and_repeats_the_border():
    sources = warps(RAMPS, shift=1.0)
    moved = sources[:, 6, 6] - 6
    np.testing.assert_allclose(moved.std(0), [1.0, 1.0], rtol=0.08)
    np.testing.assert_allclose(moved.mean(0), [0, 0], atol=0.09)
    expected = np.clip(RAMPS + moved[:, None, None, :], 0, SIZE - 1)
    np.testing.assert_allclose(sources, expected, atol=1e-4)


def test_affine_map_keeps_the_center_and_is_linear():
    moved = warps(RAMPS, affine=0.05) - RAMPS
    np.testing.assert_allclose(moved[:, 6, 6], np.zeros((len(KEYS), 2)), atol=1e-4)
    # Four pixels to the right, entries of the second column: 4 · N(0, 0.05²).
    np.testing.assert_allclose(moved[:, 6, 10].std(0), [0.2, 0.2], rtol=0.07)
    np.testing.assert_allclose(moved[:, 6, 10], -moved[:, 6, 2], atol=1e-3)
    np.testing.assert_allclose(
        moved[:, 8, 7], (moved[:, 10, 6] + moved[:, 6, 8]) / 2, atol=1e-3
    )


def test_elastic_displacements_are_smooth():
    moved = (warps(RAMPS, elastic=1.0) - RAMPS)[:, 4:9, 4:9]
    np.testing.assert_allclose(moved.mean((0, 1, 2)), [0, 0], atol=0.09)
    # Of N(0, 1) on the 4×4 grid, interpolation between its points leaves less.
    assert 0.4 < moved.std() < 1
    assert np.diff(moved, axis=1).std() < moved.std() / 2


@pytest.mark.parametrize(
    "strength",
    [{"shift": 1.0}, {"affine": 0.05}, {"elastic": 1.0}],
    ids=lambda strength: next(iter(strength)),
)
def test_warp_leaves_a_flat_image_flat_and_invents_no_value(strength):
    channels = np.full((SIZE, SIZE), 3), IMAGE[..., 0]
    images = warps(np.stack(channels, axis=-1), **strength)
    flat, other = np.moveaxis(images, -1, 0)
    np.testing.assert_allclose(flat, np.full_like(flat, 3), atol=1e-5)
    assert other.min() >= IMAGE[..., 0].min() - 1e-5
    assert other.max() <= IMAGE[..., 0].max() + 1e-5
    assert np.abs(np.diff(other, axis=0)).max() > 0.1


def test_contrast_and_brightness_are_one_factor_and_one_offset_an_image():
    results = jitters(IMAGE, contrast=0.2, brightness=0.5)
    factor = results.std((1, 2, 3)) / IMAGE.std()
    offset = results.mean((1, 2, 3)) - factor * IMAGE.mean()
    np.testing.assert_allclose(
        results,
        factor[:, None, None, None] * IMAGE + offset[:, None, None, None],
        atol=1e-4,
    )
    logs = np.log(factor)
    np.testing.assert_allclose((logs.mean(), logs.std()), (0, 0.2), atol=0.018)
    np.testing.assert_allclose((offset.mean(), offset.std()), (0, 0.5), atol=0.045)
    assert abs(np.corrcoef(logs, offset)[0, 1]) < 0.09


def test_noise_is_white_with_a_random_level():
    grain = jitters(ZEROS, noise=0.6)
    # The level is from U(0, 0.6).
    levels = grain.std((1, 2, 3))
    np.testing.assert_allclose(levels.mean(), 0.3, atol=0.015)
    assert levels.max() < 0.75
    neighbors = (grain[:, 1:] * grain[:, :-1]).mean() / (grain**2).mean()
    assert abs(neighbors) < 0.01
