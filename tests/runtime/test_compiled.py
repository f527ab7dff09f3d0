"""What a kill or a full disk leaves of compiled programs, and the next start."""

import os
import subprocess
import sys
import warnings

import pytest

from dfkd_jax.runtime import compiled, parallel

PROGRAM = """
import resource, sys
from dfkd_jax.runtime import compiled
compiled.keep_in(sys.argv[1])
import jax
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
print(jax.jit(lambda x: x + 1)(1), jax.jit(lambda x: x * 2)(1))
"""


def start(folder, *limit, **variables):
    """The lines on standard error of a process that compiles two programs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *map(str, limit)],
        env=environment | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "2"]
    return done.stderr.splitlines()


def kept(folder):
    return {path: path.read_bytes() for path in folder.glob("*-cache")}


def test_programs_of_other_flags_are_others(tmp_path):
    """What was compiled without the flag for right sums is not run with it."""
    with_flag = os.environ["XLA_FLAGS"]
    if parallel.RIGHT_SUMS not in with_flag:
        pytest.skip("this jaxlib may not know the flag")
    without = with_flag.replace(parallel.RIGHT_SUMS, "")
    start(tmp_path, XLA_FLAGS=without)
    first = kept(tmp_path)
    start(tmp_path, XLA_FLAGS=with_flag)
    both = kept(tmp_path)
    assert first.keys() < both.keys() and len(both) == 2 * len(first)
    for flags in (without, with_flag):
        start(tmp_path, XLA_FLAGS=flags)
    assert kept(tmp_path).keys() == both.keys()


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


@pytest.mark.full
def test_a_disk_that_fills_up_leaves_no_half_programs(tmp_path):
    [line] = start(tmp_path, 500)
    assert line.startswith(f"WARNING: Compiled programs cannot be kept in {tmp_path}")
    assert "File too large" in line
    assert "JAX_COMPILATION_CACHE_DIR" in line
    assert kept(tmp_path) == {}
    assert start(tmp_path) == []
    assert len(kept(tmp_path)) >= 2


@pytest.mark.parametrize(
    ("reason", "owner", "left", "said"),
    [
        ("ZlibError: incomplete stream", 0, ["jit_g-1-cache"], "were damaged"),
        ("ZlibError: incomplete stream", 1, None, "cannot be read"),
        ("PermissionError: [Errno 13] Permission denied", 0, None, "cannot be read"),
        ("OSError: [Errno 5] Input/output error", 0, None, "cannot be read"),
    ],
)
def test_only_what_is_damaged_and_ones_own_is_deleted(
    tmp_path, monkeypatch, reason, owner, left, said
):
    """A folder may be shared, and what cannot be read need not be damaged."""
    names = ["jit_f-1-cache", "jit_f-2-cache", "jit_g-1-cache"]
    for name in names:
        (tmp_path / name).touch()
    heard = []
    monkeypatch.setattr(compiled.progress, "warn", heard.append)
    monkeypatch.setattr(compiled.os, "geteuid", lambda: os.getuid() + owner)
    with warnings.catch_warnings():
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        compiled._mend(tmp_path)
        for _ in range(1 if left else 2):  # Said once.
            warnings.warn(
                "Error reading persistent compilation cache entry for 'jit_f': "
                + reason,
                stacklevel=1,
            )
    assert sorted(os.listdir(tmp_path)) == (left or names)
    [line] = heard
    assert said in line
    assert reason in line
