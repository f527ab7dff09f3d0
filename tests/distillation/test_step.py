import described
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dfkd_jax.distillation import step as steps
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import optimization, parallel, rng

RATE, TEMPERATURE, BATCH = 0.1, 2.0, 8
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.dirichlet(np.ones(3), BATCH).astype(np.float32)
BATCH_OF_EIGHT = {
    "images": RANDOM.normal(size=(BATCH, 2, 2, 1)).astype(np.float32),
    "others": RANDOM.normal(size=(BATCH, 2, 2, 1)).astype(np.float32),
    "labels": LABELS,
}
KERNELS = {
    name: RANDOM.normal(size=(4, 3)).astype(np.float32)
    for name in ("teacher", "student")
}


class Linear(nn.Module):
    """Logits as one matrix product, so that gradients can be written down."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(3, use_bias=False)(images.reshape(images.shape[0], -1))


class NeverAsked(nn.Module):
    @nn.compact
    def __call__(self, images):
        raise AssertionError("The teacher was asked.")


def variables_of(kernel):
    return {"params": {"Dense_0": {"kernel": jnp.array(kernel)}}}


def softmax(logits):
    odds = np.exp(logits)
    return odds / odds.sum(-1, keepdims=True)


def unchanged(key, image, other):
    return image


def take_step(
    *,
    kernel,
    augment=unchanged,
    stored=False,
    loss="hinton",
    num_steps=1,
    **features,
):
    """State, metrics and teacher after steps on four devices, from step 0."""
    step = parallel.data_parallel(
        steps.make_step(
            student=Linen(Linear()),
            augment=augment,
            loss=steps.make_loss(loss, temperature=TEMPERATURE),
            stored_labels_temperature=TEMPERATURE if stored else None,
            **features,
        )
    )
    state = optimization.create_state(variables_of(kernel), optax.sgd(RATE))
    teacher = described.network(
        NeverAsked() if stored else Linear(),
        variables_of(KERNELS["teacher"]),
        (2, 2, 1),
        num_classes=3,
    )
    state, teacher, key = parallel.replicate((state, teacher, jax.random.key(5)))
    for _ in range(num_steps):
        batch = parallel.split(BATCH_OF_EIGHT)
        state, metrics = step(state, teacher, batch, key)
        parallel.block_on_cpu(metrics)
    return state, metrics, teacher


def by_hand(kernel, images, targets, weights=1.0):
    """Gradient and loss of the student for tempered targets `[batch, classes]`."""
    flat = images.reshape(BATCH, -1)
    weights = np.broadcast_to(weights, (BATCH,))
    predicted = softmax(flat @ kernel / TEMPERATURE)
    slopes = weights[:, None] * TEMPERATURE * (predicted - targets)
    entropies = -(TEMPERATURE**2) * (targets * np.log(predicted)).sum(1)
    return flat.T @ slopes / BATCH, (weights * entropies).mean()


def teacher_targets(images):
    return softmax(images.reshape(BATCH, -1) @ KERNELS["teacher"] / TEMPERATURE)


def kernel_of(state):
    return np.asarray(state.params["Dense_0"]["kernel"])


@pytest.mark.parametrize("stored", [False, True], ids=["fresh", "stored"])
def test_step_on_four_devices_by_hand(stored):
    images = BATCH_OF_EIGHT["images"]
    targets = LABELS if stored else teacher_targets(images)
    gradient, loss = by_hand(KERNELS["student"], images, targets)

    state, metrics, _ = take_step(kernel=KERNELS["student"], stored=stored)

    assert int(state.step) == 1
    assert state.step.dtype == jnp.int32
    np.testing.assert_allclose(
        kernel_of(state), KERNELS["student"] - RATE * gradient, atol=1e-5
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["gradient_norm"], np.sqrt((gradient**2).sum()), rtol=1e-4
    )
    logits = images.reshape(BATCH, -1) @ KERNELS["student"]
    agreement = (logits.argmax(1) == targets.argmax(1)).mean()
    np.testing.assert_allclose(metrics["agreement"], agreement)


def test_features_by_hand():
    """The only layer of the linear net: its features are the logits."""
    images = BATCH_OF_EIGHT["images"]
    flat = images.reshape(BATCH, -1)
    gradient, loss = by_hand(KERNELS["student"], images, teacher_targets(images))
    wanted = flat @ KERNELS["teacher"]
    difference = flat @ KERNELS["student"] - wanted
    sizes = (wanted**2).sum(1, keepdims=True)
    gradient += 3.0 * flat.T @ (2 * difference / sizes) / BATCH
    loss += 3.0 * ((difference**2).sum(1, keepdims=True) / sizes).mean()

    state, metrics, _ = take_step(
        kernel=KERNELS["student"], feature_layer="Dense_0", feature_weight=3.0
    )

    np.testing.assert_allclose(
        kernel_of(state), KERNELS["student"] - RATE * gradient, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_classes_are_balanced_over_all_devices_by_hand():
    images = BATCH_OF_EIGHT["images"]
    answers = softmax(images.reshape(BATCH, -1) @ KERNELS["teacher"])
    weights = answers @ (answers.mean(0) + 0.01) ** -0.7
    weights /= weights.mean()
    gradient, loss = by_hand(
        KERNELS["student"], images, teacher_targets(images), weights
    )

    state, metrics, _ = take_step(kernel=KERNELS["student"], class_balance=0.7)

    np.testing.assert_allclose(
        kernel_of(state), KERNELS["student"] - RATE * gradient, atol=1e-5
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_every_device_ends_with_the_same_student():
    state, metrics, _ = take_step(kernel=KERNELS["student"], num_steps=2)
    for leaf in jax.tree.leaves((state, metrics)):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def test_augmentation_by_hand():
    """Its key depends on the step and on the place in the whole batch alone."""

    def augment(key, image, other):
        return image + other * jax.random.normal(key)

    kernel = KERNELS["student"]
    for step in (0, 1):
        key = jax.random.fold_in(jax.random.key(5), step)
        amounts = [
            jax.random.normal(jax.random.fold_in(key, place)) for place in range(BATCH)
        ]
        amounts = np.array(amounts).reshape(BATCH, 1, 1, 1)
        images = BATCH_OF_EIGHT["images"] + amounts * BATCH_OF_EIGHT["others"]
        gradient, _ = by_hand(kernel, images, teacher_targets(images))
        kernel = kernel - RATE * gradient

    state, _, _ = take_step(kernel=KERNELS["student"], augment=augment, num_steps=2)
    np.testing.assert_allclose(kernel_of(state), kernel, atol=1e-5)


def test_every_second_image_is_drawn_anew_by_hand():
    """By its place in the whole batch, whatever device that is on."""

    def draw(keys):
        return jax.vmap(lambda key: jax.random.normal(key, (2, 2, 1)))(keys)

    key = rng.stream(jax.random.fold_in(jax.random.key(5), 0), "procedural images")
    images = BATCH_OF_EIGHT["images"].copy()
    pixels = draw(rng.per_example(key, jnp.arange(0, BATCH, 2)))
    images[::2] = (pixels - 0.5) / 0.25  # As the teacher is given them.
    gradient, _ = by_hand(KERNELS["student"], images, teacher_targets(images))

    state, _, _ = take_step(kernel=KERNELS["student"], draw=draw, draw_every=2)
    np.testing.assert_allclose(
        kernel_of(state), KERNELS["student"] - RATE * gradient, atol=1e-5
    )


@pytest.mark.parametrize("loss", ["l2", "hinton"])
def test_teacher_is_left_alone_and_a_copy_of_it_has_nothing_to_learn(loss):
    state, metrics, teacher = take_step(kernel=KERNELS["teacher"], loss=loss)
    np.testing.assert_array_equal(
        teacher.variables["params"]["Dense_0"]["kernel"], KERNELS["teacher"]
    )
    np.testing.assert_allclose(kernel_of(state), KERNELS["teacher"], atol=1e-6)
    assert float(metrics["gradient_norm"]) < 1e-5
    assert float(metrics["agreement"]) == 1


def test_student_approaches_the_teacher():
    _, first, _ = take_step(kernel=KERNELS["student"], loss="l2")
    _, last, _ = take_step(kernel=KERNELS["student"], loss="l2", num_steps=40)
    assert float(last["loss"]) < float(first["loss"]) / 4
