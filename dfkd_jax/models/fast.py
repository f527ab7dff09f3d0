"""Convolutions and pooling of any network, in the forms that are fastest on a CPU.

GPUs and TPUs get the operations as they are written. XLA's CPU backend is slow where it
meets them in certain forms, above all inside a loop, so that there `plan` finds them in
a network's graph, whoever wrote it, and has the same arithmetic computed otherwise.
Times are in µs an image on one core of a Xeon with AVX-512, for the outputs and the
gradient of the images, inside a `lax.scan`:

- Few inputs and outputs (LeNet-5): `_blocked`, one matrix product over blocks of output
  pixels. The image is cut into `block × block` tiles (space-to-depth), neighboring
  tiles are concatenated into patches, and the kernel is laid out once for every output
  pixel of a block. Several output pixels share a patch, which moves far less memory
  than im2col, and the columns are ordered by their place in the pooling window, so that
  pooling is a reduction of one axis. 22 against 140 for 5×5, 1 → 6 channels at 28×28,
  with pooling. Both gradients included, on a core of an AMD EPYC: 17 against 45 of
  `_explicit` for 3×3, 3 → 8 channels at 32×32; 20 and 18 for 8 → 16 at 16×16; with
  more channels it loses, 30 against 20 for 8 → 32.
- More of them (AlexNet, ResNet, generators): `_explicit`, the native convolution with
  both gradients written as convolutions too: of the images, with the reversed kernel;
  of the kernel, with batch and channels exchanged. JAX derives the same, but XLA then
  folds reversal and exchange into the operation's layout, for which it has no fast code
  inside a loop: 222 against 3,447 for 5×5, 3 → 48 channels at 32×32, and for the
  gradient of the kernel 889 against 88,652 for 3×3, 64 → 64 channels at 32×32.
- A kernel for every channel (depthwise): a sum of shifted images.
- Pooling: reductions of slices, one axis after the other. The gradient of XLA's own is
  slow (680 against 91 for maxima over 3×3 at stride 2 of 32×32 pixels with 48
  channels). Among equal maxima these share the gradient, XLA's own gives it to the
  first. Maxima come before the bias and the function that grow with what they get.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfkd_jax.models import jaxprs

MAX_BLOCKED = 128  # Inputs times outputs.
# Sums over longer windows (cumulative sums are written so) are left as they are.
_MAX_WINDOW = 16
_native_only = contextvars.ContextVar("native_only", default=False)


@contextlib.contextmanager
def native_operations() -> Iterator[None]:
    """Traces networks with the native operations: for other machines than this one."""
    token = _native_only.set(True)
    try:
        yield
    finally:
        _native_only.reset(token)


def best() -> Callable | None:
    """`plan` on a CPU; None elsewhere, where nothing is faster than what is written."""
    on_cpu = jax.default_backend() == "cpu"
    return plan if on_cpu and not _native_only.get() else None


def faster(function: Callable) -> Callable:
    """The same function, its convolutions and pooling in the fastest forms."""

    def run(*arguments):
        return jaxprs.run(function, arguments, plan=best())

    return run


def plan(eqns: Any, outvars: Any) -> dict[int, jaxprs.Step]:
    """What is computed in place of which equations; see `jaxprs.interpret`."""
    users: dict[Any, list[int]] = {}
    maker: dict[Any, int] = {}
    for place, eqn in enumerate(eqns):
        maker.update(dict.fromkeys(eqn.outvars, place))
        for var in eqn.invars:
            if not jaxprs.is_literal(var):
                users.setdefault(var, []).append(place)
    for var in outvars:
        if not jaxprs.is_literal(var):
            users.setdefault(var, []).append(-1)
    found = _Found(eqns, users, maker)
    steps: dict[int, jaxprs.Step] = {}
    taken: set[int] = set()
    for place, eqn in enumerate(eqns):
        if eqn.primitive.name in ("reduce_window_max", "reduce_window_sum"):
            step = _pooling(found, place)
            if step:
                steps[place] = step
                taken.update(step.covers)
    for place, eqn in enumerate(eqns):
        if eqn.primitive.name == "conv_general_dilated" and place not in taken:
            form = _form(eqn)
            if form:
                steps[place] = jaxprs.Step(
                    functools.partial(_convolved, form=form),
                    tuple(eqn.invars),
                    eqn.outvars[0],
                    (),
                )
    return steps


class _Found(NamedTuple):
    """A program's equations, who uses a variable and who makes it, by place."""

    eqns: Any
    users: dict[Any, list[int]]
    maker: dict[Any, int]

    def made_for_one(self, var):
        """The place of the equation that makes `var`, if only one reads it."""
        return self.maker.get(var) if len(self.users[var]) == 1 else None


