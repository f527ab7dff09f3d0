import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.runtime import parallel

DEVICES = 4


def shards(leaf):
    return [np.asarray(shard.data) for shard in leaf.addressable_shards]


def test_there_are_four_devices():
    assert parallel.device_count() == DEVICES
    assert parallel.describe()["num_devices"] == DEVICES


def test_replicate_puts_the_whole_on_every_device():
    tree = parallel.replicate({"a": np.arange(6.0).reshape(2, 3), "b": np.int32(7)})
    for leaf, expected in ((tree["a"], np.arange(6).reshape(2, 3)), (tree["b"], 7)):
        assert len(leaf.sharding.device_set) == DEVICES
        for shard in shards(leaf):
            np.testing.assert_array_equal(shard, expected)


def test_split_gives_every_device_its_part():
    batch = {"images": np.arange(24.0).reshape(8, 3), "labels": np.arange(8)}
    result = parallel.split(batch)
    assert result["images"].shape == (DEVICES, 2, 3)
    assert result["labels"].shape == (DEVICES, 2)
    for place, shard in enumerate(shards(result["labels"])):
        np.testing.assert_array_equal(shard, [[2 * place, 2 * place + 1]])
    assert (
        len({shard.device for shard in result["images"].addressable_shards}) == DEVICES
    )


def test_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="reshape"):
        parallel.split(np.zeros((6, 3)))


def test_mean_over_devices_of_a_tree():
    """Leaves of several shapes travel as one vector and come back as they were."""

    def step(state, constants, batch, key):
        local = {
            "scalar": batch["x"].sum(),
            "matrix": constants * batch["y"].mean(0),
            "tuple": (batch["x"], state["offset"]),
        }
        return state | {"step": state["step"] + 1}, parallel.mean(local)

    random = np.random.default_rng(0)
    batch = {
        "x": random.normal(size=(8,)).astype(np.float32),
        "y": random.normal(size=(8, 3, 2)).astype(np.float32),
    }
    state = parallel.replicate({"step": jnp.int32(0), "offset": jnp.float32(5)})
    constants, key = parallel.replicate((jnp.float32(10), jax.random.key(0)))
    state, found = parallel.data_parallel(step)(
        state, constants, parallel.split(batch), key
    )

    np.testing.assert_allclose(found["scalar"], batch["x"].sum() / 4, rtol=1e-5)
    np.testing.assert_allclose(found["matrix"], 10 * batch["y"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        found["tuple"][0], batch["x"].reshape(4, 2).mean(0), rtol=1e-5
    )
    assert found["tuple"][1] == 5
    assert state["step"] == 1
    for leaf in jax.tree.leaves((state, found)):
        parts = shards(leaf)
        assert len(parts) == DEVICES
        for part in parts:
            np.testing.assert_array_equal(part, parts[0])


def test_global_index_is_the_place_in_the_whole_batch():
    def step(state, _, batch, key):
        error = jnp.abs(parallel.global_index(batch.shape[0]) - batch).sum()
        return state, parallel.mean({"error": error, "largest": batch.max()})

    arguments = parallel.replicate((jnp.zeros(()), jnp.zeros(())))
    key = parallel.replicate(jax.random.key(0))
    _, found = parallel.data_parallel(step)(
        *arguments, parallel.split(np.arange(12.0, dtype=np.float32)), key
    )
    assert found["error"] == 0
    assert found["largest"] == np.mean([2, 5, 8, 11])


def test_batch_parallel_keeps_devices_apart():
    def init(constant, index):
        return constant * index

    def step(state, constant, batch, key):
        return state + constant * batch, {"sum": state.sum()}

    index = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    constant = parallel.replicate(jnp.float32(3))
    state = parallel.map_devices(init)(constant, parallel.put_split(index))
    np.testing.assert_array_equal(state, 3 * index)

    state, found = parallel.batch_parallel(step)(
        state,
        constant,
        parallel.put_split(np.ones_like(index)),
        parallel.replicate(jax.random.key(0)),
    )
    np.testing.assert_array_equal(state, 3 * index + 3)
    np.testing.assert_array_equal(found["sum"], 3 * index.sum(1))
    assert [shard.shape for shard in shards(state)] == [(1, 2)] * DEVICES


CONFIGURE = """
from dfkd_jax.runtime import parallel
parallel.configure(cpu_devices=3)
import jax
print(parallel.device_count(), jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(
    ("flags", "devices"),
    [("", 3), ("--xla_force_host_platform_device_count=2", 2)],
    ids=["as configured", "as XLA_FLAGS say"],
)
def test_configure_divides_the_cpu(tmp_path, flags, devices):
    environment = os.environ | {"XLA_FLAGS": flags, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    output = subprocess.run(
        [sys.executable, "-c", CONFIGURE],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.split() == [str(devices), f"{tmp_path}/dfkd_jax/compiled"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(bad):
    tree = {"a": np.ones(3, np.float32), "step": np.int32(7)}
    assert parallel.all_finite(parallel.replicate(tree))
    tree["a"][1] = bad
    assert not parallel.all_finite(parallel.replicate(tree))
    assert parallel.all_finite(parallel.replicate({"step": np.int32(7)}))
    assert parallel.all_finite({})
