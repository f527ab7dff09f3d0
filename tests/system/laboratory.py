"""Where whole runs are tried: no data, no network, and a start that costs little."""

import fcntl
import importlib.metadata
import os
import pathlib
import shutil
import sys

import command_runner
import pytest
import quick
import toy
from tiny_runs import Lab

TOY = str(pathlib.Path(toy.__file__).relative_to(command_runner.REPOSITORY))


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of all processes of this test session."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "shared").mkdir(exist_ok=True)
    return folder / "shared"


def open_lab(root: pathlib.Path) -> Lab:
    """A laboratory in the empty folder `root`."""
    return _open(root, root)


def open_warm_lab(
    root: pathlib.Path, *, shared: pathlib.Path, warm: pathlib.Path
) -> Lab:
    """The same, for several processes that need the same runs.

    Args:
        root: Where what is this process's own goes.
        shared: Folder of all processes: what a run names is there, and `usual_runs`.
        warm: A folder that keeps what the usual runs compile: the first laboratory
            fills it while others wait, and each copies it. Two that wrote to one folder
            might read what the other is just writing.
    """
    lab = _open(root, shared)
    compiled = pathlib.Path(lab.runner.environment["JAX_COMPILATION_CACHE_DIR"])
    jax = importlib.metadata.version("jax")
    place = warm / f"python{sys.version_info.minor}-jax{jax}"
    with open(warm / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            shutil.copytree(place, compiled, dirs_exist_ok=True)
        else:
            usual_runs(lab, shared)
            shutil.copytree(compiled, warm / "unfinished", dirs_exist_ok=True)
            (warm / "unfinished").rename(place)
    return lab


def usual_runs(lab: Lab, shared: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finished runs of LeNet-5 and of the toy, made once for all processes."""
    runs = {name: shared / "runs" / name for name in ("lenet", "toy")}
    with open(shared / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not runs["toy"].exists():  # Both at a time.
            lenet = lab.start(runs["lenet"])
            toy_lab(lab, shared).finish(runs["toy"])
            assert lenet.wait() == lab.done, lenet.stderr
    return runs


def toy_lab(lab: Lab, shared: pathlib.Path) -> Lab:
    """The same with the teacher of two layers, which needs no data set."""
    weights = shared / "toy.safetensors"
    if not weights.exists():
        toy.write_teacher(weights)
    return Lab(
        lab.runner,
        lab.empty,
        config=TOY,
        settings={"teacher.weights": weights},
        done=0,
    )


def _open(root, shared):
    for name in ("bin", "cache", "commands"):
        (root / name).mkdir()
    empty = shared / "empty"
    empty.mkdir(exist_ok=True)
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
        "XLA_FLAGS": quick.FLAGS,
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
    return Lab(runner, empty)
