import described
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfkd_jax.synthesis import parameterization

KEYS = jax.random.split(jax.random.key(0), 4)
MEAN, STD = (0.1, 0.5), (0.3, 0.2)
ABOUT = described.description((6, 6, 2), mean=MEAN, std=STD)


def test_factor_one_is_plain_pixels(strict_dtypes):
    pixels = parameterization.grids((5, 4, 2), factors=(1,), init_scale=0.5)
    params = pixels.init(KEYS)
    assert jax.tree.map(jnp.shape, params) == ((4, 5, 4, 2),)
    np.testing.assert_array_equal(pixels.render(params), params[0])


def test_initial_noise_has_the_scale_and_depends_on_its_own_key():
    grids = parameterization.grids((28, 28, 1), factors=(2, 1), init_scale=0.3)
    init = jax.jit(grids.init)
    params = init(KEYS)
    for grid in params:
        np.testing.assert_allclose(np.std(grid), 0.3, rtol=0.1)
    for together, alone in zip(params, init(KEYS[2:3]), strict=True):
        np.testing.assert_allclose(together[2:3], alone, atol=1e-6)
        assert np.abs(together[1] - together[0]).max() > 0.1


def test_coarse_grids_are_interpolated_by_hand(strict_dtypes):
    grids = parameterization.grids((4, 4, 1), factors=(2, 1), init_scale=1.0)
    coarse = jnp.array([[0.0, 4.0], [0.0, 4.0]]).reshape(1, 2, 2, 1)
    fine = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(10.0)
    expected = np.tile([0.0, 1.0, 3.0, 4.0], (4, 1))
    expected[1, 1] += 10
    image = grids.render((coarse, fine))
    np.testing.assert_allclose(image[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("factors", [(1,), (2,), (3, 2), (4, 2, 1)])
def test_constant_grids_give_a_constant_image(factors):
    """Sides that factors do not divide (7 and 5) are covered too."""
    grids = parameterization.grids((7, 5, 1), factors=factors, init_scale=1.0)
    params = grids.init(KEYS[:1])
    assert [p.shape[1:3] for p in params] == [(-(-7 // f), -(-5 // f)) for f in factors]
    constant = [jnp.full_like(p, 2.0**place) for place, p in enumerate(params)]
    np.testing.assert_allclose(
        grids.render(constant), np.full((1, 7, 5, 1), 2 ** len(factors) - 1), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_bounded_images_stay_in_the_pixel_range(scale):
    grids = parameterization.grids((6, 6, 2), factors=(2, 1), init_scale=scale)
    bounded = parameterization.bounded(grids, normalize=ABOUT.normalize)
    images = np.asarray(jax.jit(lambda keys: bounded.render(bounded.init(keys)))(KEYS))
    pixels = images * np.float32(STD) + np.float32(MEAN)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    if scale == 0:
        np.testing.assert_allclose(pixels, np.full_like(pixels, 0.5), atol=1e-6)


def test_uniform_noise_goes_from_zero_to_its_scale():
    grids = parameterization.grids(
        (28, 28, 1), factors=(1,), init_scale=0.5, init="uniform"
    )
    (pixels,) = grids.init(KEYS)
    assert 0 <= pixels.min() < 0.01 and 0.49 < pixels.max() <= 0.5
    # The mean of 3,136 numbers, five standard errors.
    np.testing.assert_allclose(pixels.mean(), 0.25, atol=0.013)


def test_rescaling_by_hand(strict_dtypes):
    grids = parameterization.grids((2, 2, 1), factors=(1,), init_scale=1.0)
    rescaled = parameterization.rescaled(
        grids, normalize=described.description((2, 2, 1)).normalize
    )
    images = jnp.array([[[-1.0, 0.0], [1.0, 3.0]], [[7.0, 7.0], [7.0, 7.0]]])
    (found,) = rescaled.project((images[..., None],))
    np.testing.assert_allclose(found[0, :, :, 0], [[0, 0.25], [0.5, 1]])
    np.testing.assert_array_equal(found[1], np.zeros((2, 2, 1)))
    shown = rescaled.render((found,))
    np.testing.assert_allclose(shown[0, :, :, 0], [[-2, -1], [0, 2]])


def test_rescaled_images_start_in_the_pixel_range_and_stay_independent():
    grids = parameterization.grids((6, 6, 2), factors=(1,), init_scale=3.0)
    rescaled = parameterization.rescaled(grids, normalize=ABOUT.normalize)
    (pixels,) = rescaled.init(KEYS)
    np.testing.assert_array_equal(pixels.min((1, 2, 3)), np.zeros(4))
    np.testing.assert_allclose(pixels.max((1, 2, 3)), np.ones(4), rtol=1e-6)
    (alone,) = rescaled.project((pixels[1:2] * 5 - 2,))
    np.testing.assert_allclose(alone, pixels[1:2], atol=1e-6)


def test_gradient_through_rendering():
    grids = parameterization.grids((4, 4, 2), factors=(2, 1), init_scale=1.0)
    bounded = parameterization.bounded(grids, normalize=ABOUT.normalize)
    params = bounded.init(KEYS[:1])
    check_grads(bounded.render, (params,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
