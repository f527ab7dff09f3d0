import functools

import described
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dfkd_jax.runtime import parallel, rng
from dfkd_jax.sources import shapes
from dfkd_jax.synthesis import parameterization, step

SHAPE = (5, 4, 1)
TEMPERATURE, ACTIVATION, VARIATION, L2, RATE = 2.0, 0.3, 0.01, 0.02, 0.05
LABELS = np.random.default_rng(0).dirichlet(np.ones(3), 4).astype(np.float32)
KEY = jax.random.key(1)


class Teacher(nn.Module):
    """The smallest network with a feature layer."""

    @nn.compact
    def __call__(self, images):
        features = nn.Dense(6, name="dense")(images.reshape(images.shape[0], -1))
        return nn.Dense(3, name="output")(nn.relu(features))


class Normed(nn.Module):
    """The same with two BatchNorms."""

    @nn.compact
    def __call__(self, images, train=False):
        norm = {"use_running_average": not train, "epsilon": 0.0}
        images = nn.BatchNorm(name="first", **norm)(images)
        features = nn.Dense(6, name="dense")(images.reshape(images.shape[0], -1))
        features = nn.BatchNorm(name="second", **norm)(features)
        return nn.Dense(3, name="output")(nn.relu(features))


@pytest.fixture(scope="module")
def normed():
    found = Normed().init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    statistics = {
        "first": {"mean": jnp.array([0.3]), "var": jnp.array([2.0])},
        "second": {"mean": jnp.linspace(-1, 1, 6), "var": jnp.linspace(0.5, 3, 6)},
    }
    return described.network(
        Normed(), found | {"batch_stats": statistics}, SHAPE, num_classes=3
    )


@pytest.fixture(scope="module")
def teacher():
    found = Teacher().init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return described.network(Teacher(), found, SHAPE, num_classes=3)


def noise(pixels, optimizer):
    """Starts as noise, which neither the teacher nor labels have a say in."""
    init = step.make_init(parameterization=pixels, optimizer=optimizer)
    return jax.jit(lambda key, index: init((None, key), (index, None)))


def make(
    *,
    num_steps,
    max_shift=0,
    flip=0.0,
    factors=(1,),
    batch_norm=0.0,
    distance="absolute",
):
    pixels = parameterization.grids(SHAPE, factors=factors, init_scale=0.5)
    optimizer = optax.adam(RATE)
    return noise(pixels, optimizer), jax.jit(
        step.make_step(
            feature_layer="dense",
            parameterization=pixels,
            optimizer=optimizer,
            temperature=TEMPERATURE,
            activation_weight=ACTIVATION,
            total_variation=VARIATION,
            l2=L2,
            batch_norm=batch_norm,
            batch_norm_distance=distance,
            max_shift=max_shift,
            flip=flip,
            num_steps=num_steps,
        )
    )


def loss_by_hand(images, params, labels):
    """The loss of every image, written down a second time."""
    flat = images.reshape(len(images), -1)
    features = flat @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    logits = (
        jnp.maximum(features, 0) @ params["output"]["kernel"]
        + params["output"]["bias"][None]
    ) / TEMPERATURE
    log_probs = logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True))
    variation = jnp.abs(images[:, 1:] - images[:, :-1]).sum((1, 2, 3))
    variation += jnp.abs(images[:, :, 1:] - images[:, :, :-1]).sum((1, 2, 3))
    return (
        -(labels * log_probs).sum(1)
        - ACTIVATION * jnp.abs(features).mean(1)
        + VARIATION * variation
        + L2 * (flat**2).sum(1)
    )