# Convolutions ----------------------------------------------------------------------


class Form(NamedTuple):
    """A convolution, apart from its arrays, in the order batch, space, channels.

    Attributes:
        strides: Between neighboring outputs, one an axis of space.
        padding: Zeros before and after, one pair an axis; negative ones cut.
        dilation: Between neighboring entries of the kernel.
        groups: Of channels that do not mix.
        lhs: Axes of the images in that order; `rhs`: of the kernel, space, inputs,
            outputs; `out`: of the outputs.
        precision: As the equation has it.
        blocked: Whether it has few inputs and outputs; see the module's docstring.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    precision: Any
    blocked: bool


def _form(eqn):
    """The convolution's, or None if it is left as it is."""
    params, out = eqn.params, eqn.outvars[0].aval
    images, kernel = (var.aval for var in eqn.invars)
    numbers = params["dimension_numbers"]
    lhs = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    rhs = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    num_axes = len(lhs) - 2
    preferred = params.get("preferred_element_type")
    if (
        params["batch_group_count"] > 1
        or any(spread != 1 for spread in params["lhs_dilation"])
        or not jnp.issubdtype(out.dtype, jnp.floating)
        or images.dtype != kernel.dtype
        or preferred not in (None, images.dtype)
        or not num_axes
        or 0 in out.shape
    ):
        return None
    groups = params["feature_group_count"]
    num_inputs, num_outputs = kernel.shape[rhs[-2]], kernel.shape[rhs[-1]]
    if groups > 1 and num_inputs > 1 and groups > _MAX_WINDOW:
        return None
    window = params["window_strides"], params["rhs_dilation"]
    ones = all(side == 1 for sides in window for side in sides)
    return Form(
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(pair) for pair in params["padding"]),
        dilation=tuple(params["rhs_dilation"]),
        groups=groups,
        lhs=lhs,
        rhs=rhs,
        out=(numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]),
        precision=params["precision"],
        blocked=groups == 1
        and ones
        and num_axes == 2
        and num_inputs * num_outputs <= MAX_BLOCKED,
    )


def _convolved(images, kernel, *, form):
    """What the equation computes, axes as it has them."""
    images, kernel = images.transpose(form.lhs), kernel.transpose(form.rhs)
    return _back(convolution(images, kernel, form), form.out)


def _back(outputs, order):
    return outputs.transpose([order.index(axis) for axis in range(len(order))])


def convolution(images: Any, kernel: Any, form: Form) -> Any:
    """`[batch, …, inputs]` with `[…, inputs, outputs]`, in the fastest form."""
    if form.blocked:
        return _blocked(images, kernel, form.padding)
    if form.groups > 1:
        return _grouped(images, kernel, form)
    sides = kernel.shape[:-2]
    if math.prod(sides) == 1 and not any(map(any, form.padding)):
        # The pixels that a strided 1×1 convolution leaves out need no arithmetic.
        kept = tuple(slice(None, None, stride) for stride in form.strides)
        images = images[(slice(None), *kept)]
        form = form._replace(strides=(1,) * len(sides))
    return _explicit(images, kernel, form)


def _grouped(images, kernel, form):
    """Channels that do not mix: group by group, or, with one input each, shifted."""
    groups, outputs = form.groups, kernel.shape[-1]
    if kernel.shape[-2] > 1:
        alone = form._replace(groups=1)
        parts = zip(
            jnp.split(images, groups, axis=-1),
            jnp.split(kernel, groups, axis=-1),
            strict=True,
        )
        made: list[Any] = [_explicit(part, own, alone) for part, own in parts]
        return jnp.concatenate(made, axis=-1)
    images = _padded(images, [(0, 0), *form.padding, (0, 0)], 0)
    each = outputs // groups
    total = 0
    for place in _places(kernel.shape[:-2]):
        part = images
        for axis, at in enumerate(place, 1):
            side, stride = kernel.shape[axis - 1], form.strides[axis - 1]
            dilation = form.dilation[axis - 1]
            reach = (side - 1) * dilation + 1
            size = (images.shape[axis] - reach) // stride + 1
            part = _every(part, axis, at * dilation, stride, size)
        total += jnp.repeat(part, each, axis=-1) * kernel[place].reshape(
            *(1,) * (images.ndim - 1), outputs
        )
    return total


