"""Networks that compute in bfloat16 while what they keep stays float32.

Accelerators multiply bfloat16 matrices several times as fast as float32 ones, and
activations take half the memory. Parameters, their optimizer, images, running
statistics, logits, features, losses and gradients stay float32: a value is rounded on
its way into the network alone (mixed precision after Micikevicius et al., 2018, whose
loss scaling bfloat16 does not need: it has the range of float32).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dfkd_jax.models.network import Model, Network


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


@dataclasses.dataclass(frozen=True)
class Rounded(Model):
    """A model like `model` that computes in `dtype`.

    Parameters and images are rounded on the way in, everything that comes out is
    float32. Running statistics (BatchNorm's) are never rounded, and BatchNorm takes its
    means in float32. The gradient of rounding is the identity.
    """

    model: Model
    dtype: str

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.name

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """See `Model`."""
        rounded = {**variables, "params": cast(variables["params"], self.dtype)}
        outputs = self.model(rounded, cast(images, self.dtype), *key)
        return cast(outputs, jnp.float32)

    def init(self, key: Any, image_shape: tuple[int, ...]) -> Any:
        """Variables in float32."""
        return self.model.init(key, image_shape)


def compute_in(model: Model, dtype: str) -> Model:
    """The model as it computes in `dtype`: itself for "float32"; or "bfloat16"."""
    return model if dtype == "float32" else Rounded(model, dtype)


def network_in(network: Network, dtype: str) -> Network:
    """The network as it computes in `dtype`."""
    return dataclasses.replace(network, model=compute_in(network.model, dtype))
