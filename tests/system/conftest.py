"""The laboratory that the tests of whole runs share."""

import os
import shutil

import command_runner
import prepared_set
import pytest
from tiny_runs import Lab

from dfkd_jax.data import prepare, tfds


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Commands find no data, no program that fetches any, and no network."""
    root = tmp_path_factory.mktemp("lab")
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


@pytest.fixture(scope="session")
def finished_workdir(lab, tmp_path_factory):
    """A run that was not interrupted; do not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    lab.finish(workdir)
    return workdir


@pytest.fixture
def workdir_copy(finished_workdir, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished_workdir, tmp_path / "run", symlinks=True)


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory):
    """A data folder with a set that passes for MNIST; skips without its readers."""
    _skip_without_readers()
    folder = tmp_path_factory.mktemp("tfds")
    prepared_set.write(folder)
    return folder


@pytest.fixture(scope="session")
def prepared_training_data(tmp_path_factory):
    """The same with training images."""
    _skip_without_readers()
    folder = tmp_path_factory.mktemp("tfds")
    prepared_set.write(folder, train=True)
    return folder


def _skip_without_readers():
    if missing := prepare.missing_packages(tfds.READING_PACKAGES["array_record"]):
        pytest.skip(f"{', '.join(missing)} not installed")
