import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.models import layers


def test_local_response_norm_by_hand():
    images = jnp.array([1.0, 2.0, 3.0, -4.0]).reshape(1, 1, 1, 4)
    outputs = layers.local_response_norm(
        images, radius=1, alpha=0.5, beta=0.5, bias=2.0
    )
    sums = np.array([1 + 4, 1 + 4 + 9, 4 + 9 + 16, 9 + 16])
    expected = np.array([1, 2, 3, -4]) / np.sqrt(2 + 0.5 * sums)
    np.testing.assert_allclose(outputs[0, 0, 0], expected, rtol=1e-6)


def test_local_response_norm_defaults_sum_over_five_channels():
    images = np.random.default_rng(0).normal(0, 50, (2, 3, 3, 9)).astype(np.float32)
    expected = np.empty_like(images)
    for channel in range(9):
        near = images[..., max(0, channel - 2) : channel + 3]
        expected[..., channel] = (
            images[..., channel] / (1 + 1e-4 * (near**2).sum(-1)) ** 0.75
        )
    outputs = layers.local_response_norm(jnp.array(images))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_local_response_norm_of_nothing_has_a_gradient():
    gradient = jax.grad(lambda x: jnp.sum(layers.local_response_norm(x)))
    np.testing.assert_array_equal(gradient(jnp.zeros((1, 1, 1, 6))), 1)


def test_local_response_norm_is_pytorchs_with_alpha_times_size():
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    images = np.random.default_rng(0).normal(0, 50, (2, 3, 4, 9)).astype(np.float32)
    expected = torch.nn.functional.local_response_norm(
        torch.tensor(images.transpose(0, 3, 1, 2)), size=5, alpha=5e-4, beta=0.75
    )
    outputs = layers.local_response_norm(jnp.array(images))
    np.testing.assert_allclose(
        outputs, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5
    )


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 2), (5, 2)])
def test_conv_pads_both_sides_alike(kernel_size, stride, use_bias):
    random = np.random.default_rng(0)
    images = random.normal(size=(2, 8, 6, 3)).astype(np.float32)
    kernel = random.normal(size=(kernel_size, kernel_size, 3, 4)).astype(np.float32)
    bias = {"bias": jnp.arange(4.0)} if use_bias else {}
    params = {"kernel": jnp.array(kernel)} | bias
    ours = layers.Conv(4, kernel_size=kernel_size, stride=stride, use_bias=use_bias)
    half = kernel_size // 2
    flax = nn.Conv(
        4,
        (kernel_size, kernel_size),
        strides=stride,
        padding=[(half, half), (half, half)],
        use_bias=use_bias,
    )
    expected = flax.apply({"params": params}, images)
    outputs = ours.apply({"params": params}, jnp.array(images))
    assert outputs.shape == (2, 8 // stride, 6 // stride, 4)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_global_average_by_hand():
    images = jnp.array([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 8.0], [7.0, 0.0]]])[None]
    outputs = layers.GlobalAverage().apply({}, images)
    np.testing.assert_allclose(outputs, [[4, 2]])


def test_batch_norm_keeps_nine_tenths_of_the_old_statistics():
    norm = layers.batch_norm(train=True, name="bn_1")
    images = jnp.array([[1.0], [5.0]])
    variables = norm.init(jax.random.key(0), images)
    outputs, changed = norm.apply(variables, images, mutable="batch_stats")
    np.testing.assert_allclose(outputs, [[-1], [1]], atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], [0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(
        changed["batch_stats"]["var"], [0.9 * 1 + 0.1 * 4], rtol=1e-6
    )
    narrow = norm.apply(variables, images * 1e-3, mutable="batch_stats")[0]
    np.testing.assert_allclose(narrow[1], 2e-3 / np.sqrt(4e-6 + 1e-5), rtol=1e-4)
