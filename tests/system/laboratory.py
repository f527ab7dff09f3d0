"""Where whole runs are tried: no data, no network, and a start that costs little."""

import os
import pathlib

import command_runner
import pytest
from tiny_runs import Lab


def open_lab(root: pathlib.Path) -> Lab:
    """A laboratory in the empty folder `root`."""
    for name in ("empty", "bin", "cache", "commands"):
        (root / name).mkdir()
    hidden = ("proxy", "xla_flags", "raw_dir", "npm_config_registry")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith(hidden)
    }
    closed = "http://127.0.0.1:9"
    environment |= {
        "PATH": str(root / "bin"),
        "XDG_CACHE_HOME": str(root / "cache"),
        # Networks of users lie in their own folder.
        "PYTHONPATH": os.pathsep.join(
            (str(command_runner.REPOSITORY), os.path.dirname(__file__))
        ),
        "HTTP_PROXY": closed,
        "HTTPS_PROXY": closed,
        "ALL_PROXY": closed,
        # Compiles in half the time.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(root / "cache" / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    runner = command_runner.Runner(environment, root / "commands")
    with pytest.MonkeyPatch.context() as patch:
        # JAX reads its variables when it is imported: when the server starts.
        for key in environment:
            if key.startswith(("PYTHON", "JAX_")):
                patch.setenv(key, environment[key])
        assert runner.call(str).wait() == 0
    return Lab(runner, root / "empty")
