"""Any linen classifier as teacher or student: called, looked into, gone on from.

Nothing needs to be inherited: the feature layer is found by its name in the parameter
tree, by intercepting calls. `layer` is that name, with slashes where modules are nested
("encoder/dense_1"). Variables are linen's: `{"params": …, "batch_stats": …}`.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# How networks are told whether they are trained, and what they are told when not.
MODE_ARGUMENTS = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
_MOMENTS = "moments"  # A collection that lives as long as a call.


class Moments(NamedTuple):
    """What a BatchNorm gets of a batch, and what it keeps; `[features]` each."""

    mean: Any
    var: Any
    running_mean: Any
    running_var: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can be the feature layer, in the order of the network's calls.

    It has a kernel; or it is a module that pools the output of a convolution to one
    number a channel, as before the last layer of ResNets.

    Attributes:
        name: In the parameter tree.
        output_shape: Without the batch; the last entry is the number of units.
        kernel_layer: Whose kernel holds its units' incoming weights: its own, or the
            convolution's that it pools.
        kernel_shape: `[inputs, units]`, or with a convolution's window before.
        calls: How often the network calls it; a feature layer is called once.
        batch_norm: Name of the BatchNorm that gets its output as it is, or None.
        next_layer: Name of the next layer, if that reads one input a unit, or None.
    """

    name: str
    output_shape: tuple[int, ...]
    kernel_layer: str
    kernel_shape: tuple[int, ...]
    calls: int = 1
    batch_norm: str | None = None
    next_layer: str | None = None

    @property
    def num_units(self) -> int:
        """Dimension of the normal over this layer."""
        return self.output_shape[-1]

    @property
    def is_of_tokens(self) -> bool:
        """Whether its output is neither a vector nor feature maps."""
        return len(self.output_shape) not in (1, 3)


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


def logits(module: nn.Module, variables: Any, images: Any) -> Any:
    """What the network says of `[batch, height, width, channels]`, in evaluation mode.

    Dropout is off and BatchNorm reads its running statistics.
    """
    return _apply(module, variables, images, train=False)


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
    return _apply(
        module,
        variables,
        images,
        train=True,
        rngs={"dropout": key},
        mutable=[name for name in variables if name != "params"],
    )


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
    seen: list[Any] = []
    with nn.intercept_methods(_looking_at(layer, seen)):
        result = logits(module, variables, images)
    return seen[0].astype(result.dtype), result


def train_features_and_logits(
    module: nn.Module, variables: Any, images: Any, key: Any, *, layer: str
) -> tuple[Any, Any, dict[str, Any]]:
    """Output of `layer`, and what `train_logits` returns."""
    seen: list[Any] = []
    with nn.intercept_methods(_looking_at(layer, seen)):
        result, state = train_logits(module, variables, images, key)
    return seen[0].astype(result.dtype), result, state


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
    seen: list[Any] = []
    with nn.intercept_methods(_looking_at(layer, seen)):
        result, moments = _logits_and_moments(module, variables, images)
    return seen[0].astype(result.dtype), result, moments