def _places(sides):
    if not sides:
        return [()]
    return [(i, *rest) for i in range(sides[0]) for rest in _places(sides[1:])]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _explicit(images, kernel, form):
    return _native(
        images, kernel, form, form.strides, form.padding, None, form.dilation
    )


def _native(images, kernel, form, strides, padding, spread, kernel_spread):
    last = images.ndim - 1
    space = tuple(range(1, last))
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        lhs_dilation=spread,
        rhs_dilation=kernel_spread,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (0, last, *space),
            (last, last - 1, *(axis - 1 for axis in space)),
            (0, last, *space),
        ),
        precision=form.precision,
    )


def _explicit_forward(images, kernel, form):
    return _explicit(images, kernel, form), (images, kernel)


def _explicit_backward(form, saved, cotangent):
    images, kernel = saved
    space = tuple(range(1, images.ndim - 1))
    around, within = [], []
    for size, side, (low, high), stride, dilation in zip(
        images.shape[1:-1],
        kernel.shape[:-2],
        form.padding,
        form.strides,
        form.dilation,
        strict=True,
    ):
        reach = (side - 1) * dilation
        # By a stride above 1, at the end.
        unseen = (size + low + high - reach - 1) % stride
        around.append((reach - low, reach - high + unseen))
        within.append((low, high - unseen))
    ones = (1,) * len(space)
    turned = jnp.flip(kernel, tuple(axis - 1 for axis in space)).swapaxes(-2, -1)
    to_images = _native(
        cotangent, turned, form, ones, around, form.strides, form.dilation
    )
    # Without the barrier XLA undoes the exchange; see the module's docstring.
    last = images.ndim - 1
    data, filters = jax.lax.optimization_barrier(
        (images.transpose(last, *space, 0), cotangent.transpose(*space, 0, last))
    )
    to_kernel = _native(data, filters, form, form.dilation, within, None, form.strides)
    return to_images, to_kernel.transpose(*space, 0, last)


_explicit.defvjp(_explicit_forward, _explicit_backward)


