"""Layers that several networks share."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dfkd_jax.errors import ConfigError
from dfkd_jax.models.conv import conv_pool


class ConvPool(nn.Module):
    """Stride-1 convolution with bias, then max pooling. Parameters as `nn.Conv`'s."""

    num_features: int
    kernel_size: Sequence[int] = (5, 5)
    padding: str = "SAME"
    pool: int = 1

    @nn.compact
    def __call__(self, images, *, implementation: str | None = None):
        """`[batch, height, width, channels]` to the same, `pool` times smaller.

        Args:
            images: Any float images.
            implementation: See `conv_pool`.
        """
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (*self.kernel_size, images.shape[-1], self.num_features),
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_features,))
        outputs = conv_pool(
            images,
            kernel,
            padding=self.padding,
            pool=self.pool,
            implementation=implementation,
        )
        # The bias may follow the maximum: adding a constant keeps the order.
        return outputs + jnp.reshape(bias, (1, 1, 1, -1))


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
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (self.kernel_size, self.kernel_size, images.shape[-1], self.num_features),
        )
        stride = self.stride
        if self.kernel_size == 1:
            # The pixels that a strided 1×1 convolution leaves out need no arithmetic.
            images, stride = images[:, ::stride, ::stride], 1
        outputs = conv_pool(images, kernel, padding="SAME", stride=stride)
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


def linear(
    layer: nn.Module, inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """What a layer would say with another kernel and bias, before any pooling.

    Args:
        layer: `Conv`, `ConvPool`, or linen's `nn.Dense` or `nn.Conv`.
        inputs: `[batch, …, inputs]`, as the layer gets them.
        kernel: `[…, inputs, units]`, with any number of units.
        bias: `[units]`, or None for none.

    Returns:
        `[places, units]`.

    Raises:
        ConfigError: It is another layer, or its kernel has groups or a mask.
    """
    params = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    num_units = kernel.shape[-1]
    match layer:
        case nn.Dense() | nn.Conv(feature_group_count=1, mask=None):
            changes = {"features": num_units, "use_bias": bias is not None}
        case Conv():
            changes = {"num_features": num_units, "use_bias": bias is not None}
        case ConvPool():
            changes = {"num_features": num_units, "pool": 1}
            params.setdefault("bias", jnp.zeros(num_units))
        case _:
            raise ConfigError(
                f"{layer.name!r} is a {type(layer).__name__} of a kind that cannot be "
                "fitted by least squares"
            )
    # A copy that belongs to no network, since the call that `layer` is of may be over.
    free = layer.clone(parent=None, name=None, **changes)
    return free.apply({"params": params}, inputs).reshape(-1, num_units)


def patches(layer: nn.Module, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[places, window · inputs]`, what the kernel is multiplied with; see `linear`.

    `linear(layer, inputs, kernel, None)` is `patches @ kernel.reshape(-1, units)`.
    """
    if isinstance(layer, nn.Dense):
        return inputs.reshape(-1, inputs.shape[-1])
    shape = kernel.shape[:-1]
    one_each = jnp.eye(math.prod(shape), dtype=kernel.dtype)
    return linear(layer, inputs, one_each.reshape(*shape, -1), None)


def batch_norm(*, train: bool, name: str) -> nn.BatchNorm:
    """Batch normalisation with the constants that PyTorch starts with.

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
        radius: Neighbours on either side; there are fewer at the ends.
        alpha: Weight of the sum.
        beta: Exponent.
        bias: Added to the sum; above 0.
    """
    num_channels = images.shape[-1]
    # Sums over neighbours as a product with a banded matrix and the power through the
    # logarithm: on a CPU twelve times as fast as slices and `**`.
    near = np.abs(np.subtract.outer(range(num_channels), range(num_channels)))
    total = jnp.square(images) @ (near <= radius).astype(images.dtype)
    return images * jnp.exp(-beta * jnp.log(bias + alpha * total))
