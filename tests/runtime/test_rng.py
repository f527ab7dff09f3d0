import zlib

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.runtime import rng

ROOT = jax.random.key(3)


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_streams_depend_on_root_and_name_alone():
    names = ["labels", "initial noise", "shift", "student"]
    streams = {tuple(data(rng.stream(ROOT, name))) for name in names}
    assert len(streams) == len(names)
    assert tuple(data(ROOT)) not in streams
    # CRC-32, unlike `hash`, is the same in every process.
    np.testing.assert_array_equal(
        data(rng.stream(ROOT, "labels")),
        data(jax.random.fold_in(ROOT, zlib.crc32(b"labels"))),
    )
    other = rng.stream(jax.random.key(4), "labels")
    assert tuple(data(other)) not in streams


def test_key_of_an_example_depends_on_its_global_index_alone():
    whole = data(rng.per_example(ROOT, jnp.arange(12)))
    assert len({tuple(key) for key in whole}) == 12
    np.testing.assert_array_equal(
        data(rng.per_example(ROOT, jnp.array([7, 3]))), whole[jnp.array([7, 3])]
    )
    np.testing.assert_array_equal(whole[5], data(jax.random.fold_in(ROOT, 5)))