def _blocked(images, kernel, margins, pool=1, reduce=None):
    """A convolution at stride 1, pooled over `pool × pool` by `reduce`.

    `reduce` takes `[…, places in the window, places, outputs]` and leaves out the
    first of these axes. Rows and columns that do not fill a window are dropped.
    """
    rows, columns, num_inputs, num_outputs = kernel.shape
    images = _padded(images, ((0, 0), *margins, (0, 0)), 0)
    batch, height, width, _ = images.shape
    pooled_height = (height - rows + 1) // pool
    pooled_width = (width - columns + 1) // pool
    block = _block_size(pooled_height, pooled_width, pool, side=max(rows, columns))
    blocks_y, blocks_x = pooled_height * pool // block, pooled_width * pool // block
    tiles_y, tiles_x = (
        -(-(block + rows - 1) // block),
        -(-(block + columns - 1) // block),
    )

    # Tiles of the input, then the patches that each block of outputs looks at.
    full_height = (blocks_y + tiles_y - 1) * block
    full_width = (blocks_x + tiles_x - 1) * block
    images = jnp.pad(
        images[:, :full_height, :full_width],
        (
            (0, 0),
            (0, max(0, full_height - height)),
            (0, max(0, full_width - width)),
            (0, 0),
        ),
    )
    tiles = images.reshape(
        batch, full_height // block, block, full_width // block, block, num_inputs
    )
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5)
    tiles = tiles.reshape(batch, full_height // block, full_width // block, -1)
    patches = jnp.concatenate(
        [
            tiles[:, i : i + blocks_y, j : j + blocks_x]
            for i in range(tiles_y)
            for j in range(tiles_x)
        ],
        axis=-1,
    )

    # One copy of the kernel per output pixel of a block.
    matrix = jnp.zeros(
        (tiles_y * block, tiles_x * block, num_inputs, block, block, num_outputs),
        kernel.dtype,
    )
    for i in range(block):
        for j in range(block):
            matrix = matrix.at[i : i + rows, j : j + columns, :, i, j].set(kernel)
    side = block // pool
    matrix = matrix.reshape(
        (tiles_y, block, tiles_x, block, num_inputs, side, pool, side, pool, -1)
    )
    # Rows: as the patches lie. Columns: place in the pooling window comes first.
    matrix = matrix.transpose(0, 2, 1, 3, 4, 6, 8, 5, 7, 9)
    matrix = matrix.reshape(patches.shape[-1], -1)

    outputs = patches.reshape(-1, patches.shape[-1]) @ matrix
    if reduce is not None:
        # One reduction of all places: its gradient is one pass, of slices one each.
        outputs = reduce(
            outputs.reshape(
                batch, blocks_y, blocks_x, pool * pool, side * side, num_outputs
            )
        )
    outputs = outputs.reshape(batch, blocks_y, blocks_x, side, side, num_outputs)
    return outputs.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, pooled_height, pooled_width, num_outputs
    )


def _block_size(height: int, width: int, pool: int, *, side: int) -> int:
    """The best block (measured) that tiles the output; of four pixels at most.

    Patches of small kernels would be zeros mostly: of 3×3, a block of two has 16 places
    for 9 weights, one of four 64.
    """
    for block in (4, 2) if side > 3 else (2,):
        if block % pool == 0 and all(
            size * pool % block == 0 for size in (height, width)
        ):
            return block
    return pool


# Pooling ---------------------------------------------------------------------------


class Window(NamedTuple):
    """A reduction over windows: one entry an axis."""

    sides: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    is_max: bool


class _Between(NamedTuple):
    """What is done to every number between a convolution and its pooling.

    Attributes:
        apply: Takes the numbers and, for a bias, the value that is added.
        value: What it is made of, or None.
        axis: Along which the value is not the same; None for one value for all.
    """

    apply: Callable
    value: Any = None
    axis: int | None = None


def _pooling(found, place):
    """The step for a pooling, with what comes before it where that helps."""
    eqn = found.eqns[place]
    params = eqn.params
    window = Window(
        sides=tuple(params["window_dimensions"]),
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(pair) for pair in params["padding"]),
        dilation=tuple(params["window_dilation"]),
        is_max=eqn.primitive.name == "reduce_window_max",
    )
    shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval
    if (
        any(spread != 1 for spread in params["base_dilation"])
        or not jnp.issubdtype(out.dtype, jnp.floating)
        or 0 in out.shape
        or any(
            side > _MAX_WINDOW and made > 1
            for side, made in zip(window.sides, out.shape, strict=True)
        )
    ):
        return None
    # Back through what may as well come afterwards; `axes` leads from those of `var`,
    # whose order may be another, to the window's.
    between, covers, var = [], [], eqn.invars[0]
    axes = tuple(range(len(shape)))
    while (before := found.made_for_one(var)) is not None:
        order = _layout(found.eqns[before], axes)
        if order is None:
            step = _elementwise(found, before, var)
            if step is None or not _commutes(step[0], window, axes):
                break
            at = None if step[0].axis is None else axes[step[0].axis]
            between.insert(0, step[0]._replace(axis=at))
            var = step[1]
        else:
            axes, var = order, found.eqns[before].invars[0]
        covers.append(before)
    values = tuple(step.value for step in between if step.value is not None)
    between = [
        step if step.axis is None else step._replace(axis=axes.index(step.axis))
        for step in between
    ]
    inside = _seen_from(window, axes)
    before = found.made_for_one(var)
    source = None if before is None else found.eqns[before]
    form = source is not None and (
        source.primitive.name == "conv_general_dilated" and _form(source)
    )
    channels = form.out[-1] if form else None
    if (
        source is not None
        and form
        and form.blocked
        and inside
        and _fits(form, inside, var.aval.shape)
        and all(step.axis in (None, channels) for step in between)
    ):
        function, inputs = _convolved_and_pooled, tuple(source.invars)
        function = functools.partial(function, form=form)
        covers.append(before)
    elif window.is_max and between and inside:
        function, inputs = _pooled_first, (var,)
    else:
        return jaxprs.Step(
            functools.partial(pooled, window=window),
            (eqn.invars[0],),
            eqn.outvars[0],
            (),
        )
    function = functools.partial(function, window=inside, between=between)

    def laid_out(*arrays):
        made = function(*arrays)
        ranks = [rank for rank in range(made.ndim) if axes[rank] is not None]
        rest = [rank for rank in range(made.ndim) if axes[rank] is None]
        ranks.sort(key=lambda rank: axes[rank])
        return made.transpose(rest + ranks).reshape(out.shape)

    return jaxprs.Step(laid_out, (*inputs, *values), eqn.outvars[0], tuple(covers))


