"""The same networks in five frameworks, each of its own framework's layers.

A network is a list of operations, which every framework makes layers of in its own way:

    ("conv", units, window, stride, padding, groups)   ("dense", units)
    ("pool", "max" or "average", window)               ("residual", main, shortcut)
    "relu", "tanh", "gelu", "batch norm", "layer norm", "dropout", "mean", "flatten",
    "log softmax"
"""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

HERE = {
    name: importlib.util.find_spec(name) is not None
    for name in ("torch", "torchax", "equinox", "keras", "timm")
}
SHAPE = (16, 16, 3)


def conv(units, window=3, stride=1, padding=1, groups=1):
    return ("conv", units, window, stride, padding, groups)


def _normed(units, stride=1):
    return [conv(units, stride=stride), "batch norm"]


NETWORKS = {
    "three convolutions": [
        *[conv(8), "relu", ("pool", "max", 2)],
        *[conv(16), "relu", ("pool", "max", 2)],
        *[conv(32), "relu", "mean", ("dense", 10)],
    ],
    "LeNet-5, tanh and means": [
        *[conv(6, 5, 1, 2), "tanh", ("pool", "average", 2)],
        *[conv(16, 5, 1, 0), "tanh", ("pool", "average", 2), "flatten"],
        *[("dense", 120), "tanh", ("dense", 84), "tanh", ("dense", 10)],
    ],
    "PyTorch's example": [
        *[conv(8, 3, 1, 0), "relu", conv(16, 3, 1, 0), "relu", ("pool", "max", 2)],
        *["dropout", "flatten", ("dense", 32), "relu", "dropout", ("dense", 10)],
        "log softmax",
    ],
    "ResNet": [
        *[*_normed(8), "relu"],
        ("residual", [*_normed(8), "relu", *_normed(8)], []),
        "relu",
        (
            "residual",
            [*_normed(16, 2), "relu", *_normed(16)],
            [conv(16, 1, 2, 0), "batch norm"],
        ),
        *["relu", "mean", ("dense", 10)],
    ],
    "mixer": [
        conv(12, 4, 4, 0),
        ("residual", ["layer norm", conv(12, 3, 1, 1, 12), "gelu"], []),
        ("residual", ["layer norm", conv(24, 1, 1, 0), "gelu", conv(12, 1, 1, 0)], []),
        *["layer norm", "mean", ("dense", 10)],
    ],
}
ACTIVATIONS = ("relu", "tanh", "gelu")