def test_scan_equals_adam_steps_by_hand(teacher):
    init, three_steps = make(num_steps=3)
    start = init(KEY, jnp.arange(4))
    state, metrics = three_steps(start, teacher, LABELS, KEY)

    images = np.asarray(start.params[0], np.float64)
    value_and_grad = jax.jit(
        jax.value_and_grad(
            lambda x: loss_by_hand(
                x, teacher.variables["params"], jnp.array(LABELS)
            ).sum()
        )
    )
    first, second = np.zeros_like(images), np.zeros_like(images)
    losses = []
    for count in (1, 2, 3):
        loss, gradient = value_and_grad(jnp.array(images, jnp.float32))
        losses.append(loss / 4)
        gradient = np.asarray(gradient, np.float64)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**count)) + 1e-8
        images -= RATE * first / (1 - 0.9**count) / corrected

    assert int(state.step) == 3
    np.testing.assert_allclose(state.params[0], images, atol=1e-5)
    # Metrics are of the images that each step started from.
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("max_shift", [0, 1])
def test_one_call_of_four_steps_is_four_calls_of_one(teacher, max_shift):
    init, four = make(num_steps=4, max_shift=max_shift)
    _, one = make(num_steps=1, max_shift=max_shift)
    start = init(KEY, jnp.arange(4))
    expected, expected_metrics = four(start, teacher, LABELS, KEY)

    state = start
    for place in range(4):
        state, metrics = one(state, teacher, LABELS, KEY)
        for name, value in metrics.items():
            np.testing.assert_allclose(
                value, expected_metrics[name][place : place + 1], rtol=1e-5
            )

    np.testing.assert_allclose(state.params[0], expected.params[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"max_shift": 2}, False),
        ({"flip": 0.5}, False),
        ({"flip": 1.0}, True),
    ],
    ids=["nothing", "shift", "flip", "certain flip"],
)
def test_what_is_random_is_drawn_anew_at_every_step(teacher, change, same):
    """With a shift, the step's number matters; without, the images alone do."""
    init, one = make(num_steps=1, **change)
    start = init(KEY, jnp.arange(4))
    values = {
        one(start.replace(step=jnp.int32(number)), teacher, LABELS, KEY)[1][
            "loss"
        ].item()
        for number in range(8)
    }
    assert (len(values) == 1) == same


def test_images_are_projected_after_every_step(teacher):
    """Four steps with a projection are four times a step, then the projection."""
    pixels = parameterization.grids(SHAPE, factors=(1,), init_scale=0.5)
    rescaled = parameterization.rescaled(pixels, normalize=lambda pixels: pixels)
    optimizer = optax.adam(RATE)

    def make_step(parameters, num_steps):
        return jax.jit(
            step.make_step(
                feature_layer="dense",
                parameterization=parameters,
                optimizer=optimizer,
                temperature=TEMPERATURE,
                activation_weight=ACTIVATION,
                total_variation=VARIATION,
                l2=L2,
                batch_norm=0.0,
                batch_norm_distance="relative",
                max_shift=0,
                flip=0.0,
                num_steps=num_steps,
            )
        )

    init = noise(rescaled, optimizer)
    start = init(KEY, jnp.arange(4))
    found, _ = make_step(rescaled, 4)(start, teacher, LABELS, KEY)
    expected, one = start, make_step(pixels, 1)
    for _ in range(4):
        expected, _ = one(expected, teacher, LABELS, KEY)
        images = np.asarray(expected.params[0])
        low = images.min((1, 2, 3), keepdims=True)
        high = images.max((1, 2, 3), keepdims=True)
        images = (images - low) / (high - low)
        expected = expected.replace(params=(jnp.array(images),))
    np.testing.assert_allclose(found.params[0], expected.params[0], atol=1e-5)


def test_each_soft_label_starts_from_the_image_whose_answer_is_nearest(teacher):
    pixels = parameterization.bounded(
        parameterization.grids(SHAPE, factors=(2, 1), init_scale=0.5),
        normalize=teacher.normalize,
    )
    draw = jax.jit(functools.partial(shapes.draw, image_shape=SHAPE))
    init = step.make_init(
        parameterization=pixels,
        optimizer=optax.adam(RATE),
        draw=draw,
        temperature=TEMPERATURE,
    )
    index = jnp.arange(4)
    state = jax.jit(init)((teacher, KEY), (index, LABELS))
    keys = rng.per_example(rng.stream(KEY, "procedural images"), index)
    keys = jax.vmap(lambda key: jax.random.split(key, step.CANDIDATES))(keys)
    drawn = np.asarray(draw(keys.reshape(-1)))
    answers = jax.nn.log_softmax(teacher.logits(teacher.normalize(drawn)) / TEMPERATURE)
    losses = -(np.asarray(LABELS)[:, None] * np.asarray(answers)).sum(-1)
    np.testing.assert_array_equal(state.params[0], np.zeros_like(state.params[0]))
    begun = np.clip(drawn[losses.argmin(1)], 0.02, 0.98)
    np.testing.assert_allclose(
        pixels.render(state.params), teacher.normalize(begun), atol=1e-4
    )


def test_images_do_not_influence_each_other(teacher):
    init, steps = make(num_steps=10, max_shift=1, factors=(2, 1))
    together, _ = steps(init(KEY, jnp.arange(4)), teacher, LABELS, KEY)
    alone, _ = steps(init(KEY, jnp.array([2])), teacher, LABELS[2:3], KEY)
    for batch, single in zip(together.params, alone.params, strict=True):
        np.testing.assert_allclose(batch[2:3], single, atol=1e-5)


