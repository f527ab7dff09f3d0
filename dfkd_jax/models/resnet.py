"""ResNets for 32×32 images: He et al. (2016), with a 3×3 stem and no pooling after it.

This is the variant that work on CIFAR-10 calls ResNet-18 and ResNet-34.
"""

from collections.abc import Sequence

from flax import linen as nn

from dfkd_jax.models.layers import Conv, GlobalAverage, batch_norm


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut; 1×1 where the shape changes."""

    num_features: int
    stride: int = 1

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to the same, `stride` times smaller."""
        shortcut = images
        # Before the others, so that the layer called last is the last 3×3 convolution.
        if self.stride > 1 or images.shape[-1] != self.num_features:
            shortcut = Conv(
                self.num_features,
                kernel_size=1,
                stride=self.stride,
                use_bias=False,
                name="shortcut_conv",
            )(images)
            shortcut = batch_norm(train=train, name="shortcut_bn")(shortcut)
        hidden = Conv(
            self.num_features, stride=self.stride, use_bias=False, name="conv_1"
        )(images)
        hidden = nn.relu(batch_norm(train=train, name="bn_1")(hidden))
        hidden = Conv(self.num_features, use_bias=False, name="conv_2")(hidden)
        hidden = batch_norm(train=train, name="bn_2")(hidden)
        return nn.relu(hidden + shortcut)


class ResNet(nn.Module):
    """A stem, stages of blocks (each but the first halves the image), one dense layer.

    The layer `pool` is the vector that the dense layer sees.
    """

    num_blocks: Sequence[int] = (2, 2, 2, 2)
    stage_features: Sequence[int] = (64, 128, 256, 512)
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        hidden = Conv(self.stage_features[0], use_bias=False, name="conv_1")(images)
        hidden = nn.relu(batch_norm(train=train, name="bn_1")(hidden))
        stages = zip(self.num_blocks, self.stage_features, strict=True)
        for stage, (num_blocks, num_features) in enumerate(stages, start=1):
            for block in range(1, num_blocks + 1):
                hidden = Block(
                    num_features,
                    stride=2 if stage > 1 and block == 1 else 1,
                    name=f"stage_{stage}_block_{block}",
                )(hidden, train=train)
        hidden = GlobalAverage(name="pool")(hidden)
        return nn.Dense(self.num_classes, name="output")(hidden)
