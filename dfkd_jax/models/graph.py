"""Any network as a graph: what it computes, by which weights, and where it can be cut.

A network is a function of variables (a tree of arrays) and images; which framework
wrote it does not matter. It is traced to a jaxpr, calls are inlined, and then

- a *layer* is an equation that multiplies something of the images with something of a
  leaf of the variables (`dot_general`, `conv_general_dilated`). Its name is the leaf's
  path without its last part: "params/conv_1/kernel" is of "conv_1";
- its *features* are its outputs with the bias, if one follows;
- a *BatchNorm* divides something of the images by the root of a leaf;
- features are a *cut* if nothing of the images reaches the logits except through them.

Parts of the graph are new jaxprs, run by JAX itself, so that they can be transformed
like any function. `custom_jvp` and `custom_vjp` stay closed, since their gradients are
not those of what is inside (see `jaxprs`).
"""

import collections
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.models import jaxprs

_PRODUCTS = {"dot_general", "conv_general_dilated"}
# What changes only how the numbers lie.
_LAYOUT = {
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "convert_element_type",
    "copy",
    "copy_p",
    "stop_gradient",
    "optimization_barrier",
}
_SPREADING = _LAYOUT | {"broadcast_in_dim"}
_ADDITIONS = {"add", "sub"}
# A number of images that is no other size, so that the axis of images is seen.
MANY = 1_009


class Moments(NamedTuple):
    """What a BatchNorm gets of a batch, and what it keeps; `[features]` each."""

    mean: Any
    var: Any
    running_mean: Any
    running_var: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can be the feature layer, in the order of the network's calls.

    It has a kernel; or it is a mean over the places of a convolution's outputs, as
    before the last layer of ResNets.

    Attributes:
        name: Path of its leaf without the last part.
        leaves: Paths of the leaves that its kernel is made of; several where it is
            computed (weight normalization).
        output_shape: Without the batch, units last.
        kernel_layer: Whose kernel holds its units' incoming weights: its own, or the
            convolution's that it pools.
        kernel_shape: `[inputs, units]`, or with a convolution's window before.
        calls: How often the network uses its leaf; a feature layer is used once.
        is_cut: Whether nothing of the images goes round it to the logits.
        batch_norm: Name of the BatchNorm that gets its features as they are, or None.
        activation: Name of the function of single numbers that follows, or "".
        next_layer: Name of the next layer, if that reads one input a unit, or None.
    """

    name: str
    leaves: tuple[str, ...]
    output_shape: tuple[int, ...]
    kernel_layer: str
    kernel_shape: tuple[int, ...]
    calls: int = 1
    is_cut: bool = True
    batch_norm: str | None = None
    activation: str = ""
    next_layer: str | None = None

    @property
    def num_units(self) -> int:
        """Dimension of the normal over this layer."""
        return self.output_shape[-1]

    @property
    def is_of_tokens(self) -> bool:
        """Whether its output is neither a vector nor feature maps."""
        return len(self.output_shape) not in (1, 3)


class Owner(NamedTuple):
    """Where a leaf of a network belongs.

    Attributes:
        layer: The last one that was called before the leaf is used, or None.
        inner: How many numbers lie next to each other of one unit of that layer, along
            the axis that the leaf is spread over; None if that cannot be told.
        role: What is done with it: "mean" and "var" of a BatchNorm, "add", "mul".
    """

    layer: str | None
    inner: int | None
    role: str


class _Place(NamedTuple):
    """Where a layer's features are: carries over between numbers of images."""

    var: Any
    unit_axis: int


class _BatchNorm(NamedTuple):
    name: str
    inputs: Any
    axes: tuple[int, ...]
    mean: str
    var: str


