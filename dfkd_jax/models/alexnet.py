"""AlexNets for 32×32 images, as the distillation papers use them."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from dfkd_jax.models.layers import Conv, batch_norm, local_response_norm


class AlexNet(nn.Module):
    """The AlexNet of ZSKD (Nayak et al., 2019, `model_alex_full.py` of their code).

    A convolution is followed by ReLU, in the first two blocks by local response
    normalization, in the first two and the last by max pooling, and by batch
    normalization; a dense layer by ReLU, dropout and batch normalization. Here the
    constants of batch normalization are PyTorch's (TensorFlow's there).
    """

    conv_features: Sequence[int] = (48, 128, 192, 192, 128)
    dense_features: Sequence[int] = (512, 256)
    num_classes: int = 10
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = images
        for index, num_features in enumerate(self.conv_features, start=1):
            size = 5 if index <= 2 else 3
            hidden = Conv(num_features, kernel_size=size, name=f"conv_{index}")(hidden)
            hidden = nn.relu(hidden)
            if index <= 2:
                hidden = local_response_norm(hidden)
            if index in (1, 2, 5):
                hidden = nn.max_pool(hidden, (3, 3), (2, 2))
            hidden = batch_norm(train=train, name=f"bn_{index}")(hidden)
        return _dense_layers(self, hidden, train)


class AlexNetWang(nn.Module):
    """The AlexNet of ZSDB3KD (Wang, 2021, `models.py` of its code).

    A convolution is followed by batch normalization and ReLU, the first, second and
    last also by max pooling; a dense layer by ReLU, dropout and batch normalization.
    """

    conv_features: Sequence[int] = (64, 192, 384, 256, 256)
    dense_features: Sequence[int] = (4096, 4096)
    num_classes: int = 10
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = images
        for index, num_features in enumerate(self.conv_features, start=1):
            stride = 2 if index == 1 else 1
            hidden = Conv(num_features, stride=stride, name=f"conv_{index}")(hidden)
            hidden = nn.relu(batch_norm(train=train, name=f"bn_{index}")(hidden))
            if index in (1, 2, 5):
                hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        return _dense_layers(self, hidden, train)


def _dense_layers(network: nn.Module, hidden: jax.Array, train: bool) -> jax.Array:
    """From the last image to the logits; called while `network` is."""
    hidden = hidden.reshape(hidden.shape[0], -1)
    num_convs = len(network.conv_features)
    for index, num_features in enumerate(network.dense_features, start=1):
        hidden = nn.relu(nn.Dense(num_features, name=f"dense_{index}")(hidden))
        hidden = nn.Dropout(network.dropout_rate, deterministic=not train)(hidden)
        hidden = batch_norm(train=train, name=f"bn_{num_convs + index}")(hidden)
    return nn.Dense(network.num_classes, name="output")(hidden)
