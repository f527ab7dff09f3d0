"""Any linen classifier as teacher or student: called, looked into, gone on from.

Nothing needs to be inherited: what a network computes is read from its graph (see
`graph`), and run in the forms that are fastest here (see `fast`). `layer` is a layer's
name in the parameter tree, with slashes where modules are nested ("encoder/dense_1").
Variables are linen's: `{"params": …, "batch_stats": …}`.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dfkd_jax.models import fast, graph
from dfkd_jax.models.graph import Layer, Moments

# How networks are told whether they are trained, and what they are told when not.
MODE_ARGUMENTS = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


def mode(module: nn.Module, *, train: bool) -> dict[str, bool]:
    """The keyword by which a network is told whether it is trained, if it takes any."""
    return _modes(inspect.signature(type(module).__call__).parameters, train)


def _modes(names, train):
    return {
        name: value != train for name, value in MODE_ARGUMENTS.items() if name in names
    }


def _in_mode(module, train):
    """The network and its keywords: the mode is an argument of its call, or a field."""
    keywords = mode(module, train=train)
    if not keywords:
        fields = [field.name for field in dataclasses.fields(module) if field.init]
        module = module.clone(**_modes(fields, train))
    return module, keywords


def _apply(module, variables, images, *, train, **options):
    module, keywords = _in_mode(module, train)
    return module.apply(variables, images, **options, **keywords)


@dataclasses.dataclass(frozen=True)
class Call:
    """A network as a function of arrays; with a key, in training mode."""

    module: nn.Module

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """Logits, or what `train_logits` returns."""
        if not key:
            return _apply(self.module, variables, images, train=False)
        return _apply(
            self.module,
            variables,
            images,
            train=True,
            rngs={"dropout": key[0]},
            mutable=[name for name in variables if name != "params"],
        )


def logits(module: nn.Module, variables: Any, images: Any) -> Any:
    """What the network says of `[batch, height, width, channels]`, in evaluation mode.

    Dropout is off and BatchNorm reads its running statistics.
    """
    return fast.faster(Call(module))(variables, images)


def train_logits(
    module: nn.Module, variables: Any, images: Any, key: Any
) -> tuple[Any, dict[str, Any]]:
    """Logits in training mode, and the collections besides `params` as they are now.

    Args:
        module: The network.
        variables: All of its collections.
        images: `[batch, height, width, channels]`.
        key: For dropout.
    """
    return fast.faster(Call(module))(variables, images, key)


def never_trained(module: nn.Module, variables: Any, images: Any) -> str:
    """Returns "Dropout" or "BatchNorm" if training leaves all in evaluation mode.

    Empty if it does not. Nothing is computed: all arguments may be abstract.
    """
    modes: dict[str, list[bool]] = {}

    def look(call, arguments, keywords, context):
        layer, name = context.module, ""
        if isinstance(layer, nn.Dropout) and layer.rate:
            name = "deterministic"
        elif isinstance(layer, nn.BatchNorm):
            name = "use_running_average"
        if name and _is_call(context):
            given = keywords.get(name, arguments[1] if arguments[1:] else None)
            off = getattr(layer, name) if given is None else given
            modes.setdefault(type(layer).__name__, []).append(bool(off))
        return call(*arguments, **keywords)

    with nn.intercept_methods(look):
        jax.eval_shape(
            lambda variables, images: train_logits(
                module, variables, images, jax.random.key(0)
            ),
            variables,
            images,
        )
    return next((kind for kind, off in modes.items() if all(off)), "")


def init(module: nn.Module, key: Any, image_shape: tuple[int, int, int]) -> Any:
    """Variables of a network that has learned nothing yet."""
    images = jnp.zeros((1, *image_shape))
    module, keywords = _in_mode(module, train=False)
    # As one program: operation by operation it takes seconds.
    variables = jax.jit(lambda key: module.init(key, images, **keywords))(key)
    return nn.meta.unbox(variables)


def features_and_logits(
    module: nn.Module, variables: Any, images: Any, *, layer: str
) -> tuple[Any, Any]:
    """Output of `layer`, `[batch, …, units]`, and logits, in evaluation mode."""
    features, result, _ = _look(module, variables, images, layer=layer)
    return features, result


def train_features_and_logits(
    module: nn.Module, variables: Any, images: Any, key: Any, *, layer: str
) -> tuple[Any, Any, dict[str, Any]]:
    """Output of `layer`, and what `train_logits` returns."""
    features, (result, state), _ = _look(module, variables, images, key, layer=layer)
    return features, result, state


def features_logits_and_moments(
    module: nn.Module, variables: Any, images: Any, *, layer: str
) -> tuple[Any, Any, list[Moments]]:
    """As `features_and_logits`, and what every BatchNorm of images gets of the batch.

    The network is in evaluation mode: what it says of an image does not depend on the
    others, the moments do. They are those of `images`, of one device. A BatchNorm that
    is called twice counts twice; those inside of an `nn.scan` are not seen. Those of
    vectors are left out, as in DeepInversion: behind dropout, which evaluation does
    without, they keep variances that no image could have.
    """
    return _look(module, variables, images, layer=layer, moments=True)


def _look(module, *arguments, layer, moments=False):
    """Features, what the network returns, and moments."""
    found = graph.of(Call(module), *arguments)
    outputs, (features,), seen = found.run(
        *arguments, wanted=[layer], moments=moments, plan=fast.best()
    )
    return features.astype(jax.tree.leaves(outputs)[0].dtype), outputs, seen


def has_batch_norm(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> bool:
    """Whether there are moments of a BatchNorm of images; nothing is computed."""
    return graph_of(module, variables, image_shape).has_batch_norm


def graph_of(
    module: nn.Module,
    variables: Any,
    image_shape: tuple[int, int, int],
    num_images: int = graph.MANY,
) -> graph.Graph:
    """The network in evaluation mode, looked into; nothing is computed."""
    images = jax.ShapeDtypeStruct((num_images, *image_shape), jnp.float32)
    return graph.of(Call(module), variables, images)


def head(
    module: nn.Module,
    variables: Any,
    features: Any,
    *,
    layer: str,
    image_shape: tuple[int, int, int],
) -> Any:
    """Logits `[batch, classes]` of the rest of the network, after `layer`.

    Whatever goes round the layer (a skip connection) is that of a blank image.
    """
    blank = jnp.zeros((features.shape[0], *image_shape), features.dtype)
    found = graph.of(Call(module), variables, blank)
    return found.run(variables, blank, given={layer: features}, plan=fast.best())[0]


def bypassed(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> str:
    """The first layer without which logits still tell images apart; empty if none.

    There, something goes round it: a skip connection, say.
    """
    found = layers(module, variables, image_shape)
    return next((name for name, layer in found.items() if not layer.is_cut), "")


def layers(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> dict[str, Layer]:
    """Layers that can be feature layers by name, in the order of their first call.

    The network is traced on shapes alone; nothing is computed.
    """
    return dict(graph_of(module, variables, image_shape).layers)


def penultimate(found: Mapping[str, Layer]) -> str:
    """The layer before the last one: FC-2 of LeNet-5, the paper's choice.

    Of those that are called once and tell no tokens apart; empty if there is none.
    """
    names = [
        layer.name
        for layer in found.values()
        if layer.calls == 1 and not layer.is_of_tokens
    ]
    return (["", *names])[-2 if len(names) > 1 else -1]


def lookup(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a collection that belongs to module `name`; empty if it has none."""
    for part in name.split("/"):
        tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
    return tree if isinstance(tree, Mapping) else {}


def _is_call(context):
    return context.method_name == "__call__"
