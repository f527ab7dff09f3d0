"""LeNet-5 (LeCun et al., 1998) as the distillation papers use it: ReLU, max pooling."""

from collections.abc import Sequence

from flax import linen as nn


class LeNet5(nn.Module):
    """Two 5×5 convolutions and three dense layers for 28×28 images."""

    conv_features: Sequence[int] = (6, 16)
    dense_features: Sequence[int] = (120, 84)
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        del train  # No layer behaves differently in training.
        first, second = self.conv_features
        hidden = nn.relu(nn.Conv(first, (5, 5), name="conv_1")(images))
        hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = nn.Conv(second, (5, 5), padding="VALID", name="conv_2")(hidden)
        hidden = nn.max_pool(nn.relu(hidden), (2, 2), (2, 2))
        hidden = hidden.reshape(hidden.shape[0], -1)
        for place, num_features in enumerate(self.dense_features, 1):
            hidden = nn.relu(nn.Dense(num_features, name=f"dense_{place}")(hidden))
        return nn.Dense(self.num_classes, name="output")(hidden)