class Graph:
    """A function of `(variables, images, …)`, traced for arrays of these shapes.

    The first array that the function returns is the logits.
    """

    def __init__(self, function: Callable, *arguments: Any, _known: Any = None):
        """Traces; nothing is computed.

        Args:
            function: Takes the variables, images `[batch, …]`, and anything further.
            arguments: Arrays, or their shapes and dtypes.
        """
        leaves, self._tree = jax.tree.flatten(arguments)
        avals = tuple(map(jaxprs.aval_of, leaves))
        self._closed, self._out_tree = jaxprs.traced(function, self._tree, avals)
        self.depends_on_more = jaxprs.depends_on_more(self._closed)
        jaxpr = self._closed.jaxpr
        self._eqns, self._outvars = list(jaxpr.eqns), list(jaxpr.outvars)
        paths = [
            path_of(path)
            for path, _ in jax.tree_util.tree_flatten_with_path(arguments[0])[0]
        ]
        self._leaf_vars = dict(zip(paths, jaxpr.invars, strict=False))
        self._images = jaxpr.invars[len(paths)]
        self._users = jaxprs.users(self._eqns, self._outvars)
        self._maker = {var: eqn for eqn in self._eqns for var in eqn.outvars}
        self._spread()
        if _known is None:
            batch = jax.ShapeDtypeStruct(
                (MANY, *arguments[1].shape[1:]), arguments[1].dtype
            )
            _known = (
                {}
                if arguments[1].shape[0] == MANY
                else Graph(
                    function, arguments[0], batch, *arguments[2:], _known={}
                )._shapes
            )
        self._known = _known
        self._find_batch_norms()
        self._find_layers()

    # What is there -----------------------------------------------------------------

    def _spread(self):
        """Which values depend on the images, and of which leaves each is made."""
        self._of_images = {self._images}
        self._sources = {
            var: frozenset([path]) for path, var in self._leaf_vars.items()
        }
        self.hidden: tuple[str, ...] = ()
        for eqn in self._eqns:
            inputs = jaxprs.variables(eqn.invars)
            sources = frozenset().union(
                *(self._sources.get(var, frozenset()) for var in inputs)
            )
            if not self._of_images.isdisjoint(inputs):
                self._of_images.update(eqn.outvars)
                if eqn.primitive.name in ("scan", "while", "cond") and _multiplies(eqn):
                    own = [self._sources.get(v, ()) for v in inputs]
                    found = (path for paths in own for path in paths)
                    self.hidden += tuple(dict.fromkeys(found))
            else:
                self._sources.update(dict.fromkeys(eqn.outvars, sources))

    def _find_layers(self):
        found = []
        for eqn in self._eqns:
            if not (eqn.primitive.name in _PRODUCTS or _is_closed_product(eqn)):
                continue
            inputs = jaxprs.variables(eqn.invars)
            weights = [var for var in inputs if self._sources.get(var)]
            if len(weights) == 1 or (weights and eqn.primitive.name not in _PRODUCTS):
                images = [var for var in inputs if var in self._of_images]
                if len(images) == 1:
                    found.append((eqn, weights[0]))
        leaves = {weight: sorted(self._sources[weight]) for _, weight in found}
        named = {
            weight: max(paths, key=lambda path: self._leaf_vars[path].aval.size)
            for weight, paths in leaves.items()
        }
        # Two leaves of one module (a recurrent cell's) are told apart by their own.
        owners = collections.Counter(_owner(path) for path in set(named.values()))
        self.layers: dict[str, Layer] = {}
        self._places: dict[str, _Place] = {}
        self._shapes: dict[str, tuple] = {}
        self._kernels: dict[str, tuple] = {}
        self._layer_eqns: dict[str, Any] = {}
        for eqn, weight in found:
            path = named[weight]
            name = _owner(path) if owners[_owner(path)] == 1 else path
            if name in self.layers:
                layer = self.layers[name]
                self.layers[name] = dataclasses.replace(layer, calls=layer.calls + 1)
                continue
            order = _kernel_order(eqn, weight)
            if order is None:
                continue
            var, unit_axis = self._feature(name, eqn, order.unit_axis)
            if var is None or unit_axis is None:
                continue
            shape = list(var.aval.shape)
            units = shape.pop(unit_axis)
            norm = next((n.name for n in self._norms if n.inputs is var), None)
            self._places[name] = _Place(var, unit_axis)
            self._shapes[name] = (tuple(var.aval.shape), unit_axis)
            self._kernels[name] = (weight, order)
            self._layer_eqns[name] = eqn
            self.layers[name] = Layer(
                name=name,
                leaves=tuple(leaves[weight]),
                output_shape=(*shape[1:], units),
                kernel_layer=name,
                kernel_shape=order.shape(weight.aval.shape),
                is_cut=self._is_cut(var),
                batch_norm=norm,
                activation=self._activation(var),
            )
        self._find_means()
        # In the order of the values that they say.
        order = {var: place for place, var in enumerate(self._maker)}
        self.layers = _chain(
            dict(
                sorted(
                    self.layers.items(),
                    key=lambda item: order[self._places[item[0]].var],
                )
            )
        )

    def _feature(self, name, eqn, unit_axis):
        """The features of a layer, units' axis: after its bias, images first."""
        target = self._target(name)
        var = eqn.outvars[0]
        steps = [(var, unit_axis)]
        while True:
            users = self._users[var]
            if len(users) != 1 or users[0] is None:
                break
            (user,) = users
            primitive, made = user.primitive.name, user.outvars[0]
            if primitive in _LAYOUT:
                unit_axis = _moved(user, unit_axis)
                if unit_axis is None:
                    break
            elif not self._is_bias(user, var):
                break
            var = made
            steps.append((var, unit_axis))
            if primitive in _ADDITIONS:
                break
        # Layout that no bias follows is the next layer's, unless it is needed.
        last = max(
            (
                place
                for place, (step, _) in enumerate(steps)
                if not place or self._maker[step].primitive.name in _ADDITIONS
            ),
        )
        for var, unit_axis in [*steps[last:], *reversed(steps[:last])]:
            if target(var.aval.shape, unit_axis):
                return var, unit_axis
        return None, None

    def _target(self, name):
        """Whether a shape is that of a layer's features, batch first."""
        if name in self._known:
            shape, axis = self._known[name]
            batch = self._images.aval.shape[0]
            return lambda found, at: (found, at) == ((batch, *shape[1:]), axis)
        batch = self._images.aval.shape[0]
        return lambda found, at: bool(found) and found[0] == batch and at != 0

    def _is_bias(self, eqn, var):
        """Whether it adds a leaf of one number a unit, or one number for all."""
        if eqn.primitive.name != "add" or len(eqn.invars) != 2:
            return False
        (other,) = [one for one in eqn.invars if one is not var] or [None]
        if other is None or jaxprs.is_literal(other):
            return False
        sources = self._sources.get(other, ())
        if other in self._of_images or len(sources) != 1:
            return False
        (path,) = sources
        return not any(path in (norm.mean, norm.var) for norm in self._norms) and (
            self._spreads(other, path)
        )

    def _spreads(self, var, path):
        """Whether `var` is the leaf, laid out or repeated."""
        while var is not self._leaf_vars[path]:
            eqn = self._maker.get(var)
            if eqn is None or eqn.primitive.name not in _SPREADING:
                return False
            (var,) = jaxprs.variables(eqn.invars)[:1] or [None]
        return True

    def _activation(self, var):
        """What is applied to every number behind a layer and its BatchNorm."""
        while True:
            users = self._users[var]
            if len(users) != 1 or users[0] is None:
                return ""
            (eqn,) = users
            made = eqn.outvars[0]
            if len(eqn.outvars) != 1 or made.aval.shape != var.aval.shape:
                return ""
            images = [
                one for one in jaxprs.variables(eqn.invars) if one in self._of_images
            ]
            if images != [var] or eqn.primitive.name in _PRODUCTS:
                return ""
            others = [one for one in jaxprs.variables(eqn.invars) if one is not var]
            if eqn.primitive.name in _SPREADING or any(
                self._sources.get(one) for one in others
            ):
                var = made
                continue
            return _function_name(eqn)

    def _is_cut(self, var):
        reached = {self._images} - {var}
        for eqn in self._eqns:
            if not reached.isdisjoint(jaxprs.variables(eqn.invars)):
                reached.update(one for one in eqn.outvars if one is not var)
        return self._outvars[0] not in reached

    def _find_means(self):
        """Means over the places of the last convolution, as layers of their own."""
        for eqn in self._eqns:
            inputs = jaxprs.variables(eqn.invars)
            if eqn.primitive.name != "reduce_sum" or inputs[0] not in self._of_images:
                continue
            made, shape = eqn.outvars[0], inputs[0].aval.shape
            below = self._last_layer(inputs[0])
            users = self._users[made]
            if below is None or len(shape) != 4 or len(made.aval.shape) != 2:
                continue
            place = self._places[below]
            kept = [axis for axis in range(4) if axis not in eqn.params["axes"]]
            layer = self.layers[below]
            if kept != [0, place.unit_axis] or shape[kept[1]] != layer.num_units:
                continue
            if (
                len(users) == 1
                and users[0]
                and users[0].primitive.name
                in (
                    "div",
                    "mul",
                )
            ):
                made = users[0].outvars[0]
            # Linen and Keras note which module computes: "ResNet/pool".
            _, _, scope = str(eqn.source_info.name_stack).partition("/")
            name = f"{below}/mean" if scope in ("", *self.layers) else scope
            if name in self.layers:
                continue
            self._places[name] = _Place(made, 1)
            self._shapes[name] = (tuple(made.aval.shape), 1)
            self.layers[name] = dataclasses.replace(
                layer,
                name=name,
                output_shape=(layer.num_units,),
                is_cut=self._is_cut(made),
                batch_norm=None,
                activation=self._activation(made),
            )

    def _last_layer(self, var):
        """The layer with a convolution that was computed last before `var`."""
        above = {id(eqn) for eqn in jaxprs.needed(self._eqns, [var])}
        names = {id(eqn): name for name, eqn in self._layer_eqns.items()}
        found = [names[id(e)] for e in self._eqns if id(e) in above and id(e) in names]
        return found[-1] if found else None

    def _find_batch_norms(self):
        """Divisions of something of the images by the root of one leaf."""
        self._norms: list[_BatchNorm] = []
        roots = {}
        for eqn in self._eqns:
            if eqn.primitive.name in ("rsqrt", "sqrt", "pow"):
                (var,) = jaxprs.variables(eqn.invars)[:1] or [None]
                sources = self._sources.get(var, ())
                if len(sources) == 1:
                    roots[eqn.outvars[0]] = next(iter(sources))
        for eqn in self._eqns:
            if eqn.primitive.name not in ("mul", "div") or len(eqn.invars) != 2:
                continue
            scaled = [
                one for one in jaxprs.variables(eqn.invars) if one in self._of_images
            ]
            others = [
                one
                for one in jaxprs.variables(eqn.invars)
                if one not in self._of_images
            ]
            if len(scaled) != 1 or len(others) != 1:
                continue
            above = jaxprs.needed(self._eqns, others)
            root = [roots[var] for e in above for var in e.outvars if var in roots]
            if len(root) != 1:
                continue
            found = self._centered(scaled[0], eqn, root[0], above)
            if found:
                inputs, mean, axes = found
                self._norms.append(
                    _BatchNorm(_owner(root[0]), inputs, axes, mean, root[0])
                )

    def _centered(self, scaled, eqn, root, above):
        """What a BatchNorm gets, the leaf of its mean, and the axes of its features."""
        maker = self._maker.get(scaled)
        if maker is not None and maker.primitive.name in _ADDITIONS:
            images = [v for v in jaxprs.variables(maker.invars) if v in self._of_images]
            means = [
                v for v in jaxprs.variables(maker.invars) if v not in self._of_images
            ]
            is_taken_off = maker.primitive.name == "sub" or any(
                eqn.primitive.name == "neg" for eqn in jaxprs.needed(self._eqns, means)
            )  # What is added is the bias of a layer.
            if len(images) == 1 and len(means) == 1 and is_taken_off:
                sources = self._sources.get(means[0], frozenset())
                if len(sources) == 1 and self._fits(sources, root):
                    axes = self._varying(means[0], images[0].aval.ndim)
                    return images[0], next(iter(sources)), axes
        # Or the product with the mean is taken off afterwards: x · a + (b - mean · a).
        (user,) = self._users[eqn.outvars[0]][:1] or [None]
        if user is None or user.primitive.name not in _ADDITIONS:
            return None
        shift = [v for v in jaxprs.variables(user.invars) if v is not eqn.outvars[0]]
        if len(shift) != 1 or shift[0] in self._of_images:
            return None
        before = {id(e) for e in above}
        for product in jaxprs.needed(self._eqns, shift):
            if product.primitive.name != "mul" or id(product) in before:
                continue
            sides = [self._sources.get(v, frozenset()) for v in product.invars[:2]]
            for mine, other in (sides, sides[::-1]):
                if len(mine) == 1 and root in other and self._fits(mine, root):
                    axes = self._varying(shift[0], scaled.aval.ndim)
                    return scaled, next(iter(mine)), axes
        return None

    def _fits(self, sources, root):
        (path,) = sources
        sizes = [self._leaf_vars[one].aval.size for one in (path, root)]
        return path != root and sizes[0] == sizes[1]

    def _varying(self, var, ndim):
        """The axes, of a value with `ndim`, along which `var` is not the same."""
        eqn = self._maker.get(var)
        if eqn is not None and eqn.primitive.name == "broadcast_in_dim":
            sides = eqn.invars[0].aval.shape
            places = eqn.params["broadcast_dimensions"]
            found = [at for at, side in zip(places, sides, strict=True) if side > 1]
        else:
            found = [at for at, side in enumerate(var.aval.shape) if side > 1]
        return tuple(at + ndim - var.aval.ndim for at in found)

    # What can be done with it ------------------------------------------------------

    @property
    def has_batch_norm(self) -> bool:
        """Whether there are moments of a BatchNorm of images."""
        return any(norm.inputs.aval.ndim > 2 for norm in self._norms)

    def run(
        self,
        *arguments: Any,
        wanted: Sequence[str] = (),
        given: Mapping[str, Any] | None = None,
        moments: bool = False,
        plan: Callable | None = None,
    ) -> tuple[Any, list[Any], list[Moments]]:
        """What the function returns, features of layers, moments of BatchNorms.

        Args:
            arguments: Arrays of the shapes that the graph was traced for.
            wanted: Layers, used once, whose features are returned, units last.
            given: Features in place of what layers say.
            moments: Whether to return those of the BatchNorms of images. BatchNorms of
                vectors are left out, as in DeepInversion: behind dropout, which
                evaluation does without, they keep variances that no image could have.
            plan: What computes some of the equations otherwise; see `interpret`.
        """
        given = given or {}
        norms = [n for n in self._norms if moments and n.inputs.aval.ndim > 2]
        places = [self._places[name] for name in wanted]
        outvars = [
            *self._outvars,
            *(place.var for place in places),
            *(norm.inputs for norm in norms),
        ]
        replaced = {
            self._places[name].var: jnp.moveaxis(
                features, -1, self._places[name].unit_axis
            )
            for name, features in given.items()
        }
        env = self._env(*arguments)
        eqns = jaxprs.needed(self._eqns, outvars, known=replaced)
        results = jaxprs.interpret(eqns, env | replaced, outvars, plan=plan)
        num_outputs = len(self._outvars)
        outputs = self._out_tree.unflatten(results[:num_outputs])
        features = [
            jnp.moveaxis(value, place.unit_axis, -1)
            for place, value in zip(places, results[num_outputs:], strict=False)
        ]
        inputs = results[num_outputs + len(places) :]
        return (
            outputs,
            features,
            [
                self._moments(norm, value, env)
                for norm, value in zip(norms, inputs, strict=True)
            ],
        )

    def _moments(self, norm, inputs, env):
        """Over all axes but those of the features, in float32."""
        axes = norm.axes
        if env[self._leaf_vars[norm.var]].size == 1:
            axes = tuple(at for at, side in enumerate(inputs.shape) if at and side == 1)
            axes = axes[:1]
        others = tuple(axis for axis in range(inputs.ndim) if axis not in axes)
        inputs = inputs.astype(jnp.float32)
        mean, var = inputs.mean(others), inputs.var(others)
        return Moments(
            mean=mean,
            var=var,
            running_mean=env[self._leaf_vars[norm.mean]].reshape(mean.shape),
            running_var=env[self._leaf_vars[norm.var]].reshape(var.shape),
        )

    def inputs(self, *arguments: Any, plan: Callable | None = None) -> dict[str, Any]:
        """What every layer with a kernel gets, batch first, as it lies."""
        env = self._env(*arguments)
        taken = {
            name: next(v for v in jaxprs.variables(eqn.invars) if v in self._of_images)
            for name, eqn in self._layer_eqns.items()
        }
        outvars = list(taken.values())
        values = jaxprs.interpret(
            jaxprs.needed(self._eqns, outvars), env, outvars, plan=plan
        )
        return dict(zip(taken, values, strict=True))

    def kernel(self, variables: Any, name: str) -> Any:
        """A layer's kernel, `[…, inputs, units]`, however the framework keeps it."""
        var, order = self._kernels[self.layers[name].kernel_layer]
        env = self._env(variables)
        (value,) = jaxprs.interpret(jaxprs.needed(self._eqns, [var]), env, [var])
        return order.ordered(value)

    def bias(self, variables: Any, name: str) -> Any:
        """What a layer adds, `[units]`; None if it adds nothing."""
        var = self._added(name)
        if var is None:
            return None
        env = self._env(variables)
        (value,) = jaxprs.interpret(jaxprs.needed(self._eqns, [var]), env, [var])
        return jnp.broadcast_to(value.reshape(-1), (self.layers[name].num_units,))

    def _added(self, name):
        """The value that a layer with a kernel adds, or None."""
        eqn = self._maker[self._places[name].var]
        if name not in self._layer_eqns or eqn.primitive.name not in _ADDITIONS:
            return None
        (var,) = [v for v in jaxprs.variables(eqn.invars) if v not in self._of_images]
        return var

    def statistics(self, variables: Any, name: str) -> tuple[Any, Any]:
        """Running mean and variance of a BatchNorm, `[features]` each."""
        norm = next(norm for norm in self._norms if norm.name == name)
        env = self._env(variables)
        mean, var = (env[self._leaf_vars[path]] for path in (norm.mean, norm.var))
        return jnp.asarray(mean).reshape(-1), jnp.asarray(var).reshape(-1)

    @property
    def unfit(self) -> str:
        """The first layer that is no plain product with its kernel; empty if none."""
        for name, eqn in self._layer_eqns.items():
            spread = eqn.params.get("lhs_dilation", (1,))
            groups = eqn.params.get("feature_group_count", 1)
            if eqn.primitive.name not in _PRODUCTS or max(groups, *spread) > 1:
                return name
        return ""

    def linear(self, name: str, inputs: Any, kernel: Any, bias: Any = None) -> Any:
        """What a layer would say with another kernel and bias.

        Args:
            name: Of a layer with a kernel.
            inputs: As `inputs` gives them.
            kernel: `[…, inputs, units]`, with any number of units.
            bias: `[units]`, or None for none.

        Returns:
            `[places, units]`.
        """
        eqn, (weight, order) = self._layer_eqns[name], self._kernels[name]
        params = dict(eqn.params)
        shape = [weight.aval.shape[axis] for axis in order.axes[:-1]]
        laid = jnp.reshape(kernel, (*shape, -1))
        laid = laid.transpose([order.axes.index(axis) for axis in range(laid.ndim)])
        product = getattr(jax.lax, eqn.primitive.name)
        names = inspect.signature(product).parameters
        outputs = product(
            *(laid if var is weight else inputs for var in eqn.invars),
            **{key: value for key, value in params.items() if key in names},
        )
        outputs = jnp.moveaxis(outputs, order.unit_axis, -1)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        return outputs if bias is None else outputs + bias[None]

    def patches(self, name: str, inputs: Any) -> Any:
        """`[places, window · inputs]`, what a layer's kernel is multiplied with."""
        shape = self.layers[name].kernel_shape[:-1]
        one_each = jnp.eye(math.prod(shape), dtype=inputs.dtype)
        return self.linear(name, inputs, one_each.reshape(*shape, -1))

    def kernel_leaf(self, name: str) -> str | None:
        """Path of a layer's kernel; None where it is computed from its leaves."""
        path, *others = self.layers[name].leaves
        eqns = jaxprs.needed(self._eqns, [self._kernels[name][0]])
        is_laid = all(eqn.primitive.name in _LAYOUT for eqn in eqns)
        return path if is_laid and not others else None

    def kernel_places(self, name: str) -> np.ndarray:
        """For each number of `kernel` its place in `kernel_leaf`, flat."""
        var, order = self._kernels[name]
        (path,) = self.layers[name].leaves
        leaf = self._leaf_vars[path]
        numbers = np.arange(leaf.aval.size, dtype=np.int32).reshape(leaf.aval.shape)
        (laid,) = jaxprs.interpret(
            jaxprs.needed(self._eqns, [var]), {leaf: numbers}, [var]
        )
        return np.asarray(order.ordered(laid)).astype(np.int32)

    def bias_leaf(self, name: str) -> str | None:
        """Path of what a layer adds, one number a unit; None if it adds nothing."""
        var = self._added(name)
        if var is None:
            return None
        (path,) = self._sources[var]
        is_whole = self._leaf_vars[path].aval.size == self.layers[name].num_units
        return path if is_whole else None

    def units_in(self, name: str, before: str) -> tuple[int, int] | None:
        """Where a layer gets the units of the one before it.

        Returns:
            How many numbers lie next to each other of one unit, in what `inputs` gives
            and in the inputs of `kernel`; None where that cannot be told.
        """
        eqn = self._layer_eqns[name]
        (var,) = [one for one in jaxprs.variables(eqn.invars) if one in self._of_images]
        stride = self._units(before).get(var)
        units = self.layers[before].num_units
        if stride is None:
            return None
        axis, inner = _axis_of(var.aval.shape, stride, units)
        numbers = eqn.params["dimension_numbers"]
        if eqn.primitive.name == "conv_general_dilated":
            return (stride, inner) if axis == numbers.lhs_spec[1] else None
        taken = numbers[0][0 if eqn.invars[0] is var else 1]
        if axis not in taken:
            return None
        later = taken[taken.index(axis) + 1 :]
        return stride, inner * math.prod(var.aval.shape[one] for one in later)

    def _units(self, name):
        """Values with a layer's units, and how many numbers of one are in a row."""
        eqn, order = self._layer_eqns[name], self._kernels[name][1]
        (var,), units = eqn.outvars, self.layers[name].num_units
        found = {var: math.prod(var.aval.shape[order.unit_axis + 1 :])}
        layers = {id(one) for one in self._layer_eqns.values()}
        for eqn in self._eqns:
            carried = [one for one in jaxprs.variables(eqn.invars) if one in found]
            if not carried or id(eqn) in layers:
                continue
            for made in eqn.outvars:
                stride = _carried(eqn, carried[0], made, found[carried[0]], units)
                if stride is not None:
                    found[made] = stride
        return found

    def owners(self) -> dict[str, Owner]:
        """Of each leaf that meets the images: the last layer up to there, and its role.

        Kernels and biases are among them.
        """
        names = {id(eqn): name for name, eqn in self._layer_eqns.items()}
        found: dict[str, Owner] = {}
        last, units, number = None, {}, 0
        for eqn in self._eqns:
            inputs = jaxprs.variables(eqn.invars)
            if self._of_images.isdisjoint(inputs):
                continue
            if id(eqn) in names:
                last = names[id(eqn)]
                units, number = self._units(last), self.layers[last].num_units
            inner = None
            for var in inputs:
                if var in units:
                    inner = _axis_of(var.aval.shape, units[var], number)[1]
            for path in sorted(
                path for var in inputs for path in self._sources.get(var, ())
            ):
                role = self._role(path)
                found.setdefault(path, Owner(layer=last, inner=inner, role=role))
        return found

    def _role(self, path):
        """What a leaf is for: "mean", "var", or the first operation with it: "mul"."""
        for norm in self._norms:
            if path in (norm.mean, norm.var):
                return "mean" if path == norm.mean else "var"
        var = self._leaf_vars[path]
        while True:
            (eqn,) = self._users[var][:1] or [None]
            if eqn is None or eqn.primitive.name not in _SPREADING:
                return eqn.primitive.name if eqn else ""
            (var,) = eqn.outvars[:1]

    @functools.cached_property
    def _ending(self):
        """The name of the function that the network ends in, and what that gets."""
        out = self._outvars[0]
        last = max(
            (self._eqns.index(eqn) for eqn in self._layer_eqns.values()), default=-1
        )
        found = ("", None)
        if jaxprs.is_literal(out) or len(out.aval.shape) != 2:
            return found
        names = ("log_softmax", "softmax") if out.aval.shape[1] > 1 else ("sigmoid",)
        # By what it computes, since there are many ways to write it; in the middle of a
        # trace, too, of a step that lets nothing onto the devices.
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            values = jax.random.normal(jax.random.key(0), out.aval.shape, jnp.float32)
            values = (3 * values).astype(out.aval.dtype)
            env = self._env()
            for eqn in self._eqns[max(last, 0) :]:
                var = eqn.outvars[0]
                if (
                    var is out
                    or var.aval.shape != out.aval.shape
                    or not jnp.issubdtype(var.aval.dtype, jnp.floating)
                    or var not in self._of_images
                    or not self._is_cut(var)
                ):
                    continue
                eqns = jaxprs.needed(self._eqns, [out], known={var})
                read = {one for e in eqns for one in jaxprs.variables(e.invars)}
                if read - {var} - env.keys() - self._maker.keys():
                    continue  # A leaf is still to come.
                (given,) = jaxprs.interpret(eqns, env | {var: values}, [out])
                for name in names:
                    expected = getattr(jax.nn, name)(values)
                    if jnp.allclose(given, expected, rtol=1e-4, atol=1e-5):
                        return name, var
        return found

    @property
    def ending(self) -> str:
        """Returns "softmax", "log_softmax", "sigmoid" (of one output) or ""."""
        return self._ending[0]

    def before_ending(self, *arguments: Any) -> Any:
        """What the function returns, with what its ending gets in place of logits."""
        outvars = [self._ending[1] or self._outvars[0], *self._outvars[1:]]
        eqns = jaxprs.needed(self._eqns, outvars)
        return self._out_tree.unflatten(
            jaxprs.interpret(eqns, self._env(*arguments), outvars)
        )

    def _env(self, *arguments):
        """Values of the graph's constants, and of its arguments from the first on."""
        jaxpr = self._closed.jaxpr
        env = dict(zip(jaxpr.constvars, self._closed.consts, strict=True))
        return env | dict(zip(jaxpr.invars, jax.tree.leaves(arguments), strict=False))


