"""A student that starts as a part of the teacher, where it is the same but narrower.

Of each layer those units are kept from which what the next one gets can best be told.
Then, layer by layer, the kernel is fitted by least squares: from what the student's own
layers say before it, it is to say what the teacher's kept units say, so that the kept
ones stand in for the rest (He, Zhang and Sun, ICCV 2017, of channels that are pruned).
The images are those that the student will learn from, so nothing else is needed.

Layers belong together by their place in the chain, and their weights by what they are
for: names, layouts and frameworks of teacher and student may differ.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dfkd_jax.errors import ConfigError
from dfkd_jax.models import fast
from dfkd_jax.models.graph import Graph, Layer
from dfkd_jax.models.network import Model, Network
from dfkd_jax.runtime import progress, weights

AT_ONCE = 250  # Images.
CONV_IMAGES = 1_000  # Each has many places to fit a convolution at.
RIDGE = 1e-3  # Of the mean square of a layer's inputs: the pull of the old kernel.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A layer of a chain, and where its weights are among the network's variables.

    Attributes:
        layer: With a kernel.
        looked: The network, looked into.
        kernel: Path of its leaf.
        bias: Path of its leaf, or None.
        inputs: Units of the layer before it.
        stride: Numbers of one of these in a row, in what the layer gets.
        inner: The same, among the inputs of its kernel.
    """

    layer: Layer
    looked: Graph
    kernel: str
    bias: str | None
    inputs: int
    stride: int
    inner: int

    @functools.cached_property
    def places(self) -> Int[np.ndarray, "rows units"]:
        """Of each number of the kernel in its leaf, flat."""
        places = self.looked.kernel_places(self.layer.name)
        return places.reshape(-1, self.layer.num_units)

    @property
    def by_unit(self) -> Int[np.ndarray, "window inner inputs units"]:
        """The same, with units of the layer before on an axis of their own."""
        shape = (-1, self.inputs, self.inner, self.layer.num_units)
        return self.places.reshape(shape).swapaxes(1, 2)

    @property
    def num_places(self) -> int:
        """How many numbers it has for a unit of the layer before and one of its own."""
        return math.prod(self.layer.kernel_shape[:-1]) // self.inputs


class Role(NamedTuple):
    """What a leaf is for: the first, second, … "mean", "mul", … behind a layer."""

    layer: int
    name: str
    count: int


class Chain(NamedTuple):
    """What of a network matters here.

    Attributes:
        links: In calling order.
        others: Leaves that are no kernel and no bias, and how many numbers of one unit
            of the layer before them are in a row; 0 if they are not of its units.
        shapes: Of all variables by name, as in `weights.flatten`.
        reason: Why its layers cannot be fitted one after the other, or nothing; there
            are no links then.
        names: Of its layers.
    """

    links: tuple[Link, ...]
    others: dict[Role, tuple[str, int]]
    shapes: dict[str, tuple[int, ...]]
    reason: str
    names: tuple[str, ...]


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
    theirs, own = chain(teacher.model, shape), chain(student, shape)
    if not own.names:
        return "it shows no layers"
    if len(theirs.names) != len(own.names):
        return (
            f"the student's are {', '.join(own.names)}, the teacher's "
            f"{', '.join(theirs.names)}"
        )
    return theirs.reason or own.reason or _too_different(theirs, own)


def init_from_pruned_teacher(
    teacher: Network,
    student: Model,
    start: Any,
    images: Float[Array | np.ndarray, "n height width channels"],
) -> Any:
    """The student's variables: a part of the teacher's, fitted on images.

    Args:
        teacher: It and the student have passed `check`.
        student: As functions of arrays.
        start: The student's variables, of which those stay that no image meets.
        images: Normalized.
    """
    shape = images.shape[1:]
    theirs, own = chain(teacher.model, shape), chain(student, shape)
    kept = choose_units(teacher, images, theirs=theirs, own=own)
    variables = weights.flatten(teacher.variables)
    start = weights.flatten(start) | slice_variables(
        variables, kept, theirs=theirs, own=own
    )
    with progress.track("start", total=len(kept), done=0, unit="layers") as update:
        for place, link in enumerate(own.links):
            ask = functools.partial(
                _sums,
                (teacher.model, theirs.links[place].layer.name),
                (student, link.layer.name),
                kept[place],
            )
            is_convolution = len(link.layer.kernel_shape) > 2
            some = images[:CONV_IMAGES] if is_convolution else images
            sums = _add_up(jax.jit(ask), (variables, start), some)
            start |= fit_least_squares(link, start, *sums)
            update(place + 1)
    return weights.unflatten(start, source="The student")


