"""What a kill or a full disk leaves of compiled programs, and the next start."""

import os
import subprocess
import sys

PROGRAM = """
import resource, sys
from dfkd_jax.runtime import compiled
compiled.keep_in(sys.argv[1])
import jax
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
print(jax.jit(lambda x: x + 1)(1), jax.jit(lambda x: x * 2)(1))
"""


def start(folder, *limit):
    """The lines on standard error of a process that compiles two programs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *map(str, limit)],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "2"]
    return done.stderr.splitlines()


def kept(folder):
    return {path: path.read_bytes() for path in folder.glob("*-cache")}


def test_half_a_program_is_compiled_again_and_kept(tmp_path):
    assert start(tmp_path) == []
    programs = kept(tmp_path)
    assert len(programs) >= 2
    for path, program in programs.items():
        path.write_bytes(program[: len(program) // 2])
    [line] = start(tmp_path)
    assert line.startswith(f"WARNING: Compiled programs in {tmp_path} were damaged")
    assert kept(tmp_path).keys() == programs.keys()
    assert start(tmp_path) == []


def test_a_disk_that_fills_up_leaves_no_half_programs(tmp_path):
    [line] = start(tmp_path, 500)
    assert line.startswith(f"WARNING: Compiled programs cannot be kept in {tmp_path}")
    assert "File too large" in line
    assert "JAX_COMPILATION_CACHE_DIR" in line
    assert kept(tmp_path) == {}
    assert start(tmp_path) == []
    assert len(kept(tmp_path)) >= 2
