"""Random keys are derived from what they are for, never advanced and carried."""

import zlib

import jax
from jaxtyping import Array, Int, Key, PRNGKeyArray


def stream(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """A key for one purpose; adding a stream never disturbs another."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: PRNGKeyArray, index: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """A key for each example by its global index, whatever device it lands on."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
