"""Any classifier as one value: called, looked into, gone on from.

A `Model` is a network as functions of arrays, a `Network` a model with its variables
and what else is known of it. What a network computes is read from its graph (see
`graph`), and run in the forms that are fastest here (see `fast`), whoever wrote it.
`layer` is a layer's name in the variables, with slashes where modules are nested
("encoder/dense_1"). Variables are nested dictionaries of arrays by name: `"params"`,
which training changes by gradients, and others that it moves otherwise or not at all
(`"batch_stats"`).
"""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dfkd_jax.models import fast, graph, registry
from dfkd_jax.models.graph import Layer, Moments
from dfkd_jax.runtime.descriptions import Description

# How networks are told whether they are trained, and what they are told when not.
MODE_ARGUMENTS = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


# In place of a layer, of a network that shows none: each class by itself.
LOGITS = "(logits)"


def _modes(names, train):
    return {
        name: value != train for name, value in MODE_ARGUMENTS.items() if name in names
    }


def _in_mode(module, train):
    """The network and its keywords: the mode is an argument of its call, or a field."""
    keywords = _modes(inspect.signature(type(module).__call__).parameters, train)
    if not keywords:
        fields = [field.name for field in dataclasses.fields(module) if field.init]
        module = module.clone(**_modes(fields, train))
    return module, keywords


def _apply(module, variables, images, *, train, **options):
    module, keywords = _in_mode(module, train)
    return module.apply(variables, images, **options, **keywords)


