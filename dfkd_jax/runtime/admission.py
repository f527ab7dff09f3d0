"""Networks from anywhere are checked here before anything is asked of them."""

import contextlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, traverse_util

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models import graph
from dfkd_jax.models.network import MODE_ARGUMENTS, Ended, Model
from dfkd_jax.runtime import weights
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.runtime.trained import TrainedNetwork, fixed_images
from dfkd_jax.runtime.weights import Stored

# What linen raises where a network is in training mode when it is evaluated.
_MODE_ERRORS = (errors.InvalidRngError, errors.ModifyScopeVariableError)


def restore(stored: Stored, model: Model, *, source: str) -> TrainedNetwork:
    """The network whose weights are stored, given what computes with them.

    Raises:
        CheckpointError: See `admit`; or it computes something else than what was saved.
    """
    found = admit(model, stored.variables, stored.description, source=source)
    found.check_fingerprint(stored.fingerprint, source=source)
    return found


def finished(
    model: Model, image_shape: Sequence[int], *, network: str, output: str = ""
) -> Model:
    """The model as it gives logits: the output asked for, before its softmax.

    Args:
        model: May return several things, end in softmax, or in a sigmoid of one number.
        image_shape: (height, width, channels).
        network: Its name, for the message.
        output: Name or index of the logits among what it returns.

    Raises:
        CheckpointError: It takes no such images, or has no such output.
    """
    if isinstance(model, Ended):
        return model
    shape = tuple(image_shape)
    with _explained(network, shape):
        variables = model.shapes(shape)
        outputs = jax.eval_shape(model, variables, _two_images(shape))
    names = []
    if isinstance(outputs, Mapping):
        names = [str(name) for name in outputs]
    elif isinstance(outputs, tuple | list):
        names = [str(place) for place in range(len(outputs))]
    if output not in (names or [""]):
        raise CheckpointError(
            f"Network {network!r} returns "
            + (f"several things ({', '.join(names)})" if names else "one thing")
            + f", logits={output!r}: "
            + ("say which are the logits." if names else "leave it out.")
        )
    whole = Ended(model, output)
    images = jax.ShapeDtypeStruct((graph.MANY, *shape), jnp.float32)
    with _explained(network, shape):
        # Of the model itself, if it can be: its layers are read from the same graph.
        ending = graph.of(whole.chosen if output else model, variables, images).ending
    if ending in ("softmax", "sigmoid"):
        return Ended(model, output, ending)
    return whole if output else model


def admit(
    model: Model, variables: Any, description: Description, *, source: str
) -> TrainedNetwork:
    """A network of variables from anywhere, as float32 NumPy arrays.

    Raises:
        CheckpointError: They do not fit the model, hold NaN or a negative variance; or
            the model does not take such images or returns other logits.
    """
    name = description.network
    model = finished(
        model, description.image_shape, network=name, output=description.output
    )
    expected, num_classes = trace(model, description.image_shape, network=name)
    variables = weights.as_float32(variables, source=source)
    weights.check_shapes(variables, expected, source=source, network=name)
    if num_classes != description.num_classes:
        raise CheckpointError(
            f"Network {name!r} tells {num_classes} classes apart, not "
            f"{description.num_classes}: change its arguments."
        )
    flat = weights.flatten(variables)
    weights.check_finite(flat, source=source)
    for key, leaf in flat.items():
        # Whose root would be NaN.
        if key.startswith("batch_stats/") and key.endswith("/var") and (leaf < 0).any():
            raise CheckpointError(
                f"{source}: tensor {key} holds a negative variance: fetch or train the "
                "weights again."
            )
    # In the model's own tree: a name may hold a slash (`nn.SpectralNorm`).
    paths = traverse_util.flatten_dict(expected)
    variables = {path: flat["/".join(path)] for path in paths}
    return TrainedNetwork(
        model=model,
        variables=traverse_util.unflatten_dict(variables),
        description=description,
    )


def check_teacher(teacher: TrainedNetwork, *, source: str) -> None:
    """Raises CheckpointError where a network's outputs are no logits of images.

    They are not finite, constant, or probabilities: these stay within 0 and 1 even
    where images or parameters are a hundred times as large, which no logits do.
    """
    images = fixed_images(teacher.description.image_shape)
    outputs = teacher.answers(images)
    if not np.isfinite(outputs).all():
        raise CheckpointError(
            f"{source}: the network {teacher.description.network!r} answers with NaN "
            "or infinity: name weights that were trained, of this very network."
        )
    if (outputs == outputs[:1]).all():
        raise CheckpointError(
            f"{source}: the network {teacher.description.network!r} gives the same "
            "logits for every image, as untrained or emptied weights do: name weights "
            "that were trained."
        )
    if ((outputs < 0) | (outputs > 1)).any():
        return
    large = np.concatenate(
        [
            outputs,
            teacher.answers(images, contrast=100.0),
            teacher.answers(images, scale=100.0),
        ]
    )
    large = large[np.isfinite(large).all(-1)]
    if ((large >= 0) & (large <= 1)).all():
        ends, remedy = "sigmoid", ""
        if np.allclose(large.sum(-1), 1, atol=1e-3):
            ends, remedy = "softmax", ", or the log of its outputs (nn.log_softmax)"
        raise CheckpointError(
            f"{source}: the network {teacher.description.network!r} returns "
            f"probabilities (it ends in a {ends}), expected logits: return what the "
            f"{ends} gets{remedy}."
        )