def has_batch_norm(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> bool:
    """Whether there are moments of a BatchNorm of images; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    _, moments = jax.eval_shape(
        lambda variables, images: _logits_and_moments(module, variables, images),
        variables,
        images,
    )
    return bool(moments)


def _logits_and_moments(module, variables, images):
    def keep_moments(call, arguments, keywords, context):
        norm = context.module
        if isinstance(norm, nn.BatchNorm) and _is_call(context):
            inputs = arguments[0] if arguments else keywords["x"]
            if inputs.ndim > 2:
                # Put down as linen's own: what a list would catch inside of a
                # transformed module (`nn.remat`) could not leave it.
                norm.sow(_MOMENTS, "seen", _moments(norm, inputs))
        return call(*arguments, **keywords)

    with nn.intercept_methods(keep_moments):
        result, kept = _apply(
            module, variables, images, train=False, mutable=[_MOMENTS]
        )
    moments = jax.tree.leaves(kept, is_leaf=lambda node: isinstance(node, Moments))
    return result, moments


def head(
    module: nn.Module,
    variables: Any,
    features: Any,
    *,
    layer: str,
    image_shape: tuple[int, int, int],
) -> Any:
    """Logits `[batch, classes]` of the rest of the network, after `layer`.

    The network is run on blank images with `features`, `[batch, …, units]`, in place of
    what `layer` says. Whatever goes round the layer (a skip connection) is therefore
    that of a blank image.
    """

    def replace(call, arguments, keywords, context):
        if _is_call(context) and _name(context.module) == layer:
            return features
        return call(*arguments, **keywords)

    blank = jnp.zeros((features.shape[0], *image_shape), features.dtype)
    with nn.intercept_methods(replace):
        return logits(module, variables, blank)


def inputs(
    module: nn.Module, variables: Any, images: Any
) -> dict[str, tuple[nn.Module, Any]]:
    """Layers with a kernel by name: the module and what it gets, in evaluation mode."""
    seen: dict[str, tuple[nn.Module, Any]] = {}

    def look(call, arguments, keywords, context):
        name = _name(context.module)
        if _is_call(context) and "kernel" in lookup(variables["params"], name):
            given = arguments[0] if arguments else next(iter(keywords.values()))
            seen[name] = context.module, given
        return call(*arguments, **keywords)

    with nn.intercept_methods(look):
        logits(module, variables, images)
    return seen


def owners(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int], names: Any
) -> dict[str, str | None]:
    """For each module, the last layer of `names` that was called up to it, or None."""
    found: dict[str, str | None] = {}
    last = None

    def look(call, arguments, keywords, context):
        nonlocal last
        outputs = call(*arguments, **keywords)
        if _is_call(context):
            name = _name(context.module)
            last = name if name in names else last
            found.setdefault(name, last)
        return outputs

    _trace(module, variables, image_shape, look)
    return found


def bypassed(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> str:
    """The first layer without which logits still tell images apart; empty if none.

    There, something goes round it: a skip connection, say.
    """

    def logits_without(layer, images):
        def replace(call, arguments, keywords, context):
            outputs = call(*arguments, **keywords)
            if _is_call(context) and _name(context.module) == layer:
                return jnp.zeros_like(outputs)
            return outputs

        with nn.intercept_methods(replace):
            return logits(module, variables, images)

    names = list(layers(module, variables, image_shape))
    images = jax.random.normal(jax.random.key(0), (2, *image_shape))
    found = jax.jit(lambda images: [logits_without(name, images) for name in names])
    for name, (first, second) in zip(names, found(images), strict=True):
        if (first != second).any():
            return name
    return ""


def layers(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> dict[str, Layer]:
    """Layers that can be feature layers by name, in the order of their first call.

    The network is traced on shapes alone; nothing is computed.
    """
    found: dict[str, Layer] = {}
    outputs_of: dict[str, Any] = {}  # Kept, so that an id stays that of one array.

    def look(call, arguments, keywords, context):
        outputs = call(*arguments, **keywords)
        if not (_is_call(context) and _is_array(outputs)):
            return outputs
        name = _name(context.module)
        source = next(
            (key for key, value in outputs_of.items() if _first(arguments) is value),
            None,
        )
        if source and isinstance(context.module, nn.BatchNorm):
            found[source] = dataclasses.replace(found[source], batch_norm=name)
        if name in found:
            calls = found[name].calls + 1
            found[name] = dataclasses.replace(found[name], calls=calls)
        source = _kernel_layer(variables["params"], name, arguments, outputs, found)
        if source and name not in found:
            kernel = lookup(variables["params"], source)["kernel"]
            found[name] = Layer(
                name=name,
                output_shape=tuple(outputs.shape[1:]),
                kernel_layer=source,
                kernel_shape=tuple(kernel.shape),
            )
            outputs_of[name] = outputs
        return outputs

    _trace(module, variables, image_shape, look)
    return _chain(found)


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


def _trace(module, variables, image_shape, look):
    """Calls the network on shapes alone, with an interceptor; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(look):
        jax.eval_shape(
            lambda variables, images: logits(module, variables, images),
            variables,
            images,
        )


def _kernel_layer(params, name, arguments, outputs, found):
    """The layer with the incoming weights of `outputs`, or None."""
    kernel = lookup(params, name).get("kernel")
    if kernel is not None and kernel.ndim in (2, 4):
        return name if kernel.shape[-1] == outputs.shape[-1] else None
    inputs = _first(arguments)
    last = next(reversed(found.values()), None)
    is_pool = (
        last is not None
        and outputs.ndim == 2
        and getattr(inputs, "ndim", 0) == 4
        and inputs.shape[-1] == outputs.shape[-1] == last.num_units
    )
    return last.kernel_layer if is_pool else None


def _chain(found):
    """With `next_layer` filled in."""
    following = {
        name: next(
            (later for later in list(found)[place + 1 :] if _has_kernel(found[later])),
            None,
        )
        for place, name in enumerate(found)
    }
    return {
        name: dataclasses.replace(layer, next_layer=following[name])
        if following[name]
        and found[following[name]].kernel_shape[-2] == layer.num_units
        else layer
        for name, layer in found.items()
    }


def _has_kernel(layer):
    return layer.kernel_layer == layer.name


def _looking_at(layer, seen):
    """An interceptor that appends to `seen` what `layer` says."""

    def look(call, arguments, keywords, context):
        outputs = call(*arguments, **keywords)
        if _is_call(context) and _name(context.module) == layer:
            seen.append(outputs)
        return outputs

    return look


def _moments(norm, inputs):
    """Over all axes but those of the features, in float32."""
    features = {axis % inputs.ndim for axis in np.atleast_1d(norm.axis).tolist()}
    others = tuple(axis for axis in range(inputs.ndim) if axis not in features)
    inputs = inputs.astype(jnp.float32)
    return Moments(
        mean=inputs.mean(others),
        var=inputs.var(others),
        running_mean=norm.get_variable("batch_stats", "mean"),
        running_var=norm.get_variable("batch_stats", "var"),
    )


def _is_call(context):
    return context.method_name == "__call__"


def _name(module):
    return "/".join(module.path)


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "ndim") and value.ndim > 1


def _first(arguments):
    return arguments[0] if arguments else None
