"""Convolutions and max pooling, formulated for the backend at hand.

GPUs and TPUs get the native operations. XLA's CPU backend is slow where it meets them
in certain forms, so that there the same arithmetic is written in one of two other ways.
Times are in µs an image on one core of a Xeon with AVX-512, for the outputs and the
gradient of the images, inside a `lax.scan`:

- Few inputs and outputs (LeNet-5): `_blocked`, one matrix product over blocks of output
  pixels. The image is cut into `block × block` tiles (space-to-depth), neighbouring
  tiles are concatenated into patches, and the kernel is laid out once for every output
  pixel of a block. Several output pixels share a patch, which moves far less memory
  than im2col, and the columns are ordered by their place in the pooling window, so that
  pooling is a maximum over one axis. 22 against 140 for 5×5, 1 → 6 channels at 28×28,
  with pooling. With more inputs it loses: 2,309 against 293 of `_explicit` for 3×3,
  16 → 16 channels at 28×28, the gradient of the kernel included (an AMD EPYC, busy).
- More of them (AlexNet, ResNet, generators): `_explicit`, the native convolution with
  both gradients written as convolutions too: of the images, with the reversed kernel;
  of the kernel, with batch and channels exchanged. JAX derives the same, but XLA then
  folds reversal and exchange into the operation's layout, for which it has no fast code
  inside a loop: 222 against 3,447 for 5×5, 3 → 48 channels at 32×32, and for the
  gradient of the kernel 889 against 88,652 for 3×3, 64 → 64 channels at 32×32.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST_BLOCKED_INPUTS, MOST_BLOCKED_OUTPUTS = 8, 32
_native_only = contextvars.ContextVar("native_only", default=False)


@contextlib.contextmanager
def native_operations() -> Iterator[None]:
    """Traces networks with the native operations: for other machines than this one."""
    token = _native_only.set(True)
    try:
        yield
    finally:
        _native_only.reset(token)


def _for_cpu():
    return jax.default_backend() == "cpu" and not _native_only.get()


def conv_pool(
    images: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    padding: str,
    stride: int = 1,
    pool: int = 1,
    implementation: str | None = None,
) -> Float[Array, "batch pooled_height pooled_width outputs"]:
    """Convolution, then non-overlapping max pooling over `pool × pool`.

    Args:
        images: Any float images, NHWC.
        kernel: HWIO; odd sizes if `padding` is SAME.
        padding: "VALID", or "SAME" for zeros of half the kernel's size on every side.
            At stride 2 XLA's own SAME would pad an even image on one side only.
        stride: Between neighbouring outputs, in pixels.
        pool: Side of the pooling window; 1 pools nothing. Rows and columns that do
            not fill a window are dropped.
        implementation: "native", "explicit"; at stride 1 also "blocked"; None for the
            fastest.
    """
    if implementation is None:
        implementation = _fastest(kernel.shape, stride)
    half = [side // 2 if padding == "SAME" else 0 for side in kernel.shape[:2]]
    margins = tuple((margin, margin) for margin in half)
    if implementation == "blocked":
        return _blocked(images, kernel, margins, pool)
    if implementation == "explicit":
        outputs = _explicit(images, kernel, margins, stride)
    else:
        outputs = _native(images, kernel, margins, stride)
    return max_pool(outputs, window=pool, stride=pool)


def _fastest(kernel_shape, stride):
    """By measurement; see the module's docstring."""
    if not _for_cpu():
        return "native"
    num_inputs, num_outputs = kernel_shape[-2:]
    few = num_inputs <= MOST_BLOCKED_INPUTS and num_outputs <= MOST_BLOCKED_OUTPUTS
    return "blocked" if few and stride == 1 else "explicit"


