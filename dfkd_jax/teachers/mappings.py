"""Which PyTorch tensor becomes which linen tensor: files, and our own networks.

A mapping is a JSON object of one line a layer. On the left is the linen layer, on the
right the PyTorch one:

    {
      "conv_1": "features.0",
      "bn_1": "features.1",
      "dense_1": {"from": "classifier.0", "flatten": [16, 5, 5]},
      "output": "classifier.3",
      "$ignore": ["auxiliary."]
    }

A layer inside others is written with slashes ("stage_1_block_1/conv_1"). What the
layers hold follows from their kind (see `pytorch.convert`). A Dense that comes after a
flatten says in `flatten` what was flattened: (channels, height, width), since PyTorch
flattens the channels first and JAX last; `"flatten": false` says that nothing was. A
tensor that no rule knows is named alone, with its order of axes where that differs:
`"attention/query": {"from": "attention.q", "transpose": [1, 0]}`. PyTorch tensors that
begin with a text of `$ignore` are left out.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.runtime import files

IGNORE = "$ignore"
OPTIONS = ("from", "flatten", "transpose")
MAX_BYTES = 1_000_000

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a linen layer or tensor comes from.

    Attributes:
        name: Of the PyTorch layer or tensor.
        flatten: (channels, height, width) that were flattened before the layer; empty
            if it is known that nothing was; None if nothing is known.
        transpose: Order of the axes, for a tensor that is named alone.
    """

    name: str
    flatten: tuple[int, ...] | None = None
    transpose: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerMapping:
    """PyTorch sources of linen layers.

    Attributes:
        sources: By path of the linen layer or tensor.
        ignore: Beginnings of PyTorch names that are left out.
        origin: Where the mapping is from, for messages.
    """

    sources: Mapping[str, Source]
    ignore: tuple[str, ...] = ()
    origin: str


def read(path: pathlib.Path) -> LayerMapping:
    """The mapping in a JSON file.

    Raises:
        ConfigError: The file is not there, too large, no JSON or no mapping.
    """
    try:
        content = files.read_bytes(path, max_bytes=MAX_BYTES)
        values = files.parse_json(content.decode())
    except OSError as error:
        raise ConfigError(
            f"The mapping {path} cannot be read ({error.strerror}): check the path."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"The mapping {path} is no JSON of one line a layer: {error}."
        ) from error
    return parse(values, origin=f"The mapping {path}")


