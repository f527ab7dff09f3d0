"""Networks that compute in bfloat16 while what they keep stays float32.

Accelerators multiply bfloat16 matrices several times as fast as float32 ones, and
activations take half the memory. Parameters, their optimiser, images, running
statistics, logits, features, losses and gradients stay float32: a value is rounded on
its way into the network alone (mixed precision after Micikevicius et al., 2018, whose
loss scaling bfloat16 does not need: it has the range of float32).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def cast(tree: Any, dtype: Any) -> Any:
    """`tree` with its floating-point leaves in `dtype`; others as they are."""
    return jax.tree.map(
        lambda leaf: (
            leaf.astype(dtype)
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            else leaf
        ),
        tree,
    )


def compute_in(module: nn.Module, dtype: str) -> nn.Module:
    """A module like `module`, whose `apply` computes in `dtype`.

    Parameters and images are rounded on the way in, everything that comes out is
    float32. Running statistics (BatchNorm's) are never rounded, and BatchNorm takes its
    means in float32. The gradient of rounding is the identity.

    Args:
        module: Returned as it is for "float32".
        dtype: "float32" or "bfloat16".
    """
    if dtype == "float32":
        return module

    class Rounded(type(module)):
        def apply(self, variables, *args, **kwargs):
            rounded = {"params": cast(variables["params"], dtype)}
            args = cast(args, dtype)
            outputs = super().apply({**variables, **rounded}, *args, **kwargs)
            return cast(outputs, jnp.float32)

    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.init and field.name not in ("parent", "name")
    }
    return Rounded(**fields)
