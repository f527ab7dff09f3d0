import functools

import described
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.models import registry
from dfkd_jax.targets import gaussian


def rank_deficient():
    """The covariance of 84 units by their 10 outgoing weights: rank 10."""
    vectors = jax.random.normal(jax.random.key(0), (84, 10))
    return gaussian.covariance(gaussian.correlation(vectors), sigma=1.5)


def close_to_singular():
    """Two units with the same weights, and a third that is their opposite."""
    return gaussian.correlation(jnp.array([[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0]]))


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        # 3·4 + 4·3 = 24 = 0.96 · 5 · 5.
        ([[3, 4], [4, 3]], [[1, 0.96], [0.96, 1]]),
        # Parallel, opposite and orthogonal, whatever the lengths.
        ([[1, 1], [-5, -5], [2, -2]], [[1, -1, 0], [-1, 1, 0], [0, 0, 1]]),
        # A unit without weights correlates with itself alone.
        ([[0, 0], [3, 4]], [[1, 0], [0, 1]]),
    ],
)
def test_correlation_by_hand(strict_dtypes, vectors, expected):
    result = gaussian.correlation(jnp.array(vectors, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_correlation_ignores_the_length_of_weights_and_has_ones_on_the_diagonal():
    vectors = jax.random.normal(jax.random.key(0), (20, 7))
    lengths = jnp.linspace(1e-3, 1e3, 20)[:, None]
    result = gaussian.correlation(vectors)
    np.testing.assert_allclose(
        gaussian.correlation(vectors * lengths), result, atol=1e-5
    )
    np.testing.assert_array_equal(np.diag(result), np.ones(20))
    assert np.abs(result).max() <= 1


# A convolution's kernel [2, 1, 2, 2]: two places, two inputs, two units.
KERNEL_4D = np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("kernel", "weights", "window", "expected"),
    [
        # Dense [2 inputs, 3 units]: columns go in, rows go out.
        ([[1, 2, 3], [4, 5, 6]], "incoming", "flatten", [[1, 4], [2, 5], [3, 6]]),
        ([[1, 2, 3], [4, 5, 6]], "outgoing", "flatten", [[1, 2, 3], [4, 5, 6]]),
        ([[1, 2, 3], [4, 5, 6]], "incoming", "average", [[1, 4], [2, 5], [3, 6]]),
        (KERNEL_4D, "incoming", "flatten", [[1, 3, 5, 7], [2, 4, 6, 8]]),
        (KERNEL_4D, "outgoing", "flatten", [[1, 2, 5, 6], [3, 4, 7, 8]]),
        (KERNEL_4D, "incoming", "average", [[3, 5], [4, 6]]),
        (KERNEL_4D, "outgoing", "average", [[3, 4], [5, 6]]),
    ],
)
def test_unit_vectors_by_hand(strict_dtypes, kernel, weights, window, expected):
    kernel = jnp.array(kernel, jnp.float32)
    result = gaussian.unit_vectors(kernel, weights=weights, window=window)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e25, 1e37])
def test_correlation_of_weights_of_any_size(strict_dtypes, size):
    vectors = jnp.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0], [4.0, -3.0]]) * size
    expected = np.eye(4)
    expected[0, 1] = expected[1, 0] = 0.96
    expected[1, 3] = expected[3, 1] = 0.28
    found = gaussian.correlation(vectors)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_any_finite_weights_give_a_finite_factor():
    hypothesis = pytest.importorskip("hypothesis", reason="comes with the extra tests")
    numbers = hypothesis.strategies.floats(-(2.0**126), 2.0**126, width=32)
    rows = hypothesis.strategies.lists(numbers, min_size=2, max_size=2)

    @hypothesis.settings(
        max_examples=25, deadline=None, derandomize=True, database=None
    )
    @hypothesis.given(hypothesis.strategies.lists(rows, min_size=3, max_size=3))
    def check(kernel):
        normal = gaussian.feature_normal(jnp.array(kernel, jnp.float32).T, sigma=2.0)
        covariance = normal.factor @ normal.factor.T
        assert np.isfinite(covariance).all()
        np.testing.assert_allclose(np.diag(covariance), 2.0, rtol=1e-4)

    check()


