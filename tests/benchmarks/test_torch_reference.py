"""The rival does our work: its random changes, given our random numbers, are ours."""

import jax
import numpy as np
import pytest

from dfkd_jax.distillation import augment

torch = pytest.importorskip("torch", reason='needs the extra "bench"')
torch_reference = pytest.importorskip("benchmarks.torch_reference")

COUNT, SIZE = 6, (28, 20)
KEYS = jax.random.split(jax.random.key(0), COUNT)
IMAGES, OTHERS = np.random.default_rng(0).normal(size=(2, COUNT, *SIZE, 2))


def tensors(*arrays):
    return [torch.from_numpy(np.array(array, np.float32)) for array in arrays]


def channels_last(images):
    return images.permute(0, 2, 3, 1).numpy()


def test_mix():
    strengths = {"mixup": 0.4, "cutmix": 0.4}
    expected = jax.jit(jax.vmap(lambda key, a, b: augment.mix(key, a, b, **strengths)))(
        KEYS, np.float32(IMAGES), np.float32(OTHERS)
    )

    @jax.vmap
    def draws(key):
        """As `augment.mix` draws them."""
        choice, weight, center = jax.random.split(key, 3)
        return (
            jax.random.uniform(choice),
            jax.random.uniform(weight),
            *jax.random.uniform(center, (2,)),
        )

    images, others = (x.permute(0, 3, 1, 2) for x in tensors(IMAGES, OTHERS))
    found = torch_reference.mix(images, others, *tensors(*draws(KEYS)), **strengths)
    assert np.abs(expected - IMAGES).max() > 0.1
    np.testing.assert_allclose(channels_last(found), expected, atol=1e-5)


def test_warp():
    shift, affine, elastic = 1.0, 0.2, 2.0
    expected = jax.jit(
        jax.vmap(
            lambda key, image: augment.warp(
                key, image, shift=shift, affine=affine, elastic=elastic
            )
        )
    )(KEYS, np.float32(IMAGES))

    @jax.vmap
    def draws(key):
        """As `augment.warp` draws them."""
        keys = jax.random.split(key, 3)
        return (
            affine * jax.random.normal(keys[1], (2, 2)),
            shift * jax.random.normal(keys[0], (2, 1, 1)).reshape(2),
            elastic * jax.random.normal(keys[2], (2, 4, 4)),
        )

    linear, moved, grid = tensors(*draws(KEYS))
    (images,) = tensors(IMAGES)
    found = torch_reference.warp(
        images.permute(0, 3, 1, 2), linear=linear + torch.eye(2), shift=moved, grid=grid
    )
    assert np.abs(expected - IMAGES).max() > 0.1
    np.testing.assert_allclose(channels_last(found), expected, atol=1e-4)
