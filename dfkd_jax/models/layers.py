"""Layers that several networks share."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from dfkd_jax.models.conv import conv_pool


class ConvPool(nn.Module):
    """Stride-1 convolution with bias, then max pooling. Parameters as `nn.Conv`'s."""

    num_features: int
    kernel_size: Sequence[int] = (5, 5)
    padding: str = "SAME"
    pool: int = 1

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to the same, `pool` times smaller."""
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (*self.kernel_size, images.shape[-1], self.num_features),
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_features,))
        outputs = conv_pool(images, kernel, padding=self.padding, pool=self.pool)
        # The bias may follow the maximum: adding a constant keeps the order.
        return outputs + jnp.reshape(bias, (1, 1, 1, -1))