@pytest.mark.parametrize(("scale", "factor"), [("variance", 3.0), ("std", 9.0)])
def test_covariance_scales(strict_dtypes, scale, factor):
    correlation = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    result = gaussian.covariance(correlation, sigma=3.0, scale=scale)
    np.testing.assert_allclose(result, factor * correlation)


@pytest.mark.parametrize(
    "covariance",
    [
        jnp.array([[2.0, 1.0], [1.0, 2.0]]),
        rank_deficient(),
        close_to_singular(),
        jnp.zeros((3, 3)),
    ],
    ids=["regular", "rank 10 of 84", "rank 1 of 3", "zero"],
)
def test_factor_times_its_transpose_is_the_covariance(strict_dtypes, covariance):
    factor = gaussian.factor(covariance)
    assert np.isfinite(factor).all()
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=2e-5)


def test_samples_have_the_mean_and_covariance(strict_dtypes):
    mean = jnp.array([1.0, -2.0, 0.0])
    correlation = gaussian.correlation(jnp.array([[3.0, 4.0], [4.0, 3.0], [4.0, -3.0]]))
    covariance = gaussian.covariance(correlation, sigma=2.0)
    keys = jax.random.split(jax.random.key(0), 40_000)

    samples = gaussian.sample(keys, mean, gaussian.factor(covariance))

    # Standard errors: √(2 / 40,000) = 0.007 of a mean, 0.014 of a variance of 2.
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.035)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.07)


def test_sample_is_shifted_by_the_mean_and_independent_of_the_batch():
    keys = jax.random.split(jax.random.key(0), 6)
    factor = gaussian.factor(rank_deficient())
    mean = jnp.linspace(-3, 3, 84)

    sample = jax.jit(gaussian.sample)
    together = sample(keys, mean, factor)
    alone = jnp.concatenate([sample(keys[i : i + 1], mean, factor) for i in (3, 5)])

    np.testing.assert_allclose(together[jnp.array([3, 5])], alone, atol=1e-5)
    np.testing.assert_allclose(
        together - sample(keys, 0 * mean, factor),
        jnp.broadcast_to(mean, together.shape),
        atol=1e-5,
    )
    assert np.abs(np.diff(together, axis=0)).min(axis=0).max() > 0


@pytest.fixture(scope="module")
def teacher():
    network = registry.create("lenet5_half")
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    random = np.random.default_rng(0)
    return network, jax.tree.map(
        lambda leaf: jnp.array(random.normal(0, 0.2, leaf.shape), leaf.dtype), shapes
    )


@pytest.mark.parametrize("weights", ["incoming", "outgoing"])
@pytest.mark.parametrize(("scale", "factor"), [("variance", 1.5), ("std", 2.25)])
def test_feature_normal_is_built_from_the_right_layer(teacher, weights, scale, factor):
    params = teacher[1]["params"]
    layer = {"incoming": "dense_2", "outgoing": "output"}[weights]
    normal = gaussian.feature_normal(
        params[layer]["kernel"], sigma=1.5, scale=scale, weights=weights
    )
    rows = {
        "incoming": np.asarray(params["dense_2"]["kernel"]).T,
        "outgoing": np.asarray(params["output"]["kernel"]),
    }[weights]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        normal.factor @ normal.factor.T, factor * rows @ rows.T, atol=2e-5
    )
    np.testing.assert_array_equal(normal.mean, np.zeros(84))


def test_mean_and_standard_deviations_are_those_given():
    std = jnp.array([0.5, 2.0, 3.0])
    normal = gaussian.feature_normal(
        jnp.eye(2, 3), sigma=4.0, mean=jnp.array([1.0, 2.0, 3.0]), std=std
    )
    np.testing.assert_array_equal(normal.mean, [1, 2, 3])
    # The third unit has no weights: it correlates with none.
    np.testing.assert_allclose(
        normal.factor @ normal.factor.T, np.diag(4 * std**2), atol=1e-5
    )


