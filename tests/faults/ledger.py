"""What cells of the matrix counted, put together from all processes of the tests."""

import json
import os
import pathlib
import time

FULL = "DFKD_JAX_FAULTS"  # Results file of the whole matrix; unset for a sample.
PROPERTY = "fault × stage"  # Under which a test records its counts.


class Ledger:
    """Plugin of pytest: prints the counts at the end, and writes those of a whole run.

    Tests hand over theirs with `record_property`, which reaches the process that
    reports whatever process they ran in.
    """

    def __init__(self):
        self.cells = {}
        self.started = time.monotonic()

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.cells |= {
                counts["cell"]: {k: v for k, v in counts.items() if k != "cell"}
                for name, counts in report.user_properties
                if name == PROPERTY
            }

    def pytest_terminal_summary(self, terminalreporter):
        if not self.cells:
            return
        total = sum_up(self.cells)
        terminalreporter.write_line(f"faults: {json.dumps(total)}")
        if path := os.environ.get(FULL):
            self.write(pathlib.Path(path), total)

    def write(self, path, total):
        from dfkd_jax.runtime import files, parallel, workdir

        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(
            path,
            {
                "total": total,
                "cells": dict(sorted(self.cells.items())),
                "seconds": time.monotonic() - self.started,
                "command": f"{FULL}={os.environ[FULL]} "
                "python -m pytest -m full tests/faults",
                "machine": parallel.describe(),
                "versions": workdir.versions(),
            },
        )


def sum_up(cells):
    """The sums of all counts; of "longest stop" the largest."""
    total = {"cells": len(cells)}
    for counts in cells.values():
        for name, number in counts.items():
            if name == "longest stop":
                total[name] = max(total.get(name, 0), number)
            elif name != "seconds":
                total[name] = total.get(name, 0) + number
    return total
