"""Networks of frameworks other than linen, as users have them in files of their own."""

import importlib.util

import jax
from flax import nnx

HERE = {
    name: importlib.util.find_spec(name) is not None
    for name in ("torch", "torchax", "equinox", "keras")
}


class NnxNet(nnx.Module):
    def __init__(self, width=4, num_classes=4, *, rngs):
        self.blocks = nnx.List([nnx.Conv(2, width, (3, 3), rngs=rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(16 * width, num_classes, rngs=rngs)

    def __call__(self, images):
        hidden = self.drop(nnx.relu(self.norm(self.blocks[0](images))))
        hidden = nnx.max_pool(hidden, (2, 2), (2, 2))
        return self.output(hidden.reshape(hidden.shape[0], -1))


if HERE["torch"]:
    import torch

    class TorchNet(torch.nn.Module):
        def __init__(self, width=4, num_classes=4):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, width, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(width)
            self.output = torch.nn.Linear(16 * width, num_classes)

        def forward(self, images):
            hidden = torch.relu(self.norm(self.conv(images)))
            hidden = torch.nn.functional.max_pool2d(hidden, 2)
            return self.output(hidden.flatten(1))


if HERE["equinox"]:
    import equinox as eqx

    class EquinoxNet(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        output: eqx.nn.Linear

        def __init__(self, width=4, num_classes=4, *, key):
            first, second = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(2, width, 3, padding=1, key=first)
            self.norm = eqx.nn.BatchNorm(width, axis_name="batch", mode="batch")
            self.output = eqx.nn.Linear(64 * width, num_classes, key=second)

        def __call__(self, image, state, key=None):
            hidden, state = self.norm(self.conv(image), state)
            return self.output(jax.nn.relu(hidden).reshape(-1)), state


def keras_net(width=4, num_classes=4):
    """A function that makes a network."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Conv2D(width, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(num_classes, name="output"),
        ],
        name="net",
    )
