"""Numbers over time: one JSON object a line."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import hosts
from dfkd_jax.runtime.files import (
    ends_with_newline,
    parse_json,
    read_json,
    storage_errors,
    write_json,
)


class MetricWriter:
    """Appends records of one stage to a file that all stages share."""

    def __init__(self, path: pathlib.Path, *, stage: str):
        self._path = path
        self._stage = stage
        with storage_errors(path):
            # A newline first ends a line that a killed process left unfinished.
            start = "" if ends_with_newline(path) else "\n"
            self._file = open(path, "a")  # noqa: SIM115 - closed by `close`.
            self._file.write(start)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one record and hands it to the operating system."""
        record = {"stage": self._stage, "step": int(step)}
        record |= {name: float(value) for name, value in scalars.items()}
        with storage_errors(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        # Closing writes again what could not be written and was reported then.
        with contextlib.suppress(OSError):
            self._file.close()


@contextlib.contextmanager
def open_writer(path: pathlib.Path, *, stage: str) -> Iterator[MetricWriter]:
    """A MetricWriter that is closed at the end; it writes in process 0 alone."""
    path = path if hosts.is_primary() else pathlib.Path(os.devnull)
    writer = MetricWriter(path, stage=stage)
    try:
        yield writer
    finally:
        writer.close()


def read_scalars(path: pathlib.Path, *, stage: str) -> dict[int, dict[str, float]]:
    """Records of a stage by step; where a step was repeated, the last one counts.

    A line that a killed process left unfinished, or that is damaged, is passed over.
    """
    records: dict[int, dict[str, float]] = {}
    if not path.exists():
        return records
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = parse_json(line)
            if record.pop("stage") == stage:
                records[int(record.pop("step"))] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return dict(sorted(records.items()))


class Stopwatch:
    """Seconds that each stage took in process 0, summed over restarts."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.seconds: dict[str, float] = {}
        # Nothing depends on it: what cannot be read is counted anew.
        with contextlib.suppress(
            CheckpointError, AttributeError, TypeError, ValueError
        ):
            found = read_json(path)
            self.seconds = {str(name): float(value) for name, value in found.items()}

    def add(self, stage: str, seconds: float) -> None:
        """Adds to a stage and keeps the sum on disk."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if hosts.is_primary():
            write_json(self._path, self.seconds)
