"""Checkpoints of states while they are trained: the only module that says orbax."""

import contextlib
import io
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import files, hosts, parallel


@contextlib.contextmanager
def open_checkpoints(
    folder: pathlib.Path, *, every_steps: int = 1, keep: int = 2
) -> Iterator[ocp.training.Checkpointer]:
    """A series of checkpoints under `folder`, at multiples of `every_steps`.

    Half-written checkpoints of a killed process are removed; the newest `keep` stay.

    Raises:
        StorageError: The folder cannot be written, or the disk is full.
    """
    policies = ocp.training
    with files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        checkpointer = policies.Checkpointer(
            folder.absolute(),
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(
                every_steps
            ),
            preservation_policy=policies.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
    try:
        yield checkpointer
    except BaseException:
        # Closing raises the error of a failed save again, which would hide the first,
        # and waits for other processes, which may have died.
        if hosts.count() == 1:
            with contextlib.suppress(Exception):
                checkpointer.close()
        raise
    checkpointer.close()


def save(
    checkpointer: ocp.training.Checkpointer,
    step: int,
    state: Any,
    *,
    split: bool = False,
    force: bool = False,
) -> None:
    """Saves `state` as the checkpoint of `step` and waits until it is on disk.

    Args:
        checkpointer: Of `open_checkpoints`.
        step: Number of the checkpoint.
        state: What to save; all processes save together.
        split: Whether `state` is split over devices rather than whole on each.
        force: Whether to save at a step that is no multiple of `every_steps`.

    Raises:
        StorageError: It cannot be written; the disk is full, say.
    """
    state = parallel.of_all_processes(state, split=split)
    try:
        checkpointer.save(step, state, force=force)
    except Exception as error:  # TensorStore reports a full disk as ValueError.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise StorageError(
            f"Cannot write checkpoint {checkpointer.directory / str(step)} "
            f"({reason[0][:200]}). Free some disk space; earlier checkpoints are kept "
            "and the same command goes on from there."
        ) from error


def restore_or(
    checkpointer: ocp.training.Checkpointer, state: Any, *, split: bool = False
) -> Any:
    """The latest checkpoint in the shapes and shardings of `state`, or `state` itself.

    `split` as in `save`.

    Raises:
        CheckpointError: The checkpoint is damaged or of another network.
    """
    latest = checkpointer.latest
    if latest is None:
        return state
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        parallel.of_all_processes(state, split=split),
    )
    try:
        with _quiet_threads():
            restored = checkpointer.load(latest, abstract_state=abstract)
        return parallel.of_this_process(restored, split=split)
    except Exception as error:  # Orbax, TensorStore and JAX raise kinds of their own.
        path = checkpointer.directory / str(latest.step)
        raise _not_restored(path, error) from error


def load_variables(folder: pathlib.Path) -> dict[str, Any]:
    """Linen variables (NumPy) of one checkpoint, or of the latest in a series.

    Those of a train state (`params`, and `model_state` or `batch_stats`), a dictionary
    of variables, or bare parameters.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    path = max(steps, key=lambda path: int(path.name)) if steps else folder
    try:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            ocp.metadata(path.absolute()).metadata,
        )
        with _quiet_threads():
            tree = ocp.load(path.absolute(), abstract_state=abstract)
        return jax.tree.map(np.asarray, _variables(tree))
    except Exception as error:  # As above.
        raise _not_restored(path, error) from error


def _variables(tree):
    if {"step", "student", "generator"} <= tree.keys():
        tree = tree["student"]  # The two are trained together.
    if "params" not in tree:
        return {"params": tree}
    if "params" in tree["params"]:  # A train state made of whole variables.
        return tree["params"]
    state = {"step", "params", "opt_state", "model_state"}
    others = {key: value for key, value in tree.items() if key not in state}
    return {"params": tree["params"]} | others | (tree.get("model_state") or {})


@contextlib.contextmanager
def _quiet_threads():
    """Keeps what the threads of a failed read print from the screen."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except Exception:
            time.sleep(0.2)  # They find their event loop gone, and say so.
            raise


def _not_restored(path, error):
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(
        f"Checkpoint {path} cannot be restored ({reason[0][:200]}). It is damaged or "
        "of another network: delete that folder to go on from an earlier one."
    )