def test_loss_decreases_and_metrics_are_its_terms(teacher):
    init, steps = make(num_steps=60)
    _, metrics = steps(init(KEY, jnp.arange(4)), teacher, LABELS, KEY)
    total = (
        metrics["cross_entropy"]
        + ACTIVATION * metrics["activation"]
        + VARIATION * metrics["total_variation"]
        + L2 * metrics["l2"]
    )
    loss = np.asarray(metrics["loss"])
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert loss[0] > loss[20] > loss[40] > loss[59]


def test_batch_norm_prior_by_hand(normed):
    """Its value, that it counts once an image, and that the rest stays as it was."""
    init, with_prior = make(num_steps=1, batch_norm=0.7)
    _, without = make(num_steps=1)
    start = init(KEY, jnp.arange(4))
    metrics = with_prior(start, normed, LABELS, KEY)[1]
    others = without(start, normed, LABELS, KEY)[1]

    kept = normed.variables["batch_stats"]["first"]
    images = np.asarray(start.params[0], np.float64)
    # The second BatchNorm, of a dense layer, does not count.
    expected = np.linalg.norm(images.mean((0, 1, 2)) - kept["mean"]) + np.linalg.norm(
        images.var((0, 1, 2)) - kept["var"]
    )
    np.testing.assert_allclose(metrics["batch_norm"], [expected], rtol=1e-4)
    np.testing.assert_allclose(
        metrics["loss"], others["loss"] + 0.7 * expected, rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["cross_entropy"], others["cross_entropy"], rtol=1e-5
    )
    assert "batch_norm" not in others


class TwiceNormed(Normed):
    """With two BatchNorms of images, of which the second is ten times as far off."""

    @nn.compact
    def __call__(self, images, train=False):
        norm = {"use_running_average": not train, "epsilon": 0.0}
        nn.BatchNorm(name="again", **norm)(images)
        return super().__call__(10 * images, train=train)


@pytest.mark.parametrize(("distance", "share"), [("absolute", 1), ("relative", 0.5)])
def test_relative_distances_are_a_mean_over_layers(distance, share):
    module = TwiceNormed()
    found = module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    twice = described.network(module, found, SHAPE, num_classes=3)
    init, steps = make(num_steps=1, batch_norm=0.7, distance=distance)
    start = init(KEY, jnp.arange(4))
    images = np.asarray(start.params[0], np.float64)
    # Means of 0 and variances of 1 are kept, so that both distances are the same.
    expected = sum(
        abs((k * images).mean()) + abs((k * images).var() - 1) for k in (1, 10)
    )
    metrics = steps(start, twice, LABELS, KEY)[1]
    np.testing.assert_allclose(metrics["batch_norm"], [share * expected], rtol=1e-4)


def test_batch_norm_prior_is_met_and_statistics_stay(normed):
    init, steps = make(num_steps=300, batch_norm=10.0)
    before = jax.tree.map(np.array, normed.variables)
    _, metrics = steps(init(KEY, jnp.arange(4)), normed, LABELS, KEY)
    assert metrics["batch_norm"][-1] < 0.1 * metrics["batch_norm"][0]
    jax.tree.map(np.testing.assert_array_equal, before, normed.variables)


@pytest.mark.parametrize(("batch_norm", "alone"), [(0.0, True), (1.0, False)])
def test_batch_norm_prior_alone_couples_images(normed, batch_norm, alone):
    init, steps = make(num_steps=5, batch_norm=batch_norm)
    together, _ = steps(init(KEY, jnp.arange(4)), normed, LABELS, KEY)
    single, _ = steps(init(KEY, jnp.arange(2)), normed, LABELS[:2], KEY)
    difference = np.abs(together.params[0][:2] - single.params[0]).max()
    assert (difference < 1e-5) == alone


def test_batch_norm_prior_is_of_a_shard_however_many_devices_there_are(
    normed,
):
    """Four shards on four devices are the four shards one after the other."""
    init, steps = make(num_steps=5, max_shift=1, batch_norm=1.0)
    index = np.arange(16).reshape(4, 4)
    lifted = parallel.batch_parallel(steps)
    key, constants = parallel.replicate((KEY, normed))
    state = parallel.map_devices(init)(key, parallel.put_split(index))
    labels = parallel.put_split(np.tile(LABELS, (4, 1, 1)))
    state, metrics = lifted(state, constants, labels, key)
    for shard in range(4):
        expected, alone = steps(init(KEY, index[shard]), normed, LABELS, KEY)
        np.testing.assert_allclose(
            np.asarray(state.params[0])[shard], expected.params[0], atol=1e-5
        )
        np.testing.assert_allclose(
            metrics["batch_norm"][shard], alone["batch_norm"], rtol=1e-4
        )
