"""A student that starts as a part of the teacher, where it is the same but narrower.

Of each layer those units are kept from which what the next one gets can best be told.
Then, layer by layer, the kernel is fitted by least squares: from what the student's own
layers say before it, it is to say what the teacher's kept units say, so that the kept
ones stand in for the rest (He, Zhang and Sun, ICCV 2017, of channels that are pruned).
The images are those that the student will learn from, so nothing else is needed.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfkd_jax.errors import ConfigError
from dfkd_jax.models import fast
from dfkd_jax.models.graph import Layer
from dfkd_jax.models.network import Model, Network
from dfkd_jax.runtime import progress, weights

AT_ONCE = 250  # Images.
CONV_IMAGES = 1_000  # Each has many places to fit a convolution at.
RIDGE = 1e-3  # Of the mean square of a layer's inputs: the pull of the old kernel.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """What of a network matters here.

    Attributes:
        layers: With a kernel, by name, in calling order.
        owners: Name of the last of these up to each module, None before the first.
        shapes: Of all variables by name, as in `weights.flatten`.
    """

    layers: dict[str, Layer]
    owners: dict[str, str | None]
    shapes: dict[str, tuple[int, ...]]


def check(*, teacher: Network, student: Model) -> None:
    """Raises ConfigError where the student is not the teacher, only narrower."""
    if reason := obstacle(teacher=teacher, student=student):
        raise ConfigError(
            "config.distillation.start='teacher' takes a student that is the teacher, "
            f"only narrower, and a plain chain of layers: {reason}. Take such a "
            "student, or start='random'."
        )


def obstacle(*, teacher: Network, student: Model) -> str:
    """Returns why the student cannot start as a part of the teacher, or nothing."""
    shape = teacher.description.image_shape
    theirs, own = layer_graph(teacher.model, shape), layer_graph(student, shape)
    return (
        _different_layers(theirs, own)
        or _unfit(teacher.model, shape)
        or _unfit(student, shape)
        or _different_shapes(theirs, own)
    )


def init_from_pruned_teacher(
    teacher: Network,
    student: Model,
    images: Float[Array | np.ndarray, "n height width channels"],
) -> Any:
    """The student's variables: a part of the teacher's, fitted on images.

    Args:
        teacher: It and the student have passed `check`.
        student: As functions of arrays.
        images: Normalized.
    """
    shape = images.shape[1:]
    theirs, own = layer_graph(teacher.model, shape), layer_graph(student, shape)
    variables = weights.flatten(teacher.variables)
    kept = choose_units(teacher, images, theirs=theirs, own=own)
    start = slice_variables(variables, kept, theirs=theirs, own=own)
    with progress.track("start", total=len(kept), done=0, unit="layers") as update:
        for place, name in enumerate(own.layers, 1):
            ask = functools.partial(_sums, teacher.model, student, name, kept[name])
            is_convolution = len(own.layers[name].kernel_shape) > 2
            some = images[:CONV_IMAGES] if is_convolution else images
            start |= fit_least_squares(
                name, start, *_add_up(jax.jit(ask), (variables, start), some)
            )
            update(place)
    return weights.unflatten(start, source="The student")


def choose_units(
    teacher: Network,
    images: Float[Array | np.ndarray, "n height width channels"],
    *,
    theirs: LayerGraph,
    own: LayerGraph,
) -> dict[str, np.ndarray]:
    """Which units of the teacher's layers the student keeps, in their order.

    Args:
        teacher: Whose layers they are.
        images: What outputs are looked at on.
        theirs: Of the teacher.
        own: Of the student, which says how many.
    """
    variables = weights.flatten(teacher.variables)
    names = list(theirs.layers)
    units = [theirs.layers[name].num_units for name in names]

    def moments(variables, images):
        _, seen = _inputs(teacher.model, variables, images)
        rows = [
            seen[name].reshape(-1, number)
            for name, number in zip(names[1:], units[:-1], strict=True)
        ]
        return [(len(each), each.sum(0), each.T @ each) for each in rows]

    kept = {names[-1]: np.arange(units[-1])}
    sums = _add_up(jax.jit(moments), (variables,), images)
    for place, (count, first, second) in enumerate(sums):
        mean = first / count
        kernel = variables[f"params/{names[place + 1]}/kernel"]
        kernel = kernel.reshape(-1, units[place], kernel.shape[-1])
        kept[names[place]] = select_channels(
            second / count - np.outer(mean, mean),
            np.einsum("wio,wjo->ij", kernel, kernel, optimize=True),
            number=own.layers[names[place]].num_units,
        )
    return kept


def select_channels(
    covariance: np.ndarray, weights: np.ndarray, *, number: int
) -> np.ndarray:
    """Units from which the others can best be told linearly, in their order.

    Greedily: one after the other, that which leaves the least of tr(weights · R), with
    R the covariance of what the chosen ones leave unexplained.

    Args:
        covariance: `[units, units]`, of their outputs.
        weights: `[units, units]`, K Kᵀ of the next layer's kernel K: what errors cost.
        number: How many.
    """
    rest = np.array(covariance, np.float64)
    costs = weights @ rest
    least = 1e-9 * rest.trace() / len(rest)
    free = np.ones(len(rest), bool)
    for _ in range(number):
        own = rest.diagonal()
        gain = np.where(own > least, (rest * costs).sum(0) / np.maximum(own, least), 0)
        best = np.where(free, gain, -1).argmax()
        free[best] = False
        if own[best] > least:
            change = rest[best] / np.sqrt(own[best])
            rest = rest - np.outer(change, change)
            costs = costs - np.outer(weights @ change, change)
    return np.flatnonzero(~free)


def slice_variables(
    variables: Mapping[str, Any],
    kept: Mapping[str, np.ndarray],
    *,
    theirs: LayerGraph,
    own: LayerGraph,
) -> dict[str, Any]:
    """The student's variables by name: the teacher's, of the kept units alone."""
    before = dict(zip(theirs.layers, [None, *theirs.layers], strict=False))

    def take(leaf, layer, axis):
        units = theirs.layers[layer].num_units
        # Flattened maps have the units of a place, place after place.
        places = np.arange(leaf.shape[axis] // units)[:, None] * units
        return leaf.take((places + kept[layer]).reshape(-1), axis)

    start = {}
    for path, shape in own.shapes.items():
        leaf = np.asarray(variables[path])
        module = path.partition("/")[2].rpartition("/")[0]
        if module in theirs.layers and path.endswith("/kernel") and before[module]:
            leaf = take(leaf, before[module], -2)
        if leaf.shape != shape and theirs.owners.get(module):
            leaf = take(leaf, theirs.owners[module], -1)
        start[path] = leaf
    return start


def fit_least_squares(
    name: str, start: Mapping[str, Any], squares: np.ndarray, products: np.ndarray
) -> dict[str, Any]:
    """Kernel and bias of a layer by least squares, drawn to what they are a little.

    Args:
        name: Of the layer.
        start: The student's variables by name.
        squares: `[inputs, inputs]`, of what the kernel is multiplied with; with a bias,
            a last input that is always 1.
        products: `[inputs, units]`, of that and what is wanted of the units.
    """
    kernel = start[f"params/{name}/kernel"]
    bias = start.get(f"params/{name}/bias")
    old = kernel.reshape(-1, kernel.shape[-1])
    if bias is not None:
        old = np.concatenate([old, bias[None]])
    ridge = RIDGE * np.trace(squares) / len(squares) + 1e-9
    change = np.linalg.solve(
        squares + ridge * np.eye(len(squares)), products - squares @ old
    )
    new = (old + change).astype(kernel.dtype)
    if bias is None:
        return {f"params/{name}/kernel": new.reshape(kernel.shape)}
    return {
        f"params/{name}/kernel": new[:-1].reshape(kernel.shape),
        f"params/{name}/bias": new[-1],
    }


def _sums(teacher, student, name, kept, variables, start, images):
    """Of a layer: squares of the student's inputs, products with what is wanted."""
    kernel, bias = f"params/{name}/kernel", f"params/{name}/bias"
    looked, seen = _inputs(student, start, images)
    inputs = looked.patches(name, seen[name])
    if bias in start:
        inputs = jnp.concatenate([inputs, jnp.ones((len(inputs), 1))], axis=1)
    looked, seen = _inputs(teacher, variables, images)
    wanted = looked.linear(
        name,
        seen[name],
        variables[kernel][..., kept],
        variables[bias][kept] if bias in variables else None,
    )
    return inputs.T @ inputs, inputs.T @ wanted


