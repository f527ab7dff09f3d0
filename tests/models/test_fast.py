"""Fast forms against the native operations, of whoever wrote them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.models import fast, jaxprs

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def assert_as_native(function, *arrays):
    """Values and gradients, each to 1e-5 of its largest number."""

    def weighted(function, *arrays):
        outputs = function(*arrays)
        cotangent = jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32))
        return jnp.sum(cotangent.reshape(outputs.shape) * outputs), outputs

    def both(*arrays):
        return [
            jax.value_and_grad(
                functools.partial(weighted, one), range(len(arrays)), has_aux=True
            )(*arrays)
            for one in (function, fast.faster(function))
        ]

    ((_, native), gradients), ((_, ours), own) = jax.jit(both)(*arrays)
    for one, other in zip((native, *gradients), (ours, *own), strict=True):
        assert one.shape == other.shape
        scale = max(float(jnp.abs(one).max(initial=0)), 1e-3)
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * scale)


def is_planned(function, *arrays):
    closed = jaxprs.flat(jax.make_jaxpr(function)(*arrays))
    return bool(fast.plan(closed.jaxpr.eqns, closed.jaxpr.outvars))


CONVOLUTIONS = {
    # Size, kernel, inputs, outputs, stride, padding, dilation, groups.
    "few": ((9, 8), (3, 3), 2, 3, (1, 1), "SAME", (1, 1), 1),
    "few, even kernel": ((7, 8), (2, 4), 1, 6, (1, 1), "SAME", (1, 1), 1),
    "few, one side": ((7, 6), (3, 2), 2, 3, (1, 1), ((0, 2), (1, 0)), (1, 1), 1),
    "few, cut": ((7, 6), (3, 2), 2, 3, (1, 1), ((-1, 2), (1, -2)), (1, 1), 1),
    "many": ((6, 7), (3, 5), 9, 4, (1, 1), "SAME", (1, 1), 1),
    "strided": ((8, 7), (3, 3), 9, 4, (2, 2), "SAME", (1, 1), 1),
    "strided, unseen": ((9, 10), (3, 2), 3, 40, (3, 4), "VALID", (1, 1), 1),
    "strided, one side": ((8, 9), (3, 3), 9, 4, (2, 1), ((0, 1), (2, 0)), (1, 1), 1),
    "dilated": ((9, 8), (3, 3), 9, 4, (1, 1), "SAME", (2, 3), 1),
    "dilated, strided": ((11, 12), (3, 2), 2, 3, (2, 3), ((1, 2), (0, 3)), (2, 1), 1),
    "1 × 1": ((5, 4), (1, 1), 9, 4, (1, 1), "VALID", (1, 1), 1),
    "1 × 1, strided": ((5, 4), (1, 1), 9, 4, (2, 3), "VALID", (1, 1), 1),
    "1 × 1, padded": ((5, 4), (1, 1), 9, 4, (2, 3), ((1, 0), (2, 1)), (1, 1), 1),
    "groups": ((6, 7), (3, 3), 8, 4, (2, 1), "SAME", (1, 1), 2),
    "depthwise": ((6, 7), (3, 3), 4, 4, (1, 1), "SAME", (1, 1), 4),
    "depthwise, two each": ((6, 7), (3, 2), 3, 6, (2, 1), "SAME", (1, 2), 3),
    "depthwise, many": ((6, 7), (3, 3), 20, 20, (2, 2), "SAME", (1, 1), 20),
    "one axis": ((11,), (3,), 9, 4, (2,), "SAME", (1,), 1),
    "one axis, depthwise": ((11,), (3,), 4, 4, (1,), "SAME", (1,), 4),
    "three axes": ((4, 5, 6), (3, 2, 3), 3, 4, (1, 2, 1), "SAME", (1, 1, 1), 1),
}
LAYOUTS = {1: ("NWC", "WIO", "NCW", "OIW"), 3: ("NDHWC", "DHWIO", "NCDHW", "OIDHW")}
LAYOUTS[2] = ("NHWC", "HWIO", "NCHW", "OIHW")


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [(name, place % 2 == 0) for place, name in enumerate(CONVOLUTIONS)]
    + [("few", False), ("strided, one side", False), ("depthwise", False)],
)
def test_convolutions(name, channels_last):
    size, window, inputs, outputs, stride, padding, dilation, groups = CONVOLUTIONS[
        name
    ]
    last, io, first, oi = LAYOUTS[len(size)]
    images = normal(2, *size, inputs)
    kernel = normal(*window, inputs // groups, outputs)
    spec = (last, io, last) if channels_last else (first, oi, first)
    if not channels_last:
        images, kernel = (
            jnp.moveaxis(images, -1, 1),
            jnp.moveaxis(kernel, (-1, -2), (0, 1)),
        )

    def function(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            stride,
            padding,
            rhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=spec,
        )

    assert is_planned(function, images, kernel)
    assert_as_native(function, images, kernel)


@pytest.mark.parametrize(
    ("kind", "size", "window", "stride", "padding", "dilation"),
    [
        ("max", (8, 6), 2, 2, "VALID", 1),
        ("max", (9, 7), 3, 2, "SAME", 1),
        ("max", (7, 7), 3, 2, ((1, 1), (1, 1)), 1),
        ("max", (7, 8), 2, 3, "VALID", 1),
        ("max", (9, 8), 3, 1, ((0, 1), (2, 0)), 1),
        ("sum", (8, 6), 2, 2, "VALID", 1),
        ("sum", (9, 7), 3, 2, "SAME", 1),
        ("sum", (9, 7), 2, 2, "VALID", 1),
        ("sum", (9, 8), 3, 1, ((0, 1), (2, 0)), 2),
        ("sum", (5, 6), 5, 1, "VALID", 1),
        ("sum", (30, 30), 30, 30, "VALID", 1),
    ],
)
def test_pooling(kind, size, window, stride, padding, dilation):
    channels_last = size[0] % 2 == 0
    shape = (2, *size, 3) if channels_last else (2, 3, *size)
    around = (
        (lambda two, one: (one, *two, one))
        if channels_last
        else (lambda two, one: (one, one, *two))
    )
    if not isinstance(padding, str):
        padding = around(padding, (0, 0))

    def function(images):
        start, reduce = (-jnp.inf, jax.lax.max) if kind == "max" else (0.0, jax.lax.add)
        return jax.lax.reduce_window(
            images,
            start,
            reduce,
            around((window, window), 1),
            around((stride, stride), 1),
            padding,
            window_dilation=around((dilation, dilation), 1),
        )

    images = normal(*shape)
    assert is_planned(function, images)
    assert_as_native(function, images)


CHAINS = {
    "ReLU": nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "nothing": lambda x: x,
    # Not one that grows: maxima may not come first.
    "absolute": jnp.abs,
    "GELU": nn.gelu,
}


@pytest.mark.parametrize(
    ("outputs", "activation", "pool"),
    [
        *((3, activation, "max") for activation in CHAINS),
        *((3, "tanh", pool) for pool in ("max, padded", "avg", "avg, overlapping")),
        *((40, "ReLU", pool) for pool in ("max", "max, padded", "avg")),
    ],
)
def test_convolution_bias_activation_and_pooling(outputs, activation, pool):
    def function(images, kernel, bias):
        hidden = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = CHAINS[activation](hidden + bias.reshape(1, 1, 1, -1))
        if pool == "max, padded":
            return nn.max_pool(hidden, (3, 3), (2, 2), ((1, 1), (1, 1)))
        if pool == "avg, overlapping":
            return nn.avg_pool(hidden, (3, 3), (2, 2), "SAME", count_include_pad=False)
        return (nn.max_pool if pool == "max" else nn.avg_pool)(hidden, (2, 2), (2, 2))

    assert_as_native(
        function, normal(2, 8, 7, 2), normal(3, 3, 2, outputs), normal(outputs)
    )


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_what_is_added_along_another_axis_than_channels(axis):
    """Rows have a value of their own: the maximum over rows must come after it."""
    shape = [1, 1, 1, 1]
    shape[axis] = (2, 8, None, 3)[axis]

    def function(images, kernel, value):
        hidden = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.max_pool(hidden + value, (2, 2), (2, 2))

    assert_as_native(function, normal(2, 8, 8, 2), normal(3, 3, 2, 3), normal(*shape))


def test_what_is_read_twice_is_computed_as_it_is():
    def function(images, kernel):
        hidden = nn.relu(jax.lax.conv(images, kernel, (1, 1), "SAME"))
        pooled = jax.lax.reduce_window(
            hidden, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
        )
        return jnp.concatenate([pooled.reshape(2, -1), hidden.reshape(2, -1)], axis=1)

    assert_as_native(function, normal(2, 2, 6, 6), normal(3, 2, 3, 3))


def test_inside_of_loops_branches_and_calls():
    kernels = normal(2, 3, 3, 4, 4)

    def convolve(images, kernel):
        return nn.Conv(4, (3, 3), use_bias=False).apply(
            {"params": {"kernel": kernel}}, images
        )

    def function(images, kernels):
        def layer(images, kernel):
            hidden = jax.checkpoint(convolve)(images, kernel)
            return jax.lax.cond(
                jnp.sum(kernel) > 0, nn.relu, lambda x: convolve(x, kernel), hidden
            ), None

        return jax.lax.scan(layer, images, kernels)[0]

    assert_as_native(function, normal(2, 6, 6, 4), kernels)
    native = jax.make_jaxpr(jax.grad(lambda x: function(x, kernels).sum()))
    ours = jax.make_jaxpr(jax.grad(lambda x: fast.faster(function)(x, kernels).sum()))
    images = normal(2, 6, 6, 4)
    assert "scan" in str(ours(images))
    assert str(ours(images)) != str(native(images))


@pytest.mark.parametrize(
    "function",
    [
        # Whole numbers, transposed convolutions, long windows, gradients of others.
        lambda x: jax.lax.conv(
            x.astype(jnp.int32), jnp.ones((3, 2, 2, 2), jnp.int32), (1, 1), "SAME"
        ),
        lambda x: jax.lax.conv_transpose(
            x,
            jnp.ones((2, 2, 2, 3)),
            (2, 2),
            "SAME",
            dimension_numbers=("NCHW", "HWIO", "NCHW"),
        ),
        lambda x: jax.lax.reduce_window(
            x,
            0.0,
            jax.lax.add,
            (1, 1, 20, 1),
            (1, 1, 1, 1),
            ((0, 0), (0, 0), (19, 0), (0, 0)),
        ),
    ],
)
def test_what_is_left_as_it_is(function):
    images = normal(2, 2, 24, 6)
    assert not is_planned(function, images)
    np.testing.assert_array_equal(function(images), fast.faster(function)(images))


def test_other_machines_get_what_is_written(monkeypatch):
    def program(images):
        return nn.max_pool(images, (2, 2))

    images = normal(2, 4, 4, 1)
    native = str(jax.make_jaxpr(program)(images))
    assert str(jax.make_jaxpr(fast.faster(program))(images)) != native
    with pytest.raises(KeyError), fast.native_operations():
        assert str(jax.make_jaxpr(fast.faster(program))(images)) == native
        raise KeyError
    assert fast.best() is fast.plan
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fast.best() is None
    assert str(jax.make_jaxpr(fast.faster(program))(images)) == native


def test_under_vmap_and_twice_differentiated():
    def function(images, kernel):
        hidden = nn.Conv(3, (3, 3), use_bias=False).apply(
            {"params": {"kernel": kernel}}, images
        )
        return jnp.sum(nn.avg_pool(jnp.tanh(hidden), (2, 2), (2, 2)) ** 2)

    images, kernel = normal(3, 2, 6, 6, 9), normal(3, 3, 9, 3)

    def norm(function, images):
        return jnp.sum(jax.grad(function, 1)(images, kernel) ** 2)

    ours, native = (
        jax.jit(jax.vmap(jax.grad(functools.partial(norm, one))))(images)
        for one in (fast.faster(function), function)
    )
    np.testing.assert_allclose(
        ours, native, rtol=1e-4, atol=1e-4 * np.abs(native).max()
    )
