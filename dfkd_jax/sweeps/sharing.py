"""One transfer set for runs that differ in the student or its distillation alone."""

import os
import shutil
from collections.abc import Sequence
from typing import Any

from dfkd_jax.errors import DfkdError
from dfkd_jax.runtime import files, records
from dfkd_jax.sweeps.plan import Run
from dfkd_jax.synthesis.transfer_set import TransferSet

FOLDER = "transfer_set"
ORIGIN = "transfer_set_origin.json"  # In a work directory: who made its transfer set.


def sources(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs that have made a whole transfer set, by `Run.transfer_set`."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.transfer_set not in found and is_source(run):
            found[run.transfer_set] = run
    return found


def is_source(run: Run) -> bool:
    """Whether `run` is done with its transfer set, and has made it itself."""
    seconds = run.workdir / "seconds.json"
    if not run.transfer_set or not seconds.is_file() or origin(run):
        return False
    try:
        if "distillation" not in records.read(seconds):
            return False
        return not TransferSet.existing(run.workdir / FOLDER).missing()
    except DfkdError:
        return False


def share(source: Run, run: Run) -> None:
    """Gives `run` the transfer set of `source`, unless it has begun one of its own.

    Shards are hard links, which take no space: nobody writes into a finished shard, and
    a damaged one is replaced by another file. The run itself compares manifest and
    checksums, as it does with what it made: a transfer set of another teacher or of
    other settings is refused.

    Raises:
        StorageError: The work directory cannot be written.
    """
    target = run.workdir / FOLDER
    if target.exists() or source is run:
        return
    partial = target.with_name(f".{FOLDER}.partial")
    with files.storage_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in sorted((source.workdir / FOLDER).iterdir()):
            if path.suffix == ".npy":
                _link(path, partial / path.name)
            elif path.suffix in (".json", ".jsonl"):  # Written to as the run goes on.
                shutil.copyfile(path, partial / path.name)
        seconds = records.read(source.workdir / "seconds.json")
        files.write_json(
            run.workdir / ORIGIN,
            {"run": source.address, "seconds": seconds.get("synthesis", 0.0)},
        )
        os.replace(partial, target)


def _link(path, target):
    try:
        os.link(path, target)
    except OSError:  # A file system without hard links.
        shutil.copyfile(path, target)


def origin(run: Run) -> dict[str, Any]:
    """Who made the transfer set of `run`, in how many seconds; empty if itself."""
    path = run.workdir / ORIGIN
    return files.read_object(path) if path.exists() else {}
