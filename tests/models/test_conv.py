import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.models import conv, layers
from dfkd_jax.models.conv import conv_pool, max_pool

IMPLEMENTATIONS = ("native", "blocked", "explicit")
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
    "many inputs": ((4, 4), (3, 3, 17, 2), "SAME", 1, 4),
    "1 × 1": ((4, 4), (1, 1, 3, 2), "SAME", 1, 4),
}


def random_case(size, kernel_shape):
    random = np.random.default_rng(0)
    images = random.normal(size=(3, *size, kernel_shape[2])).astype(np.float32)
    return images, random.normal(size=kernel_shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(function, *arrays):
    """Another weight for every output, so that no two gradients could be confused."""

    def weighted(*arrays):
        outputs = function(*arrays)
        cotangent = jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32))
        return jnp.sum(cotangent.reshape(outputs.shape) * outputs), outputs

    (_, outputs), gradients = jax.value_and_grad(
        weighted, argnums=range(len(arrays)), has_aux=True
    )(*arrays)
    return outputs, *gradients


def assert_equal(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "pool", "block"), SHAPES.values(), ids=SHAPES
)
def test_all_equal_the_native(strict_dtypes, size, kernel, padding, pool, block):
    images, kernel = random_case(size, kernel)
    native, blocked, explicit = (
        values_and_gradients(
            functools.partial(
                conv_pool, padding=padding, pool=pool, implementation=implementation
            ),
            images,
            kernel,
        )
        for implementation in IMPLEMENTATIONS
    )
    assert_equal(blocked, native)
    assert_equal(explicit, native)
    assert conv._block_size(*native[0].shape[1:3], pool) == block


def test_explicit_gradient_inside_a_loop():
    """Where it is needed: images that are moved by their gradient again and again."""
    images, kernel = map(jnp.array, random_case((6, 7), (5, 3, 2, 4)))

    @functools.partial(jax.jit, static_argnums=0)
    def optimise(implementation):
        def loss(images):
            outputs = conv_pool(
                images, kernel, padding="SAME", implementation=implementation
            )
            return jnp.sum(jnp.square(outputs)) / 1_000

        def move(images, _):
            return images - jax.grad(loss)(images), None

        return jax.lax.scan(move, images, length=5)[0]

    explicit, native = optimise("explicit"), optimise("native")
    assert np.abs(native - images).max() > 0.1
    np.testing.assert_allclose(explicit, native, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [((8, 6), 3, 2), ((7, 9), 3, 2), ((9, 8), 5, 3), ((5, 4), 1, 2)],
)
def test_stride_keeps_every_other_output(size, kernel, stride):
    """Zeros on every side alike, also where XLA's SAME would pad one side only."""
    images, kernel = random_case(size, (kernel, kernel, 2, 3))

    def every(images, kernel):
        return conv_pool(images, kernel, padding="SAME")[:, ::stride, ::stride]

    strided = functools.partial(conv_pool, padding="SAME", stride=stride)
    assert_equal(
        values_and_gradients(strided, images, kernel),
        values_and_gradients(every, images, kernel),
    )


@pytest.mark.parametrize("size", [(7, 7), (8, 9), (15, 3)])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 2), (3, 2), (3, 1), (2, 3)])
def test_pooling_equals_the_native(size, window, stride):
    images, _ = random_case(size, (1, 1, 4, 1))
    pool = functools.partial(max_pool, window=window, stride=stride)
    assert_equal(
        values_and_gradients(
            functools.partial(pool, implementation="explicit"), images
        ),
        values_and_gradients(functools.partial(pool, implementation="native"), images),
    )


@pytest.mark.parametrize("implementation", ["native", "explicit"])
def test_overlapping_pooling_by_hand(implementation):
    images = jnp.array([[5, 1, 0, -3, -2, 9]] * 3, jnp.float32).reshape(1, 3, 6, 1)
    pooled = max_pool(images, window=3, stride=2, implementation=implementation)
    np.testing.assert_array_equal(pooled, [[[[5], [0]]]])


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


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "expected"),
    [
        (1, 6, 1, "blocked"),
        (6, 16, 1, "blocked"),
        (1, 64, 1, "explicit"),
        (16, 1, 1, "explicit"),
        (1, 6, 2, "explicit"),
        (1, 64, 2, "explicit"),
    ],
)
def test_default_on_cpu(inputs, outputs, stride, expected):
    def program(implementation):
        return jax.make_jaxpr(
            lambda images, kernel: conv_pool(
                images,
                kernel,
                padding="SAME",
                stride=stride,
                implementation=implementation,
            )
        )(*random_case((8, 8), (3, 3, inputs, outputs)))

    assert str(program(None)) == str(program(expected))
    others = set(IMPLEMENTATIONS if stride == 1 else ("native", "explicit")) - {
        expected
    }
    assert not [name for name in others if str(program(name)) == str(program(None))]


@pytest.mark.parametrize("outputs", [6, 64])
def test_other_backends_get_the_native(monkeypatch, outputs):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert conv._fastest((3, 3, 1, outputs), 1) == "native"


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


def test_native_operations_are_asked_for_within_a_block_alone():
    """On a CPU, where the tests run, something else is the fastest."""
    before = conv._fastest((3, 3, 1, 8), 1)
    with pytest.raises(KeyError), conv.native_operations():
        assert conv._fastest((3, 3, 1, 8), 1) == "native"
        raise KeyError
    assert conv._fastest((3, 3, 1, 8), 1) == before == "blocked"
