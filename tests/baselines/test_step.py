"""Steps of a generator and a student, against the same arithmetic on one device."""

import described
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dfkd_jax.baselines import step as steps
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import parallel, rng
from dfkd_jax.runtime.optimization import create_state

BATCH, LATENTS, CLASSES = 8, 3, 3
STUDENT_RATE, GENERATOR_RATE = 0.2, 0.3
WEIGHTS = {"one_hot_weight": 1.0, "information_weight": 5.0, "activation_weight": 0.1}
RANDOM = np.random.default_rng(0)


class Generator(nn.Module):
    """Images as one matrix product."""

    @nn.compact
    def __call__(self, latents, *, train=False):
        return nn.Dense(4, use_bias=False)(latents).reshape(-1, 2, 2, 1)


class Network(nn.Module):
    """The smallest network with a feature layer."""

    @nn.compact
    def __call__(self, images, *, train=False):
        images = images.reshape(images.shape[0], -1)
        features = nn.Dense(5, use_bias=False, name="features")(images)
        return nn.Dense(CLASSES, use_bias=False, name="output")(nn.relu(features))


def network_variables():
    shapes = {"features": (4, 5), "output": (5, CLASSES)}
    return {
        "params": {
            name: {"kernel": jnp.array(RANDOM.normal(size=shape), jnp.float32)}
            for name, shape in shapes.items()
        }
    }


TEACHER, STUDENT = network_variables(), network_variables()
KERNEL = jnp.array(RANDOM.normal(size=(LATENTS, 4)), jnp.float32)
KEY = jax.random.key(5)


def make(method, *, student_steps=2):
    models = {"generator": Linen(Generator()), "student": Linen(Network())}
    if method == "dafl":
        return steps.make_dafl_step(
            **models, feature_layer="features", latent_size=LATENTS, **WEIGHTS
        )
    return steps.make_dfad_step(
        **models, latent_size=LATENTS, student_steps=student_steps
    )


def run(method, *, num_steps=1, **options):
    """State and metrics after steps on four devices."""
    state = steps.GameState(
        step=jnp.zeros((), jnp.int32),
        student=create_state(STUDENT, optax.sgd(STUDENT_RATE)),
        generator=create_state(
            {"params": {"Dense_0": {"kernel": KERNEL}}}, optax.sgd(GENERATOR_RATE)
        ),
    )
    step = parallel.data_parallel(make(method, **options))
    # A copy: the step takes the state's memory.
    state = jax.tree.map(jnp.copy, state)
    state, teacher, key = parallel.replicate(
        (state, described.network(Network(), TEACHER, (2, 2, 1)), KEY)
    )
    for _ in range(num_steps):
        batch = parallel.split({"index": np.arange(BATCH, dtype=np.int32)})
        state, metrics = step(state, teacher, batch, key)
        parallel.block_on_cpu(metrics)
    return state, metrics


def latents_of(step, turn=None):
    key = rng.stream(jax.random.fold_in(KEY, step), "latents")
    if turn is not None:
        key = jax.random.fold_in(key, turn)
    return jnp.stack(
        [
            jax.random.normal(jax.random.fold_in(key, place), (LATENTS,))
            for place in range(BATCH)
        ]
    )


def look(params, images):
    """Features after their ReLU, and logits."""
    features = jnp.maximum(images @ params["features"]["kernel"], 0)
    return features, features @ params["output"]["kernel"]


def descend(params, gradient, rate):
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


def softmax(logits):
    odds = jnp.exp(logits)
    return odds / odds.sum(-1, keepdims=True)


def dafl_by_hand(num_steps):
    generator, student = KERNEL, STUDENT["params"]
    found = []
    for step in range(num_steps):
        latents = latents_of(step)

        def generator_loss(kernel, latents=latents):
            features, logits = look(TEACHER["params"], latents @ kernel)
            probs = softmax(logits)
            mean = probs.mean(0)
            one_hot = -jnp.log(probs.max(1)).mean()
            information = (mean * jnp.log(mean)).sum() / jnp.log(10.0)
            return one_hot + 5 * information - 0.1 * features.mean()

        images = latents @ generator
        targets = softmax(look(TEACHER["params"], images)[1])

        def student_loss(params, images=images, targets=targets):
            log_probs = jnp.log(softmax(look(params, images)[1]))
            return -(targets * log_probs).sum(1).mean()

        loss, gradient = jax.value_and_grad(student_loss)(student)
        total, generator_gradient = jax.value_and_grad(generator_loss)(generator)
        student = descend(student, gradient, STUDENT_RATE)
        generator = descend(generator, generator_gradient, GENERATOR_RATE)
        found.append({"loss": loss, "generator_loss": total})
    return generator, student, found[-1]


def dfad_by_hand(num_steps, student_steps):
    generator, student = KERNEL, STUDENT["params"]

    def difference(student, generator, latents):
        images = latents @ generator
        theirs = look(TEACHER["params"], images)[1]
        return jnp.abs(look(student, images)[1] - theirs).mean()

    for step in range(num_steps):
        for turn in range(student_steps):
            loss, gradient = jax.value_and_grad(difference)(
                student, generator, latents_of(step, turn)
            )
            student = descend(student, gradient, STUDENT_RATE)
        total, gradient = jax.value_and_grad(difference, argnums=1)(
            student, generator, latents_of(step, student_steps)
        )
        generator = generator + GENERATOR_RATE * gradient
    return generator, student, {"loss": loss, "generator_loss": -total}


def check(state, metrics, generator, student, expected):
    kernel = state.generator.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel, generator, atol=2e-5)
    for mine, theirs in zip(
        jax.tree.leaves(state.student.params), jax.tree.leaves(student), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


def test_dafl_on_four_devices_by_hand():
    """The mean answer, which the information entropy is of, spans all devices."""
    state, metrics = run("dafl", num_steps=2)
    check(state, metrics, *dafl_by_hand(2))
    assert (int(state.step), int(state.student.step)) == (2, 2)
    assert state.step.dtype == jnp.int32


def test_dfad_on_four_devices_by_hand():
    state, metrics = run("dfad", num_steps=2, student_steps=3)
    check(state, metrics, *dfad_by_hand(2, 3))
    counts = (state.step, state.student.step, state.generator.step)
    assert tuple(map(int, counts)) == (2, 6, 2)


@pytest.mark.parametrize("method", ["dafl", "dfad"])
def test_every_device_ends_with_the_same(method):
    state, metrics = run(method, num_steps=2)
    for leaf in jax.tree.leaves((state, metrics)):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def test_student_goes_down_and_generator_up_the_difference():
    _, before = run("dfad", num_steps=1, student_steps=1)
    _, after = run("dfad", num_steps=1, student_steps=40)
    assert float(after["loss"]) < float(before["loss"]) / 2
    assert float(before["generator_loss"]) < 0


def test_noise_of_an_image_does_not_depend_on_the_others():
    index = jnp.arange(6, dtype=jnp.int32)
    together = steps.draw_latents(KEY, index, size=LATENTS)
    alone = steps.draw_latents(KEY, index[4:5], size=LATENTS)
    np.testing.assert_allclose(together[4:5], alone, atol=1e-6)
    assert len(np.unique(np.asarray(together))) == together.size


def test_noise_is_standard_normal():
    latents = steps.draw_latents(KEY, jnp.arange(2_000, dtype=jnp.int32), size=10)
    # Of 20,000 numbers: five standard errors.
    np.testing.assert_allclose(latents.mean(), 0, atol=0.036)
    np.testing.assert_allclose(latents.std(), 1, atol=0.025)