class Model(abc.ABC):
    """A network as functions of arrays, whatever framework wrote it.

    Equal models are functions that compute the same: what is traced of one serves all.
    """

    @abc.abstractmethod
    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """Logits, or with a key what `train_logits` returns, as they are written."""

    @abc.abstractmethod
    def init(self, key: Any, image_shape: tuple[int, ...]) -> Any:
        """Variables of a network that has learned nothing yet."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """A name of `registry`, or "package.module:Class"."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What a file can hold of what the class is called with."""
        return {}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what it was made with, besides weights."""
        return ()

    def never_trained(self, variables: Any, images: Any) -> str:
        """Returns "Dropout" or "BatchNorm" if training leaves all in evaluation mode.

        Empty if it does not. Nothing is computed: all arguments may be abstract.
        """
        del variables, images
        return ""

    def shapes(self, image_shape: tuple[int, ...]) -> Any:
        """Its variables as shapes and dtypes; nothing is computed."""
        init = functools.partial(self.init, image_shape=tuple(image_shape))
        return jax.eval_shape(init, jax.random.key(0))

    def logits(self, variables: Any, images: Any) -> Any:
        """What the network says of `[batch, …]`, in evaluation mode.

        Dropout is off and BatchNorm reads its running statistics.
        """
        return fast.faster(self)(variables, images)

    def train_logits(
        self, variables: Any, images: Any, key: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Logits in training mode, and all variables besides `params` as they are now.

        Args:
            variables: All of them.
            images: `[batch, height, width, channels]`.
            key: For dropout.
        """
        return fast.faster(self)(variables, images, key)

    def features_and_logits(
        self, variables: Any, images: Any, *, layer: str
    ) -> tuple[Any, Any]:
        """Output of `layer`, `[batch, …, units]`, and logits, in evaluation mode."""
        features, result, _ = self._look(variables, images, layer=layer)
        return features, result

    def train_features_and_logits(
        self, variables: Any, images: Any, key: Any, *, layer: str
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Output of `layer`, and what `train_logits` returns."""
        features, (result, state), _ = self._look(variables, images, key, layer=layer)
        return features, result, state

    def features_logits_and_moments(
        self, variables: Any, images: Any, *, layer: str
    ) -> tuple[Any, Any, list[Moments]]:
        """As `features_and_logits`, and what every BatchNorm of images gets of a batch.

        The network is in evaluation mode: what it says of an image does not depend on
        the others, the moments do. They are those of `images`, of one device. A
        BatchNorm that is called twice counts twice; those inside of a scan are not
        seen. Those of vectors are left out, as in DeepInversion: behind dropout, which
        evaluation does without, they keep variances that no image could have.
        """
        return self._look(variables, images, layer=layer, moments=True)

    def _look(self, *arguments, layer, moments=False):
        """Features, what the network returns, and moments."""
        if layer == LOGITS and not moments:
            outputs = fast.faster(self)(*arguments)
            return jax.tree.leaves(outputs)[0], outputs, []
        found = graph.of(self, *arguments)
        outputs, (features,), seen = found.run(
            *arguments, wanted=[layer], moments=moments, plan=fast.best()
        )
        return features.astype(jax.tree.leaves(outputs)[0].dtype), outputs, seen

    def head(
        self,
        variables: Any,
        features: Any,
        *,
        layer: str,
        image_shape: tuple[int, int, int],
    ) -> Any:
        """Logits `[batch, classes]` of the rest of the network, after `layer`.

        Whatever goes round the layer (a skip connection) is that of a blank image.
        """
        if layer == LOGITS:
            return features
        blank = jnp.zeros((features.shape[0], *image_shape), features.dtype)
        found = graph.of(self, variables, blank)
        return found.run(variables, blank, given={layer: features}, plan=fast.best())[0]

    def graph(
        self,
        variables: Any,
        image_shape: tuple[int, ...],
        num_images: int = graph.MANY,
    ) -> graph.Graph:
        """The network in evaluation mode, looked into; nothing is computed."""
        images = jax.ShapeDtypeStruct((num_images, *image_shape), jnp.float32)
        return graph.of(self, variables, images)


@dataclasses.dataclass(frozen=True)
class Linen(Model):
    """A linen module; nothing needs to be inherited."""

    module: nn.Module

    def __hash__(self):
        try:
            return hash(self.module)
        except TypeError:  # A field is a list or an array.
            return hash(type(self.module))

    @property
    def name(self) -> str:
        """The class of the module."""
        return registry.name_of(self.module)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Its fields, as JSON values."""
        return registry.arguments_of(self.module)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the module's own fields."""
        fields = (field.name for field in dataclasses.fields(self.module) if field.init)
        return tuple(name for name in fields if name not in ("parent", "name"))

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

    def init(self, key: Any, image_shape: tuple[int, ...]) -> Any:
        """Variables of a network that has learned nothing yet."""
        images = jnp.zeros((1, *image_shape))
        module, keywords = _in_mode(self.module, train=False)
        # As one program: operation by operation it takes seconds.
        variables = jax.jit(lambda key: module.init(key, images, **keywords))(key)
        return nn.meta.unbox(variables)

    def never_trained(self, variables: Any, images: Any) -> str:
        """Returns the kind of layer that always stays in evaluation mode, or ""."""
        modes: dict[str, list[bool]] = {}

        def look(call, arguments, keywords, context):
            layer, name = context.module, ""
            if isinstance(layer, nn.Dropout) and layer.rate:
                name = "deterministic"
            elif isinstance(layer, nn.BatchNorm):
                name = "use_running_average"
            if name and context.method_name == "__call__":
                given = keywords.get(name, arguments[1] if arguments[1:] else None)
                off = getattr(layer, name) if given is None else given
                modes.setdefault(type(layer).__name__, []).append(bool(off))
            return call(*arguments, **keywords)

        with nn.intercept_methods(look):
            jax.eval_shape(self, variables, images, jax.random.key(0))
        return next((kind for kind, off in modes.items() if all(off)), "")


@dataclasses.dataclass(frozen=True)
class Ended(Model):
    """A model's logits, where it returns something else as well or made of them.

    Attributes:
        model: The whole.
        output: Name or index of the logits among its outputs; empty for the only one.
        ending: "softmax", before which it is cut; "sigmoid": of one number, whose class
            1 is told from class 0, which has logit 0; or empty.
    """

    model: Model
    output: str = ""
    ending: str = ""

    @property
    def name(self) -> str:
        """Of the whole."""
        return self.model.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Of the whole."""
        return self.model.arguments

    @property
    def fields(self) -> tuple[str, ...]:
        """Of the whole."""
        return self.model.fields

    def init(self, key: Any, image_shape: tuple[int, ...]) -> Any:
        """Variables of the whole."""
        return self.model.init(key, image_shape)

    def never_trained(self, variables: Any, images: Any) -> str:
        """See `Model`."""
        return self.model.never_trained(variables, images)

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """See `Model`."""
        arguments = (variables, images, *key)
        if not self.ending:
            return self.chosen(*arguments)
        found = graph.of(self.chosen, *arguments).before_ending(*arguments)
        if self.ending == "softmax":
            return found
        logit, *state = found if key else (found,)
        both = jnp.concatenate([jnp.zeros_like(logit), logit], axis=-1)
        return (both, *state) if key else both

    def chosen(self, variables: Any, images: Any, *key: Any) -> Any:
        """The output that is asked for, not cut."""
        outputs = self.model(variables, images, *key)
        outputs, *state = outputs if key else (outputs,)
        if self.output:
            is_named = isinstance(outputs, Mapping)
            outputs = outputs[self.output if is_named else int(self.output)]
        return (outputs, *state) if key else outputs


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A classifier: what it computes, by which weights, of which images.

    A pytree of its variables, so that steps and devices take it whole.

    Attributes:
        model: As functions of arrays.
        variables: See above.
        description: What else is known of it: its images and classes.
    """

    model: Model
    variables: Any
    description: Description

    def __init_subclass__(cls):
        _register(cls)

    def normalize(self, pixels: Any) -> Any:
        """What the network is given of pixels; see `Description.normalize`."""
        return self.description.normalize(pixels)

    def logits(self, images: Any) -> Any:
        """Logits `[batch, classes]` of normalized `[batch, height, width, channels]`.

        In evaluation mode, in the operations that are fastest here.
        """
        return self.model.logits(self.variables, images)

    def features_and_logits(self, images: Any, *, layer: str) -> tuple[Any, Any]:
        """Output of `layer`, `[batch, …, units]`, and logits of normalized images."""
        return self.model.features_and_logits(self.variables, images, layer=layer)

    def features_logits_and_moments(
        self, images: Any, *, layer: str
    ) -> tuple[Any, Any, list[Moments]]:
        """See `Model`."""
        return self.model.features_logits_and_moments(
            self.variables, images, layer=layer
        )

    def features(self, images: Any, *, layer: str) -> Any:
        """Output of `layer`, `[batch, …, units]`, of normalized images."""
        return self.features_and_logits(images, layer=layer)[0]

    def head(self, features: Any, *, layer: str) -> Any:
        """Logits `[batch, classes]` of what `layer` says; see `Model.head`."""
        shape = self.description.image_shape
        return self.model.head(self.variables, features, layer=layer, image_shape=shape)

    def graph(self, num_images: int = graph.MANY) -> graph.Graph:
        """The network, looked into; nothing is computed."""
        shape = tuple(self.description.image_shape)
        return self.model.graph(self.variables, shape, num_images)

    def layers(self) -> dict[str, Layer]:
        """Layers that can be feature layers by name, in the order of the first call."""
        return dict(self.graph().layers)

    def kernel(self, layer: str) -> Any:
        """A layer's kernel, `[…, inputs, units]`, however the framework keeps it."""
        if layer == LOGITS:
            return jnp.eye(self.description.num_classes)
        return self.graph().kernel(self.variables, layer)

    def bias(self, layer: str) -> Any:
        """A layer's bias, `[units]`; None if it has none."""
        if layer == LOGITS:
            return None
        return self.graph().bias(self.variables, layer)

    def statistics(self, batch_norm: str) -> tuple[Any, Any]:
        """Running mean and variance, `[features]` each, of a BatchNorm."""
        return self.graph().statistics(self.variables, batch_norm)


def _register(kind):
    jax.tree_util.register_dataclass(
        kind, data_fields=["variables"], meta_fields=["model", "description"]
    )


_register(Network)


def logits_layer(num_classes: int) -> Layer:
    """What stands for a layer where none is found: the logits themselves."""
    return Layer(
        name=LOGITS,
        leaves=(),
        output_shape=(num_classes,),
        kernel_layer=LOGITS,
        kernel_shape=(num_classes, num_classes),
    )


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
