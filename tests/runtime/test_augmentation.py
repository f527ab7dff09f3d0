import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfkd_jax.runtime import augmentation

IMAGE = jax.random.normal(jax.random.key(0), (5, 4, 3))
KEYS = jax.random.split(jax.random.key(1), 400)
CHANGES = {
    "shift": functools.partial(augmentation.shift, max_shift=2),
    "flip": functools.partial(augmentation.flip, probability=0.5),
    "cutout": functools.partial(augmentation.cutout, size=2),
}


def results(change, image=IMAGE):
    return np.asarray(jax.vmap(lambda key: change(key, image))(KEYS))


def test_shift_is_every_crop_of_the_image_with_its_border_repeated(strict_dtypes):
    shifted = results(functools.partial(augmentation.shift, max_shift=1))
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)), mode="edge")
    crops = {(y, x): padded[y : y + 5, x : x + 4] for y in range(3) for x in range(3)}
    found = [
        [place for place, crop in crops.items() if np.array_equal(crop, one)]
        for one in shifted
    ]
    assert all(len(places) == 1 for places in found)
    counts = [found.count([place]) for place in crops]
    # Of 400, 44 each; the standard deviation is 6.3.
    assert min(counts) > 20
    assert max(counts) < 70


def test_flip_by_hand(strict_dtypes):
    image = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    for key in KEYS[:3]:
        flipped = augmentation.flip(key, image, probability=1.0)[..., 0]
        np.testing.assert_array_equal(flipped, [[2, 1], [4, 3]])
        untouched = augmentation.flip(key, image, probability=0.0)
        np.testing.assert_array_equal(untouched, image)


def test_flip_has_its_probability(strict_dtypes):
    flipped = results(functools.partial(augmentation.flip, probability=0.25))
    share = np.mean([np.array_equal(one, IMAGE[:, ::-1]) for one in flipped])
    assert abs(share - 0.25) < 0.07


def test_cutout_is_a_square_anywhere_that_may_cross_the_border(strict_dtypes):
    ones = jnp.ones((5, 4, 2))
    covered = results(functools.partial(augmentation.cutout, size=3), ones) == 0
    np.testing.assert_array_equal(covered[..., 0], covered[..., 1])
    expected = np.zeros((20, 5, 4), bool)
    for place, (y, x) in enumerate(np.ndindex(5, 4)):
        expected[place, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
    places = [
        int(np.flatnonzero((expected == one).all((1, 2)))[0]) for one in covered[..., 0]
    ]
    assert set(places) == set(range(20))


def test_cutout_leaves_the_rest_as_it_is():
    for one in results(CHANGES["cutout"])[:20]:
        kept = (one != 0).all(-1)
        assert 0 < kept.sum() < 20
        np.testing.assert_array_equal(one[kept], np.asarray(IMAGE)[kept])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_gradients(strict_dtypes, change):
    changed = jax.jit(lambda image: change(KEYS[0], image))
    check_grads(changed, (IMAGE,), order=1, modes=["rev"], atol=1e-2)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_scaling_the_image_scales_the_result(change):
    np.testing.assert_allclose(
        results(change, 3 * IMAGE), 3 * results(change), rtol=1e-6
    )
