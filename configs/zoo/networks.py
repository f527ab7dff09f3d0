"""Networks of the zoo that the package does not have: as users write their own."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn


def _lenet(images, widths, activation, pool, between=lambda hidden: hidden):
    """LeNet-5 but for its last layer, with `between` behind each dense layer."""
    (first, second), dense = widths
    hidden = activation(nn.Conv(first, (5, 5))(images))
    hidden = pool(hidden, (2, 2), (2, 2))
    hidden = activation(nn.Conv(second, (5, 5), padding="VALID")(hidden))
    hidden = pool(hidden, (2, 2), (2, 2))
    hidden = hidden.reshape(hidden.shape[0], -1)
    for features in dense:
        hidden = between(activation(nn.Dense(features)(hidden)))
    return hidden


class TanhLeNet(nn.Module):
    """LeNet-5 with tanh and average pooling, as in 1998. 61,706 parameters."""

    conv_features: Sequence[int] = (6, 16)
    dense_features: Sequence[int] = (120, 84)
    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        widths = self.conv_features, self.dense_features
        hidden = _lenet(images, widths, jnp.tanh, nn.avg_pool)
        return nn.Dense(self.num_classes)(hidden)


class DropoutLeNet(nn.Module):
    """LeNet-5 with dropout behind its dense layers."""

    conv_features: Sequence[int] = (6, 16)
    dense_features: Sequence[int] = (120, 84)
    dropout: float = 0.5
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""

        def drop(hidden):
            return nn.Dropout(self.dropout, deterministic=not train)(hidden)

        widths = self.conv_features, self.dense_features
        hidden = _lenet(images, widths, nn.relu, nn.max_pool, drop)
        return nn.Dense(self.num_classes)(hidden)


class Mlp(nn.Module):
    """LeNet-300-100 for 28×28 images (LeCun et al., 1998)."""

    features: Sequence[int] = (300, 100)
    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = images.reshape(images.shape[0], -1)
        for features in self.features:
            hidden = nn.relu(nn.Dense(features)(hidden))
        return nn.Dense(self.num_classes)(hidden)


class BatchNormCnn(nn.Module):
    """3×3 convolutions with BatchNorm, global average pooling before the last layer."""

    features: Sequence[int] = (16, 32, 64)
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = images
        for place, features in enumerate(self.features):
            hidden = nn.Conv(features, (3, 3), use_bias=False)(hidden)
            hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
            if place < 2:
                hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(hidden.mean((1, 2)))


class SmallResNet(nn.Module):
    """Three residual blocks with BatchNorm."""

    features: Sequence[int] = (12, 24, 48)
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""

        def normed(hidden):
            return nn.BatchNorm(use_running_average=not train)(hidden)

        hidden = nn.Conv(self.features[0], (3, 3), use_bias=False)(images)
        hidden = nn.relu(normed(hidden))
        for place, features in enumerate(self.features):
            stride = 2 if place else 1
            around = hidden
            hidden = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(hidden)
            hidden = nn.Conv(features, (3, 3), use_bias=False)(nn.relu(normed(hidden)))
            if around.shape != hidden.shape:
                around = nn.Conv(features, (1, 1), strides=stride)(around)
            hidden = nn.relu(normed(hidden) + around)
        return nn.Dense(self.num_classes)(hidden.mean((1, 2)))


class Mixer(nn.Module):
    """Patches, depthwise convolutions, LayerNorm and GELU (after ConvNeXt)."""

    features: int = 48
    num_blocks: int = 3
    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        width = self.features
        hidden = nn.Conv(width, (4, 4), strides=4)(images)
        for _ in range(self.num_blocks):
            inner = nn.Conv(width, (5, 5), feature_group_count=width)(hidden)
            inner = nn.Dense(2 * width)(nn.LayerNorm()(inner))
            hidden = hidden + nn.Dense(width)(nn.gelu(inner))
        return nn.Dense(self.num_classes)(nn.LayerNorm()(hidden.mean((1, 2))))


class PlainCnn(nn.Module):
    """Strided convolutions without BatchNorm, a dense layer before the last."""

    features: Sequence[int] = (32, 64, 64)
    dense_features: int = 64
    num_classes: int = 3

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = images
        for place, features in enumerate(self.features):
            stride = 2 if place else 1
            hidden = nn.relu(nn.Conv(features, (3, 3), strides=stride)(hidden))
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = nn.relu(nn.Dense(self.dense_features)(hidden))
        return nn.Dense(self.num_classes)(hidden)


class DigitsCnn(nn.Module):
    """For 8×8 images: two convolutions with BatchNorm and a dense layer."""

    features: Sequence[int] = (16, 32)
    dense_features: int = 64
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = images
        for features in self.features:
            hidden = nn.Conv(features, (3, 3))(hidden)
            hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
            hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = nn.relu(nn.Dense(self.dense_features)(hidden))
        return nn.Dense(self.num_classes)(hidden)