def of(function: Callable, *arguments: Any) -> Graph:
    """The graph of a function for arrays of these shapes; made once, if it can be."""
    leaves, tree = jax.tree.flatten(arguments)
    return jaxprs.kept(_graph, function, tree, tuple(map(jaxprs.aval_of, leaves)))


@functools.lru_cache(maxsize=32)
def _graph(function, tree, avals, context):
    del context
    made = Graph(function, *tree.unflatten(avals))
    if made.depends_on_more:
        raise jaxprs.Uncached(made)
    return made


def _multiplies(eqn):
    return eqn.primitive.name in _PRODUCTS or any(
        _multiplies(one) for jaxpr in jaxprs.inner(eqn) for one in jaxpr.eqns
    )


def _function_name(eqn):
    """The name of a function, of a call or of the equation inside of it: "relu"."""
    while "name" not in eqn.params:
        inner = next(jaxprs.inner(eqn), None)
        if inner is None or len(inner.eqns) != 1:
            break
        (eqn,) = inner.eqns
    return str(eqn.params.get("name", eqn.primitive.name))


def _is_closed_product(eqn):
    return eqn.primitive.name.startswith("custom_") and _multiplies(eqn)


class _Order(NamedTuple):
    """How a kernel lies: axes of the window, of inputs, of units; units' in outputs."""

    axes: tuple[int, ...]
    num_window: int
    unit_axis: int

    def shape(self, shape):
        ordered = [shape[axis] for axis in self.axes]
        window, inputs = ordered[: self.num_window], ordered[self.num_window : -1]
        return (*window, math.prod(inputs), ordered[-1])

    def ordered(self, kernel):
        return jnp.transpose(kernel, self.axes).reshape(self.shape(kernel.shape))