def plan(operations, shape):
    """Operations as (name, options), inputs counted, and the last shape."""
    made = []
    for operation in operations:
        name, *given = [operation] if isinstance(operation, str) else operation
        options: tuple[Any, ...] = (shape[-1],)
        if name == "conv":
            units, window, stride, padding, _ = given
            side = (shape[0] + 2 * padding - window) // stride + 1
            options, shape = (shape[-1], *given), (side, side, units)
        elif name == "pool":
            options, shape = given, (shape[0] // given[1],) * 2 + shape[2:]
        elif name == "dense":
            options, shape = (shape[-1], *given), (given[0],)
        elif name == "flatten":
            shape = (int(np.prod(shape)),)
        elif name == "mean":
            shape = shape[-1:]
        elif name == "residual":
            (main, after), (short, _) = (plan(part, shape) for part in given)
            options, shape = (main, short), after
        made.append((name, tuple(options)))
    return tuple(made), shape


class Linen(nn.Module):
    plan: tuple

    @nn.compact
    def __call__(self, x, train: bool = False):
        for name, options in self.plan:
            x = self._run(x, name, options, train)
        return x

    def _run(self, x, name, options, train):
        if name in ACTIVATIONS:
            return getattr(nn, name)(x)
        if name == "residual":
            main, short = (Linen(part)(x, train) for part in options)
            return main + short
        if name == "conv":
            _, units, window, stride, padding, groups = options
            return nn.Conv(
                units,
                (window, window),
                stride,
                [(padding, padding)] * 2,
                feature_group_count=groups,
            )(x)
        if name == "pool":
            pool = nn.max_pool if options[0] == "max" else nn.avg_pool
            return pool(x, (options[1],) * 2, (options[1],) * 2)
        return {
            "dense": lambda: nn.Dense(options[-1])(x),
            "batch norm": lambda: nn.BatchNorm(not train)(x),
            "layer norm": lambda: nn.LayerNorm()(x),
            "dropout": lambda: nn.Dropout(0.25, deterministic=not train)(x),
            "mean": lambda: x.mean((1, 2)),
            "flatten": lambda: x.reshape(x.shape[0], -1),
            "log softmax": lambda: nn.log_softmax(x),
        }[name]()


class Nnx(nnx.Module):
    def __init__(self, plan, rngs):
        self.plan = plan
        self.layers = nnx.List([self._make(*each, rngs) for each in plan])

    def _make(self, name, options, rngs):
        if name == "residual":
            return nnx.List([Nnx(part, rngs) for part in options])
        if name == "conv":
            inputs, units, window, stride, padding, groups = options
            return nnx.Conv(
                inputs,
                units,
                (window, window),
                stride,
                padding=[(padding, padding)] * 2,
                feature_group_count=groups,
                rngs=rngs,
            )
        return {
            "dense": lambda: nnx.Linear(*options, rngs=rngs),
            "batch norm": lambda: nnx.BatchNorm(*options, rngs=rngs),
            "layer norm": lambda: nnx.LayerNorm(*options, rngs=rngs),
            "dropout": lambda: nnx.Dropout(0.25, rngs=rngs),
        }.get(name, lambda: None)()

    def __call__(self, x):
        for (name, options), layer in zip(self.plan, self.layers, strict=True):
            if name in ACTIVATIONS:
                x = getattr(nnx, name)(x)
            elif name == "residual":
                main, short = layer
                x = main(x) + short(x)
            elif name == "pool":
                pool = nnx.max_pool if options[0] == "max" else nnx.avg_pool
                x = pool(x, (options[1],) * 2, (options[1],) * 2)
            elif name == "mean":
                x = x.mean((1, 2))
            elif name == "flatten":
                x = x.reshape(x.shape[0], -1)
            elif name == "log softmax":
                x = nnx.log_softmax(x)
            else:
                x = layer(x)
        return x


if HERE["equinox"]:
    import equinox as eqx

    class Equinox(eqx.Module):
        plan: tuple = eqx.field(static=True)
        layers: list

        def __init__(self, plan, key):
            self.plan = plan
            self.layers = [
                self._make(*each, jax.random.fold_in(key, place))
                for place, each in enumerate(plan)
            ]

        def _make(self, name, options, key):
            if name == "residual":
                return [Equinox(part, key) for part in options]
            if name == "conv":
                inputs, units, window, stride, padding, groups = options
                return eqx.nn.Conv2d(
                    inputs, units, window, stride, padding, groups=groups, key=key
                )
            if name == "pool":
                kind = {"max": eqx.nn.MaxPool2d, "average": eqx.nn.AvgPool2d}
                return kind[options[0]](options[1], options[1])
            return {
                "dense": lambda: eqx.nn.Linear(*options, key=key),
                "batch norm": lambda: eqx.nn.BatchNorm(*options, "batch", mode="ema"),
                "layer norm": lambda: eqx.nn.LayerNorm(*options),
                "dropout": lambda: eqx.nn.Dropout(0.25),
            }.get(name, lambda: None)()

        def __call__(self, x, state, key=None):
            for (name, _), layer in zip(self.plan, self.layers, strict=True):
                if name in ACTIVATIONS:
                    x = getattr(jax.nn, name)(x)
                elif name == "residual":
                    main, state = layer[0](x, state, key)
                    short, state = layer[1](x, state, key)
                    x = main + short
                elif name == "batch norm":
                    x, state = layer(x, state)
                elif name == "layer norm":
                    x = jax.vmap(jax.vmap(layer, 1, 1), 1, 1)(x)
                elif name == "dropout":
                    x = layer(x, key=key)
                elif name == "mean":
                    x = x.mean((1, 2))
                elif name == "flatten":
                    x = x.reshape(-1)
                elif name == "log softmax":
                    x = jax.nn.log_softmax(x)
                else:
                    x = layer(x)
            return x, state


if HERE["torch"]:
    import torch

    class ChannelNorm(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Residual(torch.nn.Module):
        def __init__(self, main, short):
            super().__init__()
            self.main, self.short = torch_net(main), torch_net(short)

        def forward(self, x):
            return self.main(x) + self.short(x)

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    def torch_net(plan):
        kinds = torch.nn
        return kinds.Sequential(
            *(
                {
                    "conv": lambda i, u, w, s, p, g: kinds.Conv2d(
                        i, u, w, s, p, groups=g
                    ),
                    "dense": kinds.Linear,
                    "pool": lambda kind, window: (
                        kinds.MaxPool2d if kind == "max" else kinds.AvgPool2d
                    )(window),
                    "residual": Residual,
                    "batch norm": kinds.BatchNorm2d,
                    "layer norm": ChannelNorm,
                    "dropout": lambda _: kinds.Dropout(0.25),
                    "mean": lambda _: Mean(),
                    "flatten": lambda _: kinds.Flatten(),
                    "relu": lambda _: kinds.ReLU(),
                    "tanh": lambda _: kinds.Tanh(),
                    "gelu": lambda _: kinds.GELU(),
                    "log softmax": lambda _: kinds.LogSoftmax(-1),
                }[name](*options)
                for name, options in plan
            )
        )


def keras_net(plan):
    import keras

    layers = keras.layers

    kinds = {
        "dense": lambda _, units: layers.Dense(units),
        "pool": lambda kind, window: (
            layers.MaxPooling2D if kind == "max" else layers.AveragePooling2D
        )(window),
        "batch norm": lambda _: layers.BatchNormalization(),
        "layer norm": lambda _: layers.LayerNormalization(),
        "dropout": lambda _: layers.Dropout(0.25),
        "mean": lambda _: layers.GlobalAveragePooling2D(),
        "flatten": lambda _: layers.Flatten(),
        "relu": lambda _: layers.ReLU(),
        "tanh": lambda _: layers.Activation("tanh"),
        "gelu": lambda _: layers.Activation("gelu"),
        "log softmax": lambda _: layers.Activation("log_softmax"),
    }

    def run(plan, x):
        for name, options in plan:
            if name == "residual":
                main, short = (run(part, x) for part in options)
                x = layers.Add()([main, short])
            elif name == "conv":
                _, units, window, stride, padding, groups = options
                x = layers.ZeroPadding2D(padding)(x) if padding else x
                kind = functools.partial(layers.Conv2D, units)
                if groups > 1:
                    kind = layers.DepthwiseConv2D
                x = kind(window, stride)(x)
            else:
                x = kinds[name](*options)(x)
        return x

    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, run(plan, inputs))


def off(tree):
    """Every float a little off where it starts, variances above 0."""
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(leaf + random.uniform(0, 0.2, leaf.shape).astype(np.float32))
            if hasattr(leaf, "dtype") and leaf.dtype == np.float32
            else leaf
        ),
        tree,
    )
