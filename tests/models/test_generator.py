import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.models import generator
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import parallel, weights

LATENTS = jax.random.normal(jax.random.key(1), (8, 6))
SMALL = {"features": (8, 6, 4), "epsilon": 0.1}
# Compiled as a whole: one operation after the other takes many times as long.
logits = jax.jit(Linen.logits, static_argnums=0)
train_logits = jax.jit(Linen.train_logits, static_argnums=0)


def make(shape, **fields):
    module = generator.Generator(image_shape=shape, **SMALL | fields)
    model = Linen(module)
    return model, model.init(jax.random.key(0), LATENTS.shape[1:])


def test_parameters_of_the_published_generator():
    """DAFL's and DFAD's for 32×32 gray images, counted by hand.

    100·8192 + 8192, BatchNorm 2·128, 9·128·128 + 128, 2·128, 9·128·64 + 64, 2·64,
    9·64 + 1; the last BatchNorm has none.
    """
    module = generator.Generator(image_shape=(32, 32, 1))
    variables = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, 100))), jax.random.key(0)
    )
    assert weights.count(variables) == 1_049_985


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (9, 14, 2)])
@pytest.mark.parametrize("train", [False, True])
def test_images_have_the_shape_asked_for(shape, train):
    module, variables = make(shape)
    if train:
        images, _ = train_logits(module, variables, LATENTS, jax.random.key(0))
    else:
        images = logits(module, variables, LATENTS)
    assert images.shape == (8, *shape)


def test_a_batch_is_standardized_in_training():
    module, variables = make((12, 12, 2))
    images, _ = train_logits(module, variables, LATENTS, jax.random.key(0))
    np.testing.assert_allclose(images.mean((0, 1, 2)), np.zeros(2), atol=1e-4)
    np.testing.assert_allclose(images.std((0, 1, 2)), np.ones(2), atol=1e-2)


def test_upsampling_repeats_pixels():
    images = jnp.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    found = generator._twice_as_large(images)
    np.testing.assert_array_equal(found[0, :, :, 0], expected)


@pytest.mark.full
def test_statistics_over_devices_are_those_of_the_whole_batch():
    alone, variables = make((8, 8, 1))
    shared, _ = make((8, 8, 1), batch_axis=parallel.AXIS)
    expected, statistics = train_logits(alone, variables, LATENTS, jax.random.key(0))

    def step(state, variables, batch, key):
        images, found = shared.train_logits(variables, batch, key)
        place = parallel.global_index(len(images))
        scattered = jnp.zeros((8, 8, 8, 1)).at[place].set(images)
        return state, parallel.mean((4 * scattered, found))

    arguments = parallel.replicate((jnp.zeros(()), variables))
    key = parallel.replicate(jax.random.key(0))
    batch = parallel.split(np.asarray(LATENTS))
    _, (images, found) = parallel.data_parallel(step)(*arguments, batch, key)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    for mine, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(statistics), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