def _kernel_order(eqn, weight):
    """Of a layer with one axis of units; None for any other."""
    if eqn.primitive.name == "dot_general":
        (contracting, batch) = eqn.params["dimension_numbers"]
        side = 0 if eqn.invars[0] is weight else 1
        taken = [*contracting[side], *batch[side]]
        units = [axis for axis in range(weight.aval.ndim) if axis not in taken]
        if len(units) != 1 or batch[side]:
            return None
        free = eqn.invars[1 - side].aval.ndim - len(contracting[1 - side])
        return _Order((*contracting[side], units[0]), 0, 0 if side == 0 else free)
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        out, inputs, *window = numbers.rhs_spec
        if eqn.invars[1] is not weight or eqn.params["batch_group_count"] > 1:
            return None
        return _Order((*window, inputs, out), len(window), numbers.out_spec[1])
    # A convolution or product with a gradient of its own, channels last.
    ndim = weight.aval.ndim
    out = eqn.outvars[0].aval
    if len(eqn.outvars) > 1 or ndim < 2 or out.shape[-1:] != weight.aval.shape[-1:]:
        return None
    return _Order(tuple(range(ndim)), ndim - 2, out.ndim - 1)


def _moved(eqn, axis):
    """Where an axis is after a change of layout; None if it is merged or cut."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "transpose":
        return eqn.params["permutation"].index(axis)
    if before == after:
        return axis
    size, ahead = before[axis], math.prod(before[:axis])
    for place, side in enumerate(after):
        if side == size and math.prod(after[:place]) == ahead:
            return place
    return None


def _axis_of(shape, stride, units) -> tuple[Any, Any]:
    """The axis that units lie along, and how many numbers of it one unit has.

    Args:
        shape: Of the value.
        stride: Numbers that one unit has in a row, in C order.
        units: How many there are.
    """
    for axis in range(len(shape)):
        inner, rest = divmod(stride, math.prod(shape[axis + 1 :]))
        if not rest and inner and shape[axis] % (inner * units) == 0:
            return axis, inner
    return None, None


def _carried(eqn, before, after, stride, units):
    """The numbers that a unit has in a row behind an equation; None if unknown."""
    name, shape = eqn.primitive.name, after.aval.shape
    if name in ("reshape", "squeeze", "expand_dims"):
        return stride
    axis, inner = _axis_of(before.aval.shape, stride, units)
    if axis is None:
        return None
    if name == "transpose":
        to = eqn.params["permutation"].index(axis)
    elif name == "broadcast_in_dim":
        to = eqn.params["broadcast_dimensions"][axis]
    elif name.startswith("reduce_") and "axes" in eqn.params:
        taken = eqn.params["axes"]
        to = None if axis in taken else axis - sum(one < axis for one in taken)
    else:
        to = axis if len(shape) == before.aval.ndim else None
    if to is None or shape[to] != before.aval.shape[axis]:
        return None
    return inner * math.prod(shape[to + 1 :])


def _chain(found):
    """With `next_layer` filled in."""
    names = list(found)
    chained = {}
    for place, (name, layer) in enumerate(found.items()):
        later = (found[one] for one in names[place + 1 :])
        following = next((one for one in later if one.kernel_layer == one.name), None)
        if following and following.kernel_shape[-2] == layer.num_units:
            layer = dataclasses.replace(layer, next_layer=following.name)
        chained[name] = layer
    return chained


def path_of(keys):
    """A leaf's path as text: "params/conv_1/kernel", "layers/0/weight"."""
    parts = []
    for key in keys:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return "/".join(parts)


def _owner(path):
    """The module of a leaf: "conv_1" of "params/conv_1/kernel"."""
    path = path.removeprefix("params/").removeprefix("batch_stats/")
    for separator in ("/", "."):
        if separator in path:
            return path.rsplit(separator, 1)[0]
    return path
