"""The matrix of stages and faults: how much of it, and what it counted."""

import json
import os
import pathlib
import time

import laboratory
import pytest

FULL = "DFKD_JAX_FAULTS"  # Results file of the whole matrix; unset for a sample.


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Commands find no data, no program that fetches any, and no network."""
    return laboratory.open_lab(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def stages(lab, tmp_path_factory):
    """The stages by name; their folders are made when they are asked for."""
    from stages import STAGES

    root = tmp_path_factory.mktemp("stages")
    return {name: make(lab, root / make.__name__) for name, make in STAGES.items()}


@pytest.fixture(scope="session")
def ledger(request):
    """Counts by cell; written and printed at the end."""
    cells = {}
    started = time.monotonic()
    yield cells
    import faults

    from dfkd_jax.runtime import files, parallel, workdir

    found = faults.report(cells)
    request.config.stash[COUNTS] = found["total"]
    if os.environ.get(FULL):
        found["seconds"] = time.monotonic() - started
        found["command"] = f"{FULL}={os.environ[FULL]} python -m pytest tests/faults"
        found["machine"] = parallel.describe()
        found["versions"] = workdir.versions()
        files.write_json(pathlib.Path(os.environ[FULL]), found)


COUNTS = pytest.StashKey[dict]()


def pytest_terminal_summary(terminalreporter, config):
    """Says how often what was disturbed."""
    if counts := config.stash.get(COUNTS, None):
        terminalreporter.write_line(f"faults: {json.dumps(counts)}")