def _add_up(sums, first, images) -> Any:
    """`sums(*first, part)` over all parts of `images`, in float64."""
    total = None
    for begin in range(0, len(images), AT_ONCE):
        found = sums(*first, images[begin : begin + AT_ONCE])
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)
        total = found if total is None else jax.tree.map(np.add, total, found)
    return total


def _inputs(model, variables, images):
    """The network, looked into, and what its layers get."""
    tree = weights.unflatten(variables, source="The network")
    looked = model.graph(tree, images.shape[1:], len(images))
    return looked, looked.inputs(tree, images, plan=fast.best())


def layer_graph(model: Model, shape: tuple[int, ...]) -> LayerGraph:
    """The layer graph of a network for images of (height, width, channels)."""
    variables = model.shapes(shape)
    looked = model.graph(variables, shape)
    layers = {
        name: each for name, each in looked.layers.items() if each.kernel_layer == name
    }
    flat = weights.flatten(variables)
    return LayerGraph(
        layers=layers,
        owners=looked.owners(),
        shapes={path: leaf.shape for path, leaf in flat.items()},
    )


def _different_layers(theirs, own):
    """Why the student's layers are no part of the teacher's, or nothing."""
    if not own.layers:
        return "it shows no layers"
    if list(theirs.layers) != list(own.layers):
        return (
            f"the student's are {', '.join(own.layers)}, the teacher's "
            f"{', '.join(theirs.layers)}"
        )
    for name, layer in own.layers.items():
        if layer.num_units > theirs.layers[name].num_units:
            return f"{name!r} is wider in the student"
        if max(layer.calls, theirs.layers[name].calls) > 1:
            return f"{name!r} is called several times"
    if layer.num_units != theirs.layers[name].num_units:
        return f"{name!r}, the last one, is narrower in the student, too"
    return ""


