import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfkd_jax.synthesis import priors

IMAGES = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))


def test_total_variation_by_hand(strict_dtypes):
    # Down: |6 - 1| + |10 - 3|. Across: |3 - 1| + |10 - 6|. A flat image: nothing.
    images = jnp.array([[[1.0, 3.0], [6.0, 10.0]], [[5.0, 5.0], [5.0, 5.0]]])
    result = priors.total_variation(images[..., None])
    np.testing.assert_allclose(result, [18, 0])


def test_squared_norm_by_hand(strict_dtypes):
    images = jnp.array([[[1.0, -3.0], [0.0, 2.0]]])[..., None]
    np.testing.assert_allclose(priors.squared_norm(images), [14])


@pytest.mark.parametrize("prior", [priors.total_variation, priors.squared_norm])
def test_gradients(strict_dtypes, prior):
    check_grads(jax.jit(prior), (IMAGES,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("prior", "change"),
    [
        (priors.total_variation, lambda x: x + 7),
        (priors.total_variation, lambda x: x[:, ::-1]),
        (priors.total_variation, lambda x: x.transpose(0, 2, 1, 3)),
        (priors.squared_norm, lambda x: -x),
        (priors.squared_norm, lambda x: jnp.roll(x, 1, axis=2)),
    ],
    ids=["brightness", "flip", "transpose", "sign", "roll"],
)
def test_invariances(prior, change):
    np.testing.assert_allclose(prior(change(IMAGES)), prior(IMAGES), rtol=1e-5)


@pytest.mark.parametrize(
    ("relative", "expected"),
    [(False, 7), (True, 5 / np.hypot(1.5, 2) + 2 / np.hypot(2.25, 4))],
)
def test_statistics_distance_by_hand(strict_dtypes, relative, expected):
    # Means are off by (3, 4), variances by (0, 2): norms 5 and 2. What is kept has
    # deviations (1.5, 2) and variances (2.25, 4).
    result = priors.statistics_distance(
        jnp.array([3.0, 5.0]),
        jnp.array([2.25, 2.0]),
        jnp.array([0.0, 1.0]),
        jnp.array([2.25, 4.0]),
        relative=relative,
    )
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_statistics_distance_has_the_gradient_of_finite_differences(
    strict_dtypes, relative
):
    mean, var, *kept = jax.random.uniform(jax.random.key(3), (4, 6), minval=0.5)
    check_grads(
        jax.jit(
            lambda mean, var: priors.statistics_distance(
                mean, var, *kept, relative=relative
            )
        ),
        (mean, var),
        order=1,
        modes=["rev"],
        atol=2e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize("relative", [False, True])
def test_statistics_that_are_met_pull_nowhere(relative):
    """The root has no gradient at 0, and one dead layer must not end the run."""
    kept = jnp.array([0.0, 1.0])
    distance = functools.partial(priors.statistics_distance, relative=relative)
    value, gradients = jax.value_and_grad(distance, argnums=(0, 1))(
        kept, kept, kept, kept
    )
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, [0, 0])


def test_relative_distance_of_a_dead_layer_is_finite():
    nothing, one = jnp.zeros(2), jnp.ones(2)
    distance = functools.partial(priors.statistics_distance, relative=True)
    for seen in (nothing, one):
        value, gradients = jax.value_and_grad(distance, argnums=(0, 1))(
            seen, seen, nothing, nothing
        )
        assert np.isfinite(value)
        assert np.isfinite(gradients).all()


def test_statistics_distance_does_not_depend_on_the_order_of_channels():
    arrays = jax.random.normal(jax.random.key(4), (4, 6))
    np.testing.assert_allclose(
        priors.statistics_distance(*arrays, relative=False),
        priors.statistics_distance(*arrays[:, ::-1], relative=False),
        rtol=1e-6,
    )


def test_relative_distance_does_not_depend_on_the_scale_of_responses():
    mean, var, kept_mean, kept_var = jax.random.uniform(jax.random.key(4), (4, 6))
    np.testing.assert_allclose(
        priors.statistics_distance(mean, var, kept_mean, kept_var, relative=True),
        priors.statistics_distance(
            5 * mean, 25 * var, 5 * kept_mean, 25 * kept_var, relative=True
        ),
        rtol=1e-5,
    )


def test_flip_mirrors_all_images_or_none(strict_dtypes):
    keys = jax.random.split(jax.random.key(1), 200)
    flipped = jax.vmap(lambda key: priors.random_flip(key, IMAGES, probability=0.25))(
        keys
    )
    mirrored = IMAGES[:, :, ::-1]
    same = [np.array_equal(one, IMAGES) for one in flipped]
    other = [np.array_equal(one, mirrored) for one in flipped]
    assert sum(same) + sum(other) == 200
    assert 30 <= sum(other) <= 70
    assert priors.random_flip(keys[0], IMAGES, probability=0.0) is IMAGES


def test_shift_moves_all_images_by_one_known_offset(strict_dtypes):
    keys = jax.random.split(jax.random.key(1), 60)
    shifted = jax.vmap(lambda key: priors.random_shift(key, IMAGES, max_shift=1))(keys)

    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    possible = {
        (y, x): padded[:, y : y + 5, x : x + 4] for y in range(3) for x in range(3)
    }
    offsets = [
        [offset for offset, image in possible.items() if np.array_equal(image, one)]
        for one in shifted
    ]
    # Each is one of the nine offsets, and all of them occur.
    assert all(len(found) == 1 for found in offsets)
    assert {found[0] for found in offsets} == set(possible)


def test_no_shift_leaves_images_alone():
    assert priors.random_shift(jax.random.key(0), IMAGES, max_shift=0) is IMAGES