def trace(model: Model, image_shape: Sequence[int], *, network: str) -> tuple[Any, int]:
    """Shapes of a network's variables and its number of classes, without running it.

    Raises:
        CheckpointError: It cannot take such images, or returns other than logits.
    """
    shape = tuple(image_shape)

    def start(key, images):
        variables = model.init(key, shape)
        return variables, model.logits(variables, images)

    with _explained(network, shape):
        expected, logits = jax.eval_shape(start, jax.random.key(0), _two_images(shape))
    found = getattr(logits, "shape", None)
    if not found or len(found) != 2 or found[0] != 2:
        raise CheckpointError(
            f"Network {network!r} returns {found or type(logits).__name__} for two "
            "images instead of logits (2, classes)."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise CheckpointError(
            f"Network {network!r} returns {logits.dtype} instead of logits, which are "
            "floats: return what its last layer says."
        )
    if found[1] < 2:
        raise CheckpointError(
            f"Network {network!r} returns one logit, expected one per class: for two "
            "classes return jnp.concatenate([jnp.zeros_like(z), z], -1) for the logit "
            "z."
        )
    if not jax.tree.leaves(expected.get("params", {})):
        raise CheckpointError(
            f"Network {network!r} has no parameters: name a network that was trained."
        )
    return expected, found[1]


def check_trainable(
    model: Model, expected: Any, image_shape: Sequence[int], *, network: str
) -> None:
    """Raises CheckpointError where dropout or BatchNorm would never be trained.

    Args:
        model: A student.
        expected: Its variables, abstract or not.
        image_shape: (height, width, channels).
        network: Its name, for the message.
    """
    with _explained(network, tuple(image_shape)):
        off = model.never_trained(expected, _two_images(image_shape))
    if off:
        raise CheckpointError(
            f"Network {network!r} leaves its {off} in evaluation mode when it is "
            "trained: expected an argument of __call__ (or a field) that says which, "
            f"one of {', '.join(MODE_ARGUMENTS)}; pass it on to the {off}."
        )


def _two_images(shape):
    return jax.ShapeDtypeStruct((2, *shape), jnp.float32)


@contextlib.contextmanager
def _explained(network, shape):
    """What a network raises as one error of ours."""
    try:
        yield
    except (Exception, SystemExit) as error:  # Anybody's network may raise anything.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        remedy = (
            "Check its arguments and the images' shape; one that takes vectors is to "
            "flatten its images first."
        )
        if isinstance(error, jax.errors.JAXTypeError):
            remedy = (
                "It turns what it computes into numbers of Python or NumPy on the way: "
                "take that out of its call."
            )
        if "missing" in reason[0] or isinstance(error, _MODE_ERRORS):
            remedy = (
                "Of further arguments, only one that says whether it is trained is "
                f"given: {', '.join(MODE_ARGUMENTS)}."
            )
        raise CheckpointError(
            f"Network {network!r} cannot be called with images "
            f"[batch, {', '.join(map(str, shape))}] ({reason[0][:200]}). {remedy}"
        ) from error


def filled(model: Model, description: Description) -> TrainedNetwork:
    """A network that nobody has trained, the same everywhere and for ever."""
    expected, _ = trace(model, description.image_shape, network=description.network)

    def fill(path, leaf):
        seed = zlib.crc32("/".join(path).encode())
        bits = np.random.PCG64(seed).random_raw(math.prod(leaf.shape))
        values = (bits >> np.uint64(40)) / 2.0**24  # From 0 to 1.
        inputs = math.prod(leaf.shape[:-1])
        if path[-1] in ("scale", "var"):
            values = values + 0.5
        else:
            values = (2 * values - 1) * math.sqrt(3 / max(inputs, 1))
        return values.reshape(leaf.shape).astype(leaf.dtype)

    flat = traverse_util.flatten_dict(expected)
    variables = {path: fill(path, leaf) for path, leaf in flat.items()}
    return TrainedNetwork(
        model=model,
        variables=traverse_util.unflatten_dict(variables),
        description=description,
    )
