"""Four CPU devices, and no silent broadcasting."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
)

import jax
import pytest
from ledger import Ledger

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    config.pluginmanager.register(Ledger())


@pytest.fixture
def strict_dtypes():
    """For the project's own mathematics; optax.adam needs implicit promotion."""
    with jax.numpy_dtype_promotion("strict"):
        yield
