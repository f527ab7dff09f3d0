"""What a start costs: what is imported for an answer, and what is compiled again."""

import json
import os
import subprocess
import sys

import command_runner
import pytest

HEAVY = ("jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets")
TELL_IMPORTS = f"""
import atexit, runpy, sys
atexit.register(
    lambda: print("HEAVY", [name for name in {HEAVY} if name in sys.modules])
)
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
TELL_COMPILATIONS = """
import atexit, collections, json, runpy, sys
from jax import monitoring
sys.modules["matplotlib"] = None
events = collections.Counter()
monitoring.register_event_listener(lambda event, **_: events.update([event]))
atexit.register(lambda: print("EVENTS", json.dumps(events)))
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        cwd=command_runner.REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("module", "arguments", "status"),
    [
        ("dfkd_jax.main", ["--help"], 0),
        ("dfkd_jax.main", ["--config=configs/mnist.py", "--help"], 0),
        ("dfkd_jax.main", ["--config=configs/mnst.py"], 2),
        (
            "dfkd_jax.main",
            ["--config=configs/mnist.py", "--config.distillation.temperature=-1"],
            2,
        ),
        ("dfkd_jax.sweep", ["--help"], 0),
        ("dfkd_jax.sweep", ["--config=configs/mnist.py", "--set=sigma=1"], 2),
        ("docs.pages", ["--help"], 0),
        ("dfkd_jax.evaluate", ["--help"], 0),
        ("dfkd_jax.evaluate", [], 2),
    ],
)
def test_help_and_config_errors_come_without_jax(lab, module, arguments, status):
    found = run(TELL_IMPORTS, module, *arguments, **lab.runner.environment)
    assert found.returncode == status, found.stderr
    assert found.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.full
def test_a_second_start_compiles_nothing(toys, tmp_path):
    """A run that was done before, in a new folder: every program comes from disk."""
    environment = {
        key: value
        for key, value in toys.runner.environment.items()
        if not key.startswith("JAX_")
    } | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    events, kept = [], []
    for name in ("first", "second"):
        arguments = toys.arguments(
            tmp_path / name, distillation__num_steps=5, distillation__warmup_steps=0
        )
        found = run(TELL_COMPILATIONS, "dfkd_jax.main", *arguments, **environment)
        assert found.returncode == toys.done, found.stderr
        [line] = [x for x in found.stdout.splitlines() if x.startswith("EVENTS ")]
        events.append(json.loads(line.removeprefix("EVENTS ")))
        compiled = tmp_path / "cache" / "dfkd_jax" / "compiled"
        kept.append({p.name for p in compiled.iterdir() if p.suffix != ".atime"})
    requests, hits = (
        events[1][f"/jax/compilation_cache/{event}"]
        for event in ("compile_requests_use_cache", "cache_hits")
    )
    assert requests == hits > 10
    assert kept[0] == kept[1] != set()


def test_cache_that_cannot_be_written_is_a_warning(lab, tmp_path):
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("A file where the folder should be.")
    script = """
from dfkd_jax.runtime import parallel
parallel.configure(cpu_devices=2)
import jax
print(jax.jit(lambda x: x + 1)(1), jax.config.jax_compilation_cache_dir)
"""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != "JAX_COMPILATION_CACHE_DIR"
    } | {"XDG_CACHE_HOME": str(in_the_way), "JAX_PLATFORMS": "cpu"}
    found = run(script, **environment)
    assert found.stdout.split() == ["2", "None"], found.stderr
    [line] = found.stderr.splitlines()
    assert line.startswith(f"WARNING: Compiled programs cannot be kept in {in_the_way}")
    assert "JAX_COMPILATION_CACHE_DIR" in line