def parse(values: Any, *, origin: str) -> LayerMapping:
    """The mapping that a JSON object (see above) describes.

    Args:
        values: The object.
        origin: Where it is from; messages begin with it.

    Raises:
        ConfigError: Names the first entry that is not as it should be.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{origin} must be a JSON object of layers, as in "
            '{"conv_1": "features.0"}.'
        )
    ignore = values.get(IGNORE, [])
    if not isinstance(ignore, list) or not all(
        isinstance(text, str) and text for text in ignore
    ):
        raise ConfigError(f'{origin}: {IGNORE} must be texts, as in ["auxiliary."].')
    sources = {
        layer: _source(layer, value, origin)
        for layer, value in values.items()
        if layer != IGNORE
    }
    if not sources:
        raise ConfigError(f"{origin} names no layer.")
    return LayerMapping(sources=sources, ignore=tuple(ignore), origin=origin)


def _source(layer: str, value: Any, origin: str) -> Source:
    if isinstance(value, str):
        value = {"from": value}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{origin}: {layer!r} must be the name of a PyTorch layer, or an object "
            'as {"from": "classifier.0", "flatten": [16, 5, 5]}.'
        )
    for option in value:
        if option not in OPTIONS:
            raise ConfigError(
                f"{origin}: {layer!r} has an unknown option {option!r}."
                + (did_you_mean(option, OPTIONS) or f" There are: {OPTIONS}.")
            )
    name = value.get("from")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f'{origin}: {layer!r} lacks the name of a PyTorch layer in "from".'
        )
    flatten = value.get("flatten")
    if flatten is False:
        flatten = []
    if flatten not in (None, []) and not (
        _are_integers(flatten) and len(flatten) == 3 and min(flatten) > 0
    ):
        raise ConfigError(
            f'{origin}: "flatten" of {layer!r} must be [channels, height, width], or '
            "false where nothing is flattened."
        )
    transpose = value.get("transpose")
    if transpose is not None and not (
        _are_integers(transpose) and sorted(transpose) == list(range(len(transpose)))
    ):
        raise ConfigError(
            f'{origin}: "transpose" of {layer!r} must be an order of axes, as [1, 0].'
        )
    return Source(
        name=name,
        flatten=None if flatten is None else tuple(flatten),
        transpose=None if transpose is None else tuple(transpose),
    )


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def shipped(network: str, expected: Shapes, held: Shapes) -> LayerMapping | None:
    """The mapping of a network of this package onto its PyTorch counterpart.

    The counterparts name their layers like this:

    - LeNet-5 and its halves: `conv1` (padding 2), `conv2`, `fc1`, `fc2`, `fc3`.
    - `alexnet`: `conv1` to `conv5` (padding 2, 2, 1, 1, 1), `bn1` to `bn7`, `fc1` to
      `fc3`; local response normalization with size 5 and alpha 5e-4.
    - `alexnet_wang`: `features.0` and so on, `fc1.0`, `fc1.3`, `fc2.0`, `fc2.3`, `fc3`,
      as in the code of ZSDB3KD.
    - ResNets: `conv1`, `bn1`, `layer1.0.conv1` and so on, with either `shortcut.0`,
      `shortcut.1`, `linear` or torchvision's `downsample.0`, `downsample.1`, `fc`.

    Args:
        network: A name of `models/registry.py`.
        expected: Shapes of its tensors, by path as in `params/conv_1/kernel`.
        held: Shapes of the PyTorch tensors, by name.

    Returns:
        Of the ways to name layers the one that explains most of `held`; None if that is
        less than half.
    """
    layers = {_layer(path): None for path in expected}
    candidates = [
        LayerMapping(
            sources={
                layer: Source(
                    name=rename(layer),
                    flatten=_flattened(layer, expected),
                )
                for layer in layers
            },
            origin=f"The mapping of {network}",
        )
        for prefix, rename in _NAMINGS
        if network.startswith(prefix)
    ]

    def explained(mapping: LayerMapping) -> int:
        names = {source.name for source in mapping.sources.values()}
        return sum(name.rpartition(".")[0] in names for name in held)

    best = max(candidates, key=explained, default=None)
    return best if best and 2 * explained(best) >= len(held) > 0 else None


def _layer(path: str) -> str:
    return path.partition("/")[2].rpartition("/")[0]


def _flattened(layer: str, expected: Shapes) -> tuple[int, ...] | None:
    """What is flattened before `dense_1` of our networks: a square image."""
    if layer != "dense_1":
        return None
    last = max(
        path for path in expected if re.fullmatch(r"params/conv_\d/kernel", path)
    )
    channels = expected[last][-1]
    side = math.isqrt(expected["params/dense_1/kernel"][0] // channels)
    return (channels, side, side)


def _numbered(layer: str) -> str:
    kind, _, number = layer.partition("_")
    if layer == "output":
        return "fc3"
    return {"conv": "conv", "bn": "bn", "dense": "fc"}[kind] + number


def _wang(layer: str) -> str:
    if layer == "output":
        return "fc3"
    kind, _, number = layer.partition("_")
    index = int(number) - 1
    if kind == "dense":
        return f"fc{number}.0"
    if kind == "bn" and index >= 5:
        return f"fc{index - 4}.3"
    # A convolution is followed by normalization and ReLU, some by pooling too.
    return f"features.{(0, 4, 8, 11, 14)[index] + (kind == 'bn')}"


def _resnet(shortcut: str, output: str) -> Callable[[str], str]:
    def rename(layer: str) -> str:
        if layer == "output":
            return output
        block, _, inner = layer.rpartition("/")
        stage = re.fullmatch(r"stage_(\d+)_block_(\d+)", block)
        prefix = f"layer{stage[1]}.{int(stage[2]) - 1}." if stage else ""
        inner = {
            "shortcut_conv": f"{shortcut}.0",
            "shortcut_bn": f"{shortcut}.1",
        }.get(inner, inner.replace("_", ""))
        return prefix + inner

    return rename


# Beginning of a network's name, and a way to name its layers. The first that fits wins.
_NAMINGS = (
    ("lenet5", _numbered),
    ("alexnet", _numbered),
    ("alexnet_wang", _wang),
    ("resnet", _resnet("shortcut", "linear")),
    ("resnet", _resnet("downsample", "fc")),
)