def _different_shapes(theirs, own):
    """Why the student's variables are no part of the teacher's, or nothing."""
    if missing := own.shapes.keys() - theirs.shapes.keys():
        return f"the teacher has no {min(missing)}"
    kept = {name: np.arange(layer.num_units) for name, layer in own.layers.items()}
    blank = {path: np.zeros(shape) for path, shape in theirs.shapes.items()}
    for path, leaf in slice_variables(blank, kept, theirs=theirs, own=own).items():
        if leaf.shape != own.shapes[path]:
            return (
                f"{path} is {own.shapes[path]} in the student and "
                f"{theirs.shapes[path]} in the teacher"
            )
    return ""


def _unfit(model, shape):
    """Why the layers of a network cannot be fitted one after the other, or nothing."""
    variables = model.shapes(shape)
    looked = model.graph(variables, shape)
    flat = weights.flatten(variables)
    for name, layer in looked.layers.items():
        if layer.kernel_layer == name and f"params/{name}/kernel" not in flat:
            return f"{name!r} keeps its weights otherwise than Flax's layers"
    if odd := looked.unfit:
        return f"{odd!r} is a layer of a kind that cannot be fitted by least squares"
    around = [name for name, layer in looked.layers.items() if not layer.is_cut]
    if around:
        return f"something goes round {around[0]!r}"
    return ""