def _layout(eqn, axes) -> Any:
    """Where the axes lead of what an equation lays out otherwise; None for others."""
    below, above = eqn.invars[0].aval, eqn.outvars[0].aval
    match eqn.primitive.name:
        case "transpose":
            order = eqn.params["permutation"]
            return tuple(axes[order.index(axis)] for axis in range(len(order)))
        case "reshape" | "squeeze" | "broadcast_in_dim" | "expand_dims":
            if below.size != above.size or jaxprs.is_literal(eqn.invars[0]):
                return None
            sides = [side for side in below.shape if side > 1]
            places = [at for at, side in enumerate(above.shape) if side > 1]
            if sides != [above.shape[at] for at in places]:
                return None
            found = iter(places)
            return tuple(
                axes[next(found)] if side > 1 else None for side in below.shape
            )
    return None


def _seen_from(window, axes):
    """The window, in the order of other axes; None if it needs one more."""
    gone = set(range(len(window.sides))) - set(axes)
    if any(window.sides[at] > 1 or any(window.padding[at]) for at in gone):
        return None

    def ordered(entries, other):
        return tuple(other if axis is None else entries[axis] for axis in axes)

    return Window(
        ordered(window.sides, 1),
        ordered(window.strides, 1),
        ordered(window.padding, (0, 0)),
        ordered(window.dilation, 1),
        window.is_max,
    )


def _commutes(step, window, axes):
    """Whether a value's axis is not pooled, and no window is of padding alone."""
    pairs = zip(window.sides, window.padding, strict=True)
    axis = None if step.axis is None else axes[step.axis]
    return (axis is None or window.sides[axis] == window.strides[axis] == 1) and all(
        max(pair) < side or not any(pair) for side, pair in pairs
    )


def _elementwise(found, place, var):
    """A step that grows with what it gets, and the variable that it gets, or None."""
    eqn = found.eqns[place]
    name = eqn.primitive.name
    if name in ("tanh", "logistic"):
        return _Between(getattr(jax.lax, name)), eqn.invars[0]
    if name == "custom_jvp_call" and len(eqn.invars) == 1 and _is_relu(eqn):
        return _Between(jax.nn.relu), eqn.invars[0]
    if name == "max":
        floor = [jaxprs.literal(one) for one in eqn.invars]
        if floor[1] is not None:
            return (
                _Between(lambda x, low=floor[1]: jnp.maximum(x, low.astype(x.dtype))),
                eqn.invars[0],
            )
    if name == "add":
        for one, other in (eqn.invars, eqn.invars[::-1]):
            if jaxprs.is_literal(one) or jaxprs.is_literal(other):
                continue
            value, axes = _spread(found, other)
            if one.aval.shape == var.aval.shape and len(axes) <= 1:
                return _Between(_plus, value, axes[0] if axes else None), one
    return None


def _spread(found, var):
    """What a value is before it is repeated, and the axes along which it varies."""
    made = found.maker.get(var)
    if made is not None and found.eqns[made].primitive.name == "broadcast_in_dim":
        eqn = found.eqns[made]
        places, below = eqn.params["broadcast_dimensions"], eqn.invars[0]
        if not jaxprs.is_literal(below):
            sides = zip(places, below.aval.shape, strict=True)
            return below, [at for at, side in sides if side > 1]
    return var, [at for at, side in enumerate(var.aval.shape) if side > 1]


def _plus(numbers, value):
    return numbers + value.astype(numbers.dtype)


