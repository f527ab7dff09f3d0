"""The generator that DAFL and DFAD share: noise in, normalized images out."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from dfkd_jax.models.layers import Conv

SLOPE = 0.2  # Of the leaky ReLUs.


class Generator(nn.Module):
    """A projection, then two upsamplings with convolutions (as DCGAN's, smaller).

    The last BatchNorm has no parameters: pixels have mean 0 and variance 1 in a batch,
    as normalized images do.

    Attributes:
        image_shape: (height, width, channels).
        features: Of the projection and the two convolutions before the last.
        epsilon: Added to the variance by the BatchNorms after these two.
        batch_axis: Devices over which statistics are taken; None for one device's
            part of the batch.
    """

    image_shape: Sequence[int]
    features: Sequence[int] = (128, 128, 64)
    epsilon: float = 1e-5
    batch_axis: str | None = None

    @nn.compact
    def __call__(self, latents, *, train: bool = False):
        """`[batch, latents]` to `[batch, height, width, channels]`."""
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.batch_axis,
        )
        height, width, channels = self.image_shape
        rows, columns = -(-height // 4), -(-width // 4)  # What is too much is cut off.
        first, second, third = self.features
        hidden = nn.Dense(rows * columns * first, name="dense")(latents)
        hidden = hidden.reshape(-1, rows, columns, first)
        hidden = _twice_as_large(norm(name="bn_1")(hidden))
        hidden = Conv(second, name="conv_1")(hidden)
        hidden = norm(epsilon=self.epsilon, name="bn_2")(hidden)
        hidden = _twice_as_large(nn.leaky_relu(hidden, SLOPE))
        hidden = Conv(third, name="conv_2")(hidden)
        hidden = norm(epsilon=self.epsilon, name="bn_3")(hidden)
        hidden = nn.tanh(Conv(channels, name="conv_3")(nn.leaky_relu(hidden, SLOPE)))
        images = hidden[:, :height, :width]
        return norm(use_bias=False, use_scale=False, name="bn_4")(images)


def _twice_as_large(images):
    """Every pixel four times: nearest-neighbor upsampling."""
    return jnp.repeat(jnp.repeat(images, 2, axis=1), 2, axis=2)