def max_pool(
    images: Float[Array, "batch height width channels"],
    *,
    window: int,
    stride: int,
    implementation: str | None = None,
) -> Float[Array, "batch pooled_height pooled_width channels"]:
    """Max pooling over `window × window` without padding.

    On a CPU it is a maximum of slices: the gradient of XLA's own is slow there (680
    against 91 µs for 3×3 at stride 2 of 32×32 pixels with 48 channels). Among equal
    maxima that one shares the gradient, XLA's own gives it to the first.

    Args:
        images: Any float images, NHWC.
        window: Side of the window, in pixels.
        stride: Between neighbouring windows, in pixels.
        implementation: "native", "explicit", or None: the fastest.
    """
    if window == stride == 1:
        return images
    if implementation is None:
        implementation = "explicit" if _for_cpu() else "native"
    if implementation == "native":
        sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
        return jax.lax.reduce_window(
            images, -jnp.inf, jax.lax.max, sizes, strides, "VALID"
        )
    rows = _max_along(images, 1, window, stride)
    return _max_along(rows, 2, window, stride)


def _max_along(images, axis, window, stride):
    """Maxima over windows of one axis, which is cut into groups of `stride`."""
    size = (images.shape[axis] - window) // stride + 1
    num_groups = size + (window - 1) // stride
    missing = max(0, num_groups * stride - images.shape[axis])
    images = jnp.pad(images, [(0, missing * (i == axis)) for i in range(images.ndim)])
    images = jax.lax.slice_in_dim(images, 0, num_groups * stride, axis=axis)
    groups = images.reshape(
        *images.shape[:axis], num_groups, stride, *images.shape[axis + 1 :]
    )
    members = (
        jax.lax.slice_in_dim(
            jax.lax.index_in_dim(groups, place % stride, axis + 1, keepdims=False),
            place // stride,
            place // stride + size,
            axis=axis,
        )
        for place in range(window)
    )
    return functools.reduce(jnp.maximum, members)


def _native(images, kernel, margins, stride=1, *, spread=1, kernel_spread=1):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        margins,
        lhs_dilation=(spread, spread),
        rhs_dilation=(kernel_spread, kernel_spread),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _explicit(images, kernel, margins, stride):
    return _native(images, kernel, margins, stride)


def _explicit_forward(images, kernel, margins, stride):
    return _native(images, kernel, margins, stride), (images, kernel)


def _explicit_backward(margins, stride, saved, cotangent):
    images, kernel = saved
    around, within = [], []
    for size, side, (low, high) in zip(
        images.shape[1:3], kernel.shape[:2], margins, strict=True
    ):
        unseen = (size + low + high - side) % stride  # By a stride above 1, at the end.
        around.append((side - 1 - low, side - 1 - high + unseen))
        within.append((low, high - unseen))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    to_images = _native(cotangent, turned, around, spread=stride)
    # Without the barrier XLA undoes the exchange; see the module's docstring.
    exchanged = jax.lax.optimization_barrier(
        (images.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
    )
    to_kernel = _native(*exchanged, within, kernel_spread=stride)
    return to_images, to_kernel.transpose(1, 2, 0, 3)


_explicit.defvjp(_explicit_forward, _explicit_backward)


def _blocked(images, kernel, margins, pool):
    rows, columns, num_inputs, num_outputs = kernel.shape
    images = jnp.pad(images, ((0, 0), *margins, (0, 0)))
    batch, height, width, _ = images.shape
    pooled_height = (height - rows + 1) // pool
    pooled_width = (width - columns + 1) // pool
    block = _block_size(pooled_height, pooled_width, pool)
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
    # One maximum over all places: its gradient is one pass, that of slices one each.
    pooled = outputs.reshape(batch, blocks_y, blocks_x, pool * pool, -1).max(axis=-2)
    pooled = pooled.reshape(batch, blocks_y, blocks_x, side, side, num_outputs)
    return pooled.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, pooled_height, pooled_width, num_outputs
    )


def _block_size(height: int, width: int, pool: int) -> int:
    """The largest block of at most four pixels (measured) that tiles the output."""
    for block in (4, 2):
        if block % pool == 0 and all(
            size * pool % block == 0 for size in (height, width)
        ):
            return block
    return pool
