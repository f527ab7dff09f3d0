"""A linen network that is none of ours, and its mapping."""

from flax import linen as nn

CUSTOM_MAPPING = """{
  "stem/conv": "stem.0",
  "stem/norm": "stem.1",
  "depthwise": "depthwise",
  "gamma": "gamma",
  "norm": {"from": "norm", "flatten": [6, 4, 3]},
  "hidden": {"from": "classifier.0", "flatten": [6, 4, 3]},
  "output": "classifier.1",
  "mixing": {"from": "mixing", "transpose": [1, 0]},
  "$ignore": ["auxiliary."]
}"""


class Stem(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        padding = ((1, 1), (1, 1))
        hidden = nn.Conv(6, (3, 3), strides=2, padding=padding, name="conv")(images)
        norm = nn.BatchNorm(use_running_average=not train, name="norm")
        return nn.relu(norm(hidden))


class Custom(nn.Module):
    """The counterpart of `torch_nets.Custom`, for images of 16 × 12 pixels."""

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        hidden = Stem(name="stem")(images, train)
        gamma = self.param("gamma", nn.initializers.ones, (6,))
        depthwise = nn.Conv(
            6, (3, 3), feature_group_count=6, use_bias=False, name="depthwise"
        )
        hidden = hidden + gamma.reshape(1, 1, 1, 6) * depthwise(hidden)
        hidden = nn.avg_pool(hidden, (2, 2), (2, 2))
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = nn.BatchNorm(use_running_average=not train, name="norm")(hidden)
        hidden = nn.relu(nn.Dense(72, name="hidden")(hidden))
        mixing = self.param("mixing", nn.initializers.ones, (10, 8))
        return nn.Dense(8, name="output")(hidden) @ mixing.T
