"""Layers that several networks share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class Conv(nn.Module):
    """Convolution with zeros of half the (odd) kernel's size on every side.

    That is PyTorch's `padding=kernel_size // 2`. It equals SAME at stride 1; at stride
    2 SAME would pad an image of even size on one side only. Parameters as `nn.Conv`'s.
    """

    num_features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to the same, `stride` times smaller."""
        half = self.kernel_size // 2
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (self.kernel_size, self.kernel_size, images.shape[-1], self.num_features),
        )
        outputs = jax.lax.conv_general_dilated(
            images,
            kernel,
            (self.stride, self.stride),
            ((half, half), (half, half)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_features,))
        return outputs + jnp.reshape(bias, (1, 1, 1, -1))


class GlobalAverage(nn.Module):
    """Mean over height and width; a module, so that it can be a feature layer."""

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to `[batch, channels]`."""
        return jnp.mean(images, axis=(1, 2))


def batch_norm(*, train: bool, name: str) -> nn.BatchNorm:
    """Batch normalization with the constants that PyTorch starts with.

    Its momentum of 0.1 is the weight of the new statistics; here 0.9 is the old ones'.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name
    )


def local_response_norm(
    images: jax.Array,
    *,
    radius: int = 2,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
) -> jax.Array:
    """`x / (bias + alpha · Σ x²)^beta`, the sum over `2 · radius + 1` channels.

    Krizhevsky et al. (2012), section 3.3, with the sum as in their formula and in
    TensorFlow; PyTorch's `LocalResponseNorm(size, alpha)` divides its alpha by `size`.

    Args:
        images: `[batch, height, width, channels]`.
        radius: Neighbors on either side; there are fewer at the ends.
        alpha: Weight of the sum.
        beta: Exponent.
        bias: Added to the sum; above 0.
    """
    num_channels = images.shape[-1]
    # Sums over neighbors as a product with a banded matrix and the power through the
    # logarithm: on a CPU twelve times as fast as slices and `**`.
    near = np.abs(np.subtract.outer(range(num_channels), range(num_channels)))
    total = jnp.square(images) @ (near <= radius).astype(images.dtype)
    return images * jnp.exp(-beta * jnp.log(bias + alpha * total))
