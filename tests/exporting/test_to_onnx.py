"""Operations of image networks as ONNX, against JAX."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export, lax

from dfkd_jax.exporting import to_onnx

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in to_onnx.PACKAGES),
    reason="the onnx extra is not installed",
)
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)


def convolution(x):
    return lax.conv_general_dilated(
        x, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_jvp
def square(x):
    return x * x


square.defjvp(lambda primals, tangents: (square(*primals), tangents[0]))


FUNCTIONS = {
    "max_pool": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max_pool_overlapping": lambda x: nn.max_pool(x, (3, 2), (2, 1), "SAME"),
    "max_pool_padded": lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 0), (0, 2))),
    "max_pool_twice": lambda x: nn.max_pool(
        nn.relu(nn.max_pool(x, (2, 2), (2, 2))), (2, 2), (1, 1)
    ),
    "avg_pool": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (2, 3), (0, 1)), constant_values=0.5),
    "convolution": convolution,
    "nested": jax.jit(lambda x: jax.jit(nn.relu6)(square(x)) + nn.silu(x)),
    "mean": lambda x: x.mean((1, 2)),
    "unchanged": lambda x: x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operation_computes_the_same_for_any_batch(name):
    import onnx

    function = FUNCTIONS[name]
    spec = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), 9, 8, 2), np.float32)
    model = to_onnx.convert(
        lambda x: function(x) * 2,
        spec,
        name="toy",
        input_name="x",
        output_name="y",
        metadata={"key": "value"},
    )
    graph = onnx.load_from_string(model).graph
    read = {name for node in graph.node for name in node.input}
    assert {constant.name for constant in graph.initializer} <= read
    run = to_onnx.load(model)
    for batch in (1, 3):
        # Below zero as well: padding must not count as zero.
        x = np.random.default_rng(batch).normal(-2, 1, (batch, 9, 8, 2))
        x = x.astype(np.float32)
        np.testing.assert_allclose(run({"x": x}), 2 * function(x), rtol=1e-5, atol=1e-5)


def test_metadata_and_names_are_in_the_model():
    import onnx

    spec = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), 3), np.float32)
    model = onnx.load_from_string(
        to_onnx.convert(
            nn.relu,
            spec,
            name="toy",
            input_name="pixels",
            output_name="scores",
            metadata={"key": "value"},
        )
    )
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [
        ("key", "value")
    ]
    assert model.graph.name == "toy"
    assert [value.name for value in model.graph.input] == ["pixels"]
    assert [value.name for value in model.graph.output] == ["scores"]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch"