def _is_relu(eqn):
    """Whether a function with its own gradient is `jax.nn.relu`."""
    inner = eqn.params["call_jaxpr"].jaxpr
    while len(inner.eqns) == 1:
        (only,) = inner.eqns
        if only.primitive.name == "max":
            low = jaxprs.literal(only.invars[1])
            return low is not None and float(low) == 0
        if "jaxpr" not in only.params:
            return False
        inner = only.params["jaxpr"].jaxpr
    return False


def _fits(form, window, shape):
    """Whether a blocked convolution can pool by itself: square windows side by side."""
    batch, rows, columns, channels = form.out
    pool = window.sides[rows]
    return (
        window.sides[columns] == pool
        and window.sides[batch] == window.sides[channels] == 1
        and window.strides == window.sides
        and not any(map(any, window.padding))
        and all(spread == 1 for spread in window.dilation)
        and pool <= 4
        and min(shape[rows], shape[columns]) >= pool
    )


def _apply(between, numbers, values, *, last=False):
    """The steps, on numbers with the axes as they were, or with channels `last`."""
    values = list(values)
    for step in between:
        if step.value is None:
            numbers = step.apply(numbers)
            continue
        shape = [1] * numbers.ndim
        if step.axis is not None:
            shape[-1 if last else step.axis] = -1
        numbers = step.apply(numbers, values.pop(0).reshape(shape))
    return numbers


def _convolved_and_pooled(images, kernel, *values, form, window, between):
    pool, apply = window.sides[form.out[1]], functools.partial(_apply, between)
    outputs = _blocked(
        images.transpose(form.lhs),
        kernel.transpose(form.rhs),
        form.padding,
        pool,
        (lambda numbers: numbers.max(axis=-3))
        if window.is_max
        else lambda numbers: apply(numbers, values, last=True).sum(axis=-3),
    )
    if window.is_max:
        outputs = apply(outputs, values, last=True)
    return _back(outputs, form.out)


def _pooled_first(numbers, *values, window, between):
    return _apply(between, pooled(numbers, window), values)


def pooled(numbers: Any, window: Window) -> Any:
    """Maxima or sums over windows: axis by axis, of slices."""
    nothing = -jnp.inf if window.is_max else 0
    numbers = _padded(numbers, window.padding, nothing)
    for axis, (side, stride, dilation) in enumerate(
        zip(window.sides, window.strides, window.dilation, strict=True)
    ):
        if side == stride == 1:
            continue
        size = (numbers.shape[axis] - (side - 1) * dilation - 1) // stride + 1
        if dilation == 1 and not window.is_max and (side == stride or size == 1):
            # Side by side: the gradient of a sum over an axis is a repetition.
            kept = jax.lax.slice_in_dim(numbers, 0, size * side, axis=axis)
            shape = (*numbers.shape[:axis], size, side, *numbers.shape[axis + 1 :])
            numbers = kept.reshape(shape).sum(axis=axis + 1)
            continue
        members = [
            _every(numbers, axis, place * dilation, stride, size)
            for place in range(side)
        ]
        numbers = functools.reduce(jnp.maximum if window.is_max else jnp.add, members)
    return numbers


def _every(numbers, axis, start, stride, size):
    """`size` entries of an axis, `stride` apart, from `start` on.

    From the axis cut into groups of `stride`: the gradient of a strided slice is slow.
    """
    if stride == 1:
        return jax.lax.slice_in_dim(numbers, start, start + size, axis=axis)
    num_groups = -(-numbers.shape[axis] // stride)
    num_groups = max(num_groups, start // stride + size)
    missing = num_groups * stride - numbers.shape[axis]
    if missing:
        pads = [(0, missing * (at == axis)) for at in range(numbers.ndim)]
        numbers = jnp.pad(numbers, pads)
    shape = (*numbers.shape[:axis], num_groups, stride, *numbers.shape[axis + 1 :])
    groups = jax.lax.index_in_dim(
        numbers.reshape(shape), start % stride, axis + 1, keepdims=False
    )
    return jax.lax.slice_in_dim(
        groups, start // stride, start // stride + size, axis=axis
    )


def _padded(numbers, padding, value):
    """With `value` around; negative padding cuts."""
    if not any(map(any, padding)):
        return numbers
    return jax.lax.pad(
        numbers, jnp.asarray(value, numbers.dtype), [(*pair, 0) for pair in padding]
    )