def choose_units(
    teacher: Network,
    images: Float[Array | np.ndarray, "n height width channels"],
    *,
    theirs: Chain,
    own: Chain,
) -> list[np.ndarray]:
    """Which units of each of the teacher's layers the student keeps, in their order.

    Args:
        teacher: Whose layers they are.
        images: What outputs are looked at on.
        theirs: Of the teacher.
        own: Of the student, which says how many.
    """
    variables = weights.flatten(teacher.variables)
    units = [link.layer.num_units for link in theirs.links]

    def moments(variables, images):
        _, seen = _inputs(teacher.model, variables, images)
        found = []
        for link, number in zip(theirs.links[1:], units[:-1], strict=True):
            rows = seen[link.layer.name].reshape(-1, number, link.stride)
            rows = jnp.moveaxis(rows, 1, -1).reshape(-1, number)
            found.append((len(rows), rows.sum(0), rows.T @ rows))
        return found

    kept = []
    sums = _add_up(jax.jit(moments), (variables,), images)
    for place, (count, first, second) in enumerate(sums):
        mean, following = first / count, theirs.links[place + 1]
        kernel = variables[following.kernel].reshape(-1)[following.by_unit]
        kernel = kernel.reshape(-1, *kernel.shape[-2:])
        chosen = select_channels(
            second / count - np.outer(mean, mean),
            np.einsum("wio,wjo->ij", kernel, kernel, optimize=True),
            number=own.links[place].layer.num_units,
        )
        kept.append(chosen)
    return [*kept, np.arange(units[-1])]


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
    least = max(1e-9 * rest.trace() / len(rest), 1e-12)  # No unit may vary.
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
    kept: list[np.ndarray],
    *,
    theirs: Chain,
    own: Chain,
) -> dict[str, Any]:
    """The student's variables by name: the teacher's, of the kept units alone."""
    before = [np.arange(theirs.links[0].inputs), *kept]
    start = {}
    for place, (their, link) in enumerate(zip(theirs.links, own.links, strict=True)):
        kernel = np.asarray(variables[their.kernel])
        kernel = kernel.reshape(-1)[their.by_unit]
        kernel = kernel[:, :, before[place]][..., kept[place]]
        kernel = kernel.reshape(-1, *link.by_unit.shape[1:])  # Its places as its own.
        start[link.kernel] = _laid(kernel, link.by_unit, own.shapes[link.kernel])
        if link.bias:
            bias = np.zeros(len(kept[place]), kernel.dtype)
            if their.bias:
                bias = np.asarray(variables[their.bias]).reshape(-1)[kept[place]]
            start[link.bias] = bias.reshape(own.shapes[link.bias])
    for role, (path, inner) in own.others.items():
        source, their_inner = theirs.others[role]
        leaf, shape = np.asarray(variables[source]), own.shapes[path]
        if inner:  # Numbers by unit, however they lie.
            num_units = theirs.links[role.layer].layer.num_units
            leaf = leaf.reshape(-1, num_units, their_inner).swapaxes(1, 2)
            leaf = leaf[..., kept[role.layer]]
            leaf = leaf.reshape(-1, inner, leaf.shape[-1]).swapaxes(1, 2)
        start[path] = leaf.reshape(shape)
    return start


def fit_least_squares(
    link: Link,
    start: Mapping[str, Any],
    squares: Float[np.ndarray, "inputs inputs"],
    products: Float[np.ndarray, "inputs units"],
) -> dict[str, Any]:
    """Kernel and bias of a layer by least squares, drawn to what they are a little.

    Args:
        link: The student's.
        start: The student's variables by name.
        squares: Of what the kernel is multiplied with; with a bias, a last input that
            is always 1.
        products: Of that and what is wanted of the units.
    """
    leaf = np.asarray(start[link.kernel])
    old = leaf.reshape(-1)[link.places]
    if link.bias:
        old = np.concatenate([old, np.reshape(start[link.bias], (1, -1))])
    ridge = RIDGE * np.trace(squares) / len(squares) + 1e-9
    change = np.linalg.solve(
        squares + ridge * np.eye(len(squares)), products - squares @ old
    )
    new = (old + change).astype(leaf.dtype)
    kernel = new[: len(link.places)]
    fitted = {link.kernel: _laid(kernel, link.places, leaf.shape)}
    if link.bias:
        fitted[link.bias] = new[-1].reshape(np.shape(start[link.bias]))
    return fitted


