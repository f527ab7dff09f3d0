"""Whatever happens to a stage, it goes on to the same student or says what is wrong.

A sample of the matrix by a fixed seed; the whole of it, with 216 kills, by

    DFKD_JAX_FAULTS=results/faults/matrix.json python -m pytest -m full tests/faults
"""

import os
import time
import zlib

import pytest
from faults import FAULTS, Cell
from ledger import FULL, PROPERTY
from stages import STAGES

WHOLE = bool(os.environ.get(FULL))
SEED = 16
TIMES = {"SIGKILL": (3, 36), "SIGTERM": (1, 6), "SIGINT": (1, 6)}  # Sample, whole.


def cells():
    every = [(stage, fault) for stage in STAGES for fault in FAULTS]
    if WHOLE:
        return every
    return [
        cell
        for cell in every
        if zlib.crc32(f"{SEED} {' × '.join(cell)}".encode()) % 4 == 0
    ]


def test_every_stage_and_every_fault_is_there():
    stages, faults = zip(*cells(), strict=True)
    assert set(stages) == set(STAGES)
    assert set(faults) == set(FAULTS)


@pytest.mark.full
@pytest.mark.parametrize(("stage", "fault"), cells())
def test_cell(stages, record_property, tmp_path, stage, fault):
    name = f"{stage} × {fault}"
    times = TIMES.get(fault, (1, 0))[WHOLE]
    cell = Cell(stages[stage], tmp_path, seed=f"{SEED} {name}", times=times)
    started = time.monotonic()
    FAULTS[fault](cell)
    assert cell.counts
    seconds = round(time.monotonic() - started, 1)
    record_property(PROPERTY, {"cell": name, **cell.counts, "seconds": seconds})
