"""LeNet-5 (LeCun et al., 1998) as the distillation papers use it: ReLU, max pooling."""

from collections.abc import Sequence

from flax import linen as nn

from dfkd_jax.models.layers import ConvPool

DENSE_LAYERS = ("dense_1", "dense_2", "output")


class LeNet5(nn.Module):
    """Two 5×5 convolutions and three dense layers for 28×28 images.

    `__call__` is `head ∘ features`. `features` ends with the pre-activation of
    `feature_layer`, `head` goes on from there; with `feature_layer="output"` the
    features are the logits themselves.
    """

    conv_features: Sequence[int] = (6, 16)
    dense_features: Sequence[int] = (120, 84)
    num_classes: int = 10
    feature_layer: str = "dense_2"

    def setup(self):
        """Layers in the order in which they are applied."""
        self.conv_1 = ConvPool(self.conv_features[0], padding="SAME", pool=2)
        self.conv_2 = ConvPool(self.conv_features[1], padding="VALID", pool=2)
        self.dense_1 = nn.Dense(self.dense_features[0])
        self.dense_2 = nn.Dense(self.dense_features[1])
        self.output = nn.Dense(self.num_classes)

    def features(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to `[batch, units]` of `feature_layer`."""
        del train  # No layer behaves differently in training.
        hidden = nn.relu(self.conv_1(images))
        hidden = nn.relu(self.conv_2(hidden))
        hidden = self.dense_1(hidden.reshape(hidden.shape[0], -1))
        return self._dense(hidden, "dense_1", self.feature_layer)

    def head(self, features, *, train: bool = False):
        """`[batch, units]` of `feature_layer` to logits `[batch, classes]`."""
        del train
        return self._dense(features, self.feature_layer, "output")

    def _dense(self, hidden, first: str, last: str):
        """From the pre-activation of layer `first` to that of layer `last`."""
        start, stop = DENSE_LAYERS.index(first), DENSE_LAYERS.index(last)
        for name in DENSE_LAYERS[start + 1 : stop + 1]:
            hidden = getattr(self, name)(nn.relu(hidden))
        return hidden

    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        return self.head(self.features(images, train=train), train=train)
