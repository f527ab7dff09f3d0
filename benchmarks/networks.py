"""What is measured: networks of the package, and one that a user might have written."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from dfkd_jax.models import registry

USERS = {
    "cnn": ("benchmarks.networks:Cnn", {"features": (8, 16, 32)}),
    "cnn_wide": ("benchmarks.networks:Cnn", {"features": (32, 64, 128)}),
}
STUDENTS = {
    "lenet5": "lenet5_half",
    "cnn": "cnn",
    "cnn_wide": "cnn_wide",
    "alexnet": "alexnet_half",
    "alexnet_wang": "alexnet_wang_half",
    "resnet34": "resnet18",
    "resnet18_narrow": "resnet10_narrow",
}


class Cnn(nn.Module):
    """Three 3×3 convolutions, each with ReLU and max pooling, and two dense layers."""

    features: Sequence[int]
    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        """`[batch, height, width, channels]` to logits `[batch, classes]`."""
        for place, num_features in enumerate(self.features, 1):
            images = nn.Conv(num_features, (3, 3), name=f"conv_{place}")(images)
            images = nn.max_pool(nn.relu(images), (2, 2), (2, 2))
        hidden = images.reshape(images.shape[0], -1)
        for place in (1, 2):
            hidden = nn.relu(nn.Dense(64, name=f"dense_{place}")(hidden))
        return nn.Dense(self.num_classes, name="output")(hidden)


def create(name: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """A network of the package or of a user, by its name here."""
    path, fields = USERS.get(name, (name, {}))
    return registry.create(path, arguments=fields | (arguments or {}))
