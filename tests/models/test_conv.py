import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.models import conv, layers
from dfkd_jax.models.conv import conv_pool

IMPLEMENTATIONS = ("native", "blocked")
# Image, kernel (HWIO), padding, pooling, and the block that these lead to.
SHAPES = {
    "LeNet-5, first": ((28, 28), (5, 5, 1, 6), "SAME", 2, 4),
    "LeNet-5 half, second": ((14, 14), (5, 5, 3, 8), "VALID", 2, 2),
    "no pooling, block 4": ((8, 12), (3, 3, 2, 3), "SAME", 1, 4),
    "no pooling, block 2": ((6, 8), (3, 3, 2, 3), "SAME", 1, 2),
    "one pixel left": ((5, 5), (5, 5, 2, 3), "VALID", 1, 1),
    "even kernel": ((9, 10), (2, 3, 1, 2), "VALID", 2, 4),
    "dropped row": ((11, 8), (3, 5, 2, 2), "VALID", 2, 4),
    "pool 3": ((9, 9), (3, 3, 1, 2), "SAME", 3, 3),
    "pool 3, dropped row": ((8, 10), (2, 2, 2, 2), "VALID", 3, 3),
}


def random_case(size, kernel_shape):
    random = np.random.default_rng(0)
    images = random.normal(size=(3, *size, kernel_shape[2])).astype(np.float32)
    return images, random.normal(size=kernel_shape).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "pool", "block"), SHAPES.values(), ids=SHAPES
)
def test_blocked_equals_native(strict_dtypes, size, kernel, padding, pool, block):
    images, kernel = random_case(size, kernel)

    def values_and_gradients(images, kernel, implementation):
        def weighted(images, kernel):
            outputs = conv_pool(
                images,
                kernel,
                padding=padding,
                pool=pool,
                implementation=implementation,
            )
            # Another weight for every output.
            cotangent = jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32))
            return jnp.sum(cotangent.reshape(outputs.shape) * outputs), outputs

        (_, outputs), gradients = jax.value_and_grad(
            weighted, argnums=(0, 1), has_aux=True
        )(images, kernel)
        return outputs, *gradients

    compiled = jax.jit(values_and_gradients, static_argnums=2)
    native = compiled(images, kernel, "native")
    blocked = compiled(images, kernel, "blocked")

    for one, other in zip(native, blocked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-4)
    assert conv._block_size(*native[0].shape[1:3], pool) == block


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("kernel", "padding", "pool", "expected"),
    [
        # x[i, j] + 2 x[i, j+1] - x[i+1, j+1], where the kernel fits.
        ([[1, 2], [0, -1]], "VALID", 1, [[0, 2], [6, 8]]),
        ([[1, 2], [0, -1]], "VALID", 2, [[8]]),
        # The pixel and the one above it.
        (
            [[0, 1, 0], [0, 1, 0], [0, 0, 0]],
            "SAME",
            1,
            [[1, 2, 3], [5, 7, 9], [11, 13, 15]],
        ),
        ([[0, 1, 0], [0, 1, 0], [0, 0, 0]], "SAME", 2, [[7]]),
        ([[0, 1, 0], [0, 1, 0], [0, 0, 0]], "SAME", 3, [[15]]),
        # Maxima below 0: padding must not win.
        ([[-1]], "VALID", 3, [[-1]]),
    ],
)
def test_three_by_three_by_hand(implementation, kernel, padding, pool, expected):
    images = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    outputs = conv_pool(
        images,
        jnp.array(kernel, jnp.float32)[..., None, None],
        padding=padding,
        pool=pool,
        implementation=implementation,
    )
    np.testing.assert_allclose(outputs[0, :, :, 0], expected, atol=1e-6)


def test_default_on_cpu_is_blocked():
    def program(implementation):
        return jax.make_jaxpr(
            lambda images, kernel: conv_pool(
                images, kernel, padding="SAME", implementation=implementation
            )
        )(*random_case((8, 8), (3, 3, 1, 2)))

    assert str(program(None)) == str(program("blocked")) != str(program("native"))


def test_layer_equals_flax():
    """Weights of `nn.Conv` fit, and the bias may follow the maximum."""
    images, kernel = random_case((14, 14), (5, 5, 3, 8))
    params = {"kernel": jnp.array(kernel), "bias": jnp.linspace(-1, 1, 8)}

    @jax.jit
    def both(images):
        ours = layers.ConvPool(8, padding="VALID", pool=2)
        flax = nn.Conv(8, (5, 5), padding="VALID").apply({"params": params}, images)
        return (
            ours.apply({"params": params}, images),
            nn.max_pool(flax, (2, 2), (2, 2)),
        )

    ours, flax = both(images)
    np.testing.assert_allclose(ours, flax, rtol=1e-5, atol=1e-4)
