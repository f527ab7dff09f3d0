import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.errors import ConfigError
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
import os, jax
print(parallel.device_count(), parallel.sums_are_wrong())
parallel.configure(cpu_devices=parallel.device_count())
print(jax.config.jax_compilation_cache_dir, os.environ["XLA_FLAGS"])
"""
USED_BEFORE = """
import jax
jax.numpy.ones(1) + 1
from dfkd_jax import api
from dfkd_jax.runtime import parallel
parallel.sum_rightly()
print(parallel.sums_are_wrong(), flush=True)
api.configure(cpu_devices=3)
"""


FROM_PYTHON = """
import os, pathlib, runpy, sys
way = sys.argv[1]
if way == "verify":
    from dfkd_jax import verify
    pathlib.Path("run.json").write_text("{}")
    list(verify.check(pathlib.Path(), verify.Sources()))
elif way == "api":
    import dfkd_jax.api
elif way == "benchmarks":
    import benchmarks.measure
else:
    parts = "", "faults", "system"
    sys.path[:0] = [os.path.join(sys.argv[2], "tests", part) for part in parts]
    import conftest
from dfkd_jax.runtime import parallel
print(parallel.sums_are_wrong(), os.environ["XLA_FLAGS"])
"""


@pytest.mark.parametrize("way", ["api", "verify", "benchmarks", "tests"])
def test_every_way_in_has_sums_right(tmp_path, way):
    """Commands do by `configure`, and notebooks by the API."""
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", FROM_PYTHON, way, str(root)],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    wrong, *flags = done.stdout.split()
    assert wrong == "False", done.stderr
    known = parallel.RIGHT_SUMS in os.environ["XLA_FLAGS"]  # To this jaxlib.
    assert flags.count(parallel.RIGHT_SUMS) == known


def run_alone(program, **environment):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("flags", "devices"),
    [("", 3), ("--xla_force_host_platform_device_count=2", 2)],
    ids=["as configured", "as XLA_FLAGS say"],
)
def test_configure_divides_the_cpu_and_has_sums_right(tmp_path, flags, devices):
    done = run_alone(CONFIGURE, XLA_FLAGS=flags, XDG_CACHE_HOME=str(tmp_path))
    words = done.stdout.split()
    assert words[:3] == [str(devices), "False", f"{tmp_path}/dfkd_jax/compiled"]
    assert words[3:].count(parallel.RIGHT_SUMS) == 1
    assert done.stderr == ""


def test_jax_that_was_used_before(tmp_path):
    """The flag comes too late: said once, where sums are wrong; and devices too."""
    done = run_alone(USED_BEFORE, XLA_FLAGS="", XDG_CACHE_HOME=str(tmp_path))
    wrong = done.stdout.split() == ["True"]
    assert wrong == (jax.__version__ == "0.10.2")
    assert done.stderr.count("sums wrongly") == wrong
    assert "JAX was used already, on 1 CPU devices in place of 3" in done.stderr


def test_sums_are_right():
    """What JAX 0.10.2 gets wrong on CPUs without the flag that the package sets."""
    assert not parallel.sums_are_wrong()


@pytest.mark.parametrize(
    ("flags", "version", "expected"),
    [
        ("", "0.10.2", parallel.RIGHT_SUMS),
        ("--a=1", "0.12.0.1", f"--a=1 {parallel.RIGHT_SUMS}"),
        (
            "--xla_cpu_experimental_ynn_fusion_type=",
            "0.10.2",
            "--xla_cpu_experimental_ynn_fusion_type=",
        ),
        (" ", "0.13.0.dev1", ""),
    ],
    ids=["none", "another", "the user's own wins", "one that may not know it"],
)
def test_flag_for_right_sums(monkeypatch, flags, version, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(parallel.jaxlib, "__version__", version)
    monkeypatch.setattr(parallel, "sums_are_wrong", lambda: False)
    parallel.sum_rightly()
    assert os.environ["XLA_FLAGS"] == expected


def test_flags_in_a_file(monkeypatch, tmp_path):
    """XLA reads a file where XLA_FLAGS starts with no dash, and dies without it."""
    path = tmp_path / "flags"
    monkeypatch.setenv("XLA_FLAGS", str(path))
    with pytest.raises(ConfigError, match=f"XLA_FLAGS={path} .*No such file"):
        parallel.sum_rightly()
    path.write_text("--a=1\n--b=2\n")
    monkeypatch.setattr(parallel.jaxlib, "__version__", "0.13.0")
    parallel.sum_rightly()
    assert os.environ["XLA_FLAGS"] == "--a=1 --b=2"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(bad):
    tree = {"a": np.ones(3, np.float32), "step": np.int32(7)}
    assert parallel.all_finite(parallel.replicate(tree))
    tree["a"][1] = bad
    assert not parallel.all_finite(parallel.replicate(tree))
    assert parallel.all_finite(parallel.replicate({"step": np.int32(7)}))
    assert parallel.all_finite({})