def _laid(numbers, places, shape):
    """A leaf with each of the numbers in its place."""
    leaf = np.empty(places.size, numbers.dtype)
    leaf[places] = numbers
    return leaf.reshape(shape)


def _sums(theirs, own, kept, variables, start, images):
    """Of a layer: squares of the student's inputs, products with what is wanted."""
    (teacher, name), (student, own_name) = theirs, own
    looked, seen = _inputs(student, start, images)
    inputs = looked.patches(own_name, seen[own_name])
    if looked.bias_leaf(own_name):
        inputs = jnp.concatenate([inputs, jnp.ones((len(inputs), 1))], axis=1)
    looked, seen = _inputs(teacher, variables, images)
    tree = weights.unflatten(variables, source="The network")
    bias = looked.bias(tree, name)
    wanted = looked.linear(
        name,
        seen[name],
        looked.kernel(tree, name)[..., kept],
        None if bias is None else bias[kept],
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


def chain(model: Model, shape: tuple[int, ...]) -> Chain:
    """A network for images of (height, width, channels), as a chain of layers."""
    variables = model.shapes(shape)
    looked = model.graph(variables, shape)
    flat = weights.flatten(variables)
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    layers = {
        name: each for name, each in looked.layers.items() if each.kernel_layer == name
    }
    names = tuple(layers)
    reason = _unfit(looked, layers)
    links = []
    for place, (name, layer) in enumerate(layers.items()):
        if reason:
            break
        inputs, strides = layer.kernel_shape[-2], (1, 1)
        if place:
            inputs = links[-1].layer.num_units
            strides = looked.units_in(name, names[place - 1])
        kernel = looked.kernel_leaf(name)
        if kernel is None:
            reason = f"{name!r} computes its kernel from other weights"
        elif strides is None:
            reason = f"{name!r} does not read the units of {names[place - 1]!r}"
        else:
            links.append(
                Link(
                    layer=layer,
                    looked=looked,
                    kernel=kernel,
                    bias=looked.bias_leaf(name),
                    inputs=inputs,
                    stride=strides[0],
                    inner=strides[1],
                )
            )
    if reason:
        return Chain((), {}, shapes, reason, names)
    return Chain(tuple(links), _others(looked, links, shapes), shapes, "", names)


def _others(looked, links, shapes):
    """Leaves that are no kernel and no bias, by what they are for."""
    taken = {path for link in links for path in (link.kernel, link.bias)}
    places = {link.layer.name: place for place, link in enumerate(links)}
    found = {}
    for path, owner in looked.owners().items():
        if path not in taken:
            count, layer = 0, places.get(owner.layer, -1)
            while (role := Role(layer, owner.role, count)) in found:
                count += 1
            inner = owner.inner or 0
            if inner and math.prod(shapes[path]) % (
                inner * links[layer].layer.num_units
            ):
                inner = 0
            found[role] = path, inner
    return found


def _unfit(looked, layers):
    """Why the layers of a network cannot be fitted one after the other, or nothing."""
    if odd := looked.unfit:
        return f"{odd!r} is a layer of a kind that cannot be fitted by least squares"
    for name, layer in layers.items():
        if layer.calls > 1:
            return f"{name!r} is called several times"
    around = [name for name, layer in looked.layers.items() if not layer.is_cut]
    if around:
        return f"something goes round {around[0]!r}"
    return ""


def _too_different(theirs, own):
    """Why the student is no part of the teacher, or nothing."""
    for their, link in zip(theirs.links, own.links, strict=True):
        name = link.layer.name
        if link.layer.num_units > their.layer.num_units:
            return f"{name!r} is wider in the student"
        if link.num_places != their.num_places:
            return (
                f"{name!r} is {link.layer.kernel_shape} in the student and "
                f"{their.layer.kernel_shape} in the teacher"
            )
    if link.layer.num_units != their.layer.num_units:
        return f"{name!r}, the last one, is narrower in the student, too"
    for role, (path, inner) in own.others.items():
        if role not in theirs.others:
            return f"the teacher has nothing that could be {path}"
        source, their_inner = theirs.others[role]
        sizes = [math.prod(own.shapes[path]), math.prod(theirs.shapes[source])]
        if inner and their_inner:
            sizes[0] //= own.links[role.layer].layer.num_units
            sizes[1] //= theirs.links[role.layer].layer.num_units
        if sizes[0] != sizes[1]:
            return (
                f"{path} is {own.shapes[path]} in the student and "
                f"{theirs.shapes[source]} in the teacher"
            )
    return ""
