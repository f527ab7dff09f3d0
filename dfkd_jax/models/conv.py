"""Convolution followed by max pooling, formulated for the backend at hand.

XLA's CPU convolution is slow for small images, so on CPU the same arithmetic is
written as one matrix product over blocks of output pixels: the image is cut into
`block × block` tiles (space-to-depth), neighbouring tiles are concatenated into
patches, and the kernel is laid out once for every output pixel of a block. Several
output pixels share a patch, which moves far less memory than im2col, and the columns
are ordered by their place in the pooling window, so that pooling is a maximum over
slices. GPUs and TPUs get the native convolution.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conv_pool(
    images: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    padding: str,
    pool: int = 1,
    implementation: str | None = None,
) -> Float[Array, "batch pooled_height pooled_width outputs"]:
    """Stride-1 convolution, then non-overlapping max pooling over `pool × pool`.

    Args:
        images: Any float images, NHWC.
        kernel: HWIO; odd sizes if `padding` is SAME.
        padding: "SAME" or "VALID".
        pool: Side of the pooling window; 1 pools nothing. Rows and columns that do
            not fill a window are dropped.
        implementation: "native", "blocked" or None: blocked on CPU, else native.
    """
    if implementation is None:
        implementation = "blocked" if jax.default_backend() == "cpu" else "native"
    return {"native": _native, "blocked": _blocked}[implementation](
        images, kernel, padding, pool
    )


def _native(images, kernel, padding, pool):
    outputs = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if pool == 1:
        return outputs
    return jax.lax.reduce_window(
        outputs, -jnp.inf, jax.lax.max, (1, pool, pool, 1), (1, pool, pool, 1), "VALID"
    )


def _blocked(images, kernel, padding, pool):
    rows, columns, num_inputs, num_outputs = kernel.shape
    if padding == "SAME":
        y, x = rows // 2, columns // 2
        images = jnp.pad(images, ((0, 0), (y, y), (x, x), (0, 0)))
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
    outputs = outputs.reshape(batch, blocks_y, blocks_x, pool * pool, -1)
    pooled = outputs[..., 0, :]
    for place in range(1, pool * pool):
        pooled = jnp.maximum(pooled, outputs[..., place, :])
    pooled = pooled.reshape(batch, blocks_y, blocks_x, side, side, num_outputs)
    return pooled.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, pooled_height, pooled_width, num_outputs
    )


def _block_size(pooled_height: int, pooled_width: int, pool: int) -> int:
    """The largest block of at most four pixels (measured) that tiles the output."""
    for block in (4, 2):
        if block % pool == 0 and all(
            size * pool % block == 0 for size in (pooled_height, pooled_width)
        ):
            return block
    return pool
