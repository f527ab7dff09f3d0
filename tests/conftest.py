"""Four CPU devices, quick compilation, and no silent broadcasting."""

import os
import re

import quick

os.environ["XLA_FLAGS"] = (
    f"{quick.FLAGS} --xla_cpu_multi_thread_eigen=false "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest
from ledger import Ledger
from xdist.scheduler import LoadScopeScheduling

from dfkd_jax.reporting import figures
from dfkd_jax.runtime import parallel

parallel.sum_rightly()
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    config.pluginmanager.register(Ledger())
    # Compiled once, for all processes, every Python and the next time.
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_xdist_make_scheduler(config, log):
    """One process does all tests of a file, or of a stage of the fault matrix."""

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            cell = re.fullmatch(r"(.*/test_matrix.py::test_cell\[[^-]*)-.*", nodeid)
            return cell[1] if cell else nodeid.split("::")[0]

    return Scheduler(config, log)


@pytest.fixture
def no_pictures(monkeypatch):
    """For runs in this process: pictures take seconds and are tested elsewhere."""
    monkeypatch.setenv(figures.SWITCH, "off")


@pytest.fixture
def strict_dtypes():
    """For the project's own mathematics; optax.adam needs implicit promotion."""
    with jax.numpy_dtype_promotion("strict"):
        yield