def test_soft_labels_are_features_through_the_rest_of_the_teacher(teacher):
    network, variables = teacher
    kernel = variables["params"]["dense_2"]["kernel"]
    normal = gaussian.feature_normal(kernel, sigma=1.5)
    keys = jax.random.split(jax.random.key(1), 5)

    known = described.network(network, variables, (28, 28, 1))
    head = functools.partial(known.head, layer="dense_2")
    labels = gaussian.soft_labels(head, normal, shape=(84,))(keys)

    noise = np.stack([jax.random.normal(key, (84,)) for key in keys])
    hidden = np.maximum(noise @ np.asarray(normal.factor).T, 0)
    output = variables["params"]["output"]
    logits = hidden @ np.asarray(output["kernel"]) + np.asarray(output["bias"])
    odds = np.exp(logits)
    np.testing.assert_allclose(labels, odds / odds.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(labels.sum(1), np.ones(5), atol=1e-6)


NORMAL = gaussian.Normal(
    mean=jnp.array([1.0, -2.0]), factor=jnp.array([[1.0, 0.0], [0.5, 0.2]])
)


def test_maps_of_one_draw_are_the_same_everywhere():
    keys = jax.random.split(jax.random.key(0), 3)
    maps = np.asarray(gaussian.sample_maps(keys, NORMAL, shape=(4, 5, 2), grid=1))
    assert maps.shape == (3, 4, 5, 2)
    np.testing.assert_allclose(maps, maps[:, :1, :1] + np.zeros_like(maps))
    assert np.ptp(maps[:, 0, 0], axis=0).min() > 0


def test_maps_of_a_full_grid_are_independent_draws():
    keys = jax.random.split(jax.random.key(0), 400)
    maps = np.asarray(gaussian.sample_maps(keys, NORMAL, shape=(3, 2, 2), grid=9))
    for place in np.ndindex(3, 2):
        drawn = maps[:, *place]
        np.testing.assert_allclose(drawn.mean(0), NORMAL.mean, atol=0.2)
        np.testing.assert_allclose(
            np.cov(drawn.T), NORMAL.factor @ NORMAL.factor.T, atol=0.2
        )
    between = np.corrcoef(maps[:, 0, 0, 0], maps[:, 2, 1, 0])[0, 1]
    assert abs(between) < 0.2


def test_maps_between_are_smooth():
    keys = jax.random.split(jax.random.key(0), 50)
    rough, smooth = (
        np.abs(
            np.diff(
                gaussian.sample_maps(keys, NORMAL, shape=(8, 8, 2), grid=grid), axis=1
            )
        ).mean()
        for grid in (8, 2)
    )
    assert 0 < smooth < rough / 2


def unbalanced_head(features):
    """Three classes; the last is hardly ever likeliest."""
    return jnp.concatenate([features, features[:, :1] * 0 - 1.0], axis=1) * 3


def test_candidates_give_every_class_its_share():
    normal = gaussian.Normal(mean=jnp.zeros(2), factor=jnp.eye(2))
    keys = jax.random.split(jax.random.key(0), 600)
    shares = {}
    for candidates in (1, 200):
        draw = gaussian.soft_labels(
            unbalanced_head, normal, shape=(2,), candidates=candidates
        )
        labels = np.asarray(draw(keys))
        assert labels.shape == (600, 3)
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)
        shares[candidates] = np.bincount(labels.argmax(1), minlength=3) / 600
    assert shares[1][2] < 0.05
    np.testing.assert_allclose(shares[200], 1 / 3, atol=0.08)


def test_candidates_do_not_depend_on_the_neighbors_in_a_batch():
    normal = gaussian.Normal(mean=jnp.zeros(2), factor=jnp.eye(2))
    draw = gaussian.soft_labels(unbalanced_head, normal, shape=(2,), candidates=5)
    keys = jax.random.split(jax.random.key(3), 8)
    np.testing.assert_array_equal(draw(keys)[2:5], draw(keys[2:5]))
