"""A step of a teacher: augmentation, BatchNorm over devices, the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import optimization, parallel, rng
from dfkd_jax.teachers import step as steps

SHAPE = (4, 4, 3)
BATCH = 16
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(BATCH, *SHAPE)).astype(np.float32)
LABELS = RANDOM.integers(0, 5, BATCH)
NOTHING = steps.make_augment(max_shift=0, flip=0.0, cutout=0)


class Normed(nn.Module):
    """BatchNorm before everything else."""

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(
            images
        )
        return nn.Dense(5)(hidden.reshape(hidden.shape[0], -1))


class Plain(nn.Module):
    """No BatchNorm: images do not see each other."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(5)(images.reshape(images.shape[0], -1))


def start(teacher, optimizer):
    variables = Linen(teacher).init(jax.random.key(0), SHAPE)
    return optimization.create_state(variables, optimizer)


def one_step(teacher, augment=NOTHING, *, devices):
    """State and metrics after a step on one device or on all four."""
    step = steps.make_step(teacher=Linen(teacher), augment=augment)
    state, key = start(teacher, optax.sgd(0.1)), jax.random.key(1)
    batch = {"images": IMAGES, "labels": LABELS}
    if devices == 1:
        lifted = jax.pmap(
            step,
            axis_name=parallel.AXIS,
            in_axes=(None, None, 0, None),
            out_axes=(None, None),
            devices=jax.devices()[:1],
        )
        return lifted(state, None, jax.tree.map(lambda leaf: leaf[None], batch), key)
    state, key = parallel.replicate((state, key))
    return parallel.data_parallel(step)(state, None, parallel.split(batch), key)


def test_batch_norm_keeps_the_mean_of_what_devices_see():
    """Each normalizes with its own part, as PyTorch's DataParallel does."""
    assert jax.local_device_count() == 4
    state, _ = one_step(Normed(), devices=4)
    parts = IMAGES.reshape(4, -1, *SHAPE)
    kept = state.model_state["batch_stats"]["norm"]
    np.testing.assert_allclose(
        kept["mean"], 0.1 * parts.mean((1, 2, 3)).mean(0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        kept["var"], 0.9 + 0.1 * parts.var((1, 2, 3)).mean(0), rtol=1e-4
    )
    for leaf in jax.tree.leaves(state.model_state):
        for shard in leaf.addressable_shards[1:]:
            np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)


def test_without_batch_norm_the_number_of_devices_does_not_matter():
    augment = steps.make_augment(max_shift=2, flip=0.5, cutout=2)
    one, metrics_of_one = one_step(Plain(), augment, devices=1)
    four, metrics_of_four = one_step(Plain(), augment, devices=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        one.params,
        four.params,
    )
    np.testing.assert_allclose(
        metrics_of_one["loss"], metrics_of_four["loss"], rtol=1e-5
    )


@pytest.mark.parametrize(
    "change",
    [{"max_shift": 2}, {"flip": 1.0}, {"cutout": 2}],
    ids=["shift", "flip", "cutout"],
)
def test_what_is_asked_for_reaches_the_images(change):
    augment = steps.make_augment(**{"max_shift": 0, "flip": 0.0, "cutout": 0} | change)
    image = jnp.array(IMAGES[0])
    key = jax.random.key(3)
    assert not np.array_equal(augment(key, image), image)
    assert NOTHING(key, image) is image
    (_, plain), (_, changed) = (
        one_step(Plain(), each, devices=1) for each in (NOTHING, augment)
    )
    assert abs(plain["loss"] - changed["loss"]) > 1e-4


def test_one_change_does_not_disturb_another():
    """Each has a key of its own, so that a recipe can be taken apart."""
    image, key = jnp.array(IMAGES[0]), jax.random.key(3)
    both = steps.make_augment(max_shift=2, flip=1.0, cutout=0)(key, image)
    shifted = steps.make_augment(max_shift=2, flip=0.0, cutout=0)(key, image)
    np.testing.assert_array_equal(both, shifted[:, ::-1])
    assert not np.array_equal(
        jax.random.key_data(rng.stream(key, "flip")),
        jax.random.key_data(rng.stream(key, "cutout")),
    )
