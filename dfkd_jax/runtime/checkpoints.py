"""Checkpoints of states while they are trained: the only module that says orbax."""

import contextlib
import io
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import files, hosts, parallel, workdir

SEAL = "checksums.json"  # In the folder of a checkpoint.


@contextlib.contextmanager
def open_checkpoints(
    folder: pathlib.Path, *, every_steps: int = 1, keep: int = 2
) -> Iterator[ocp.training.Checkpointer]:
    """A series of checkpoints under `folder`, at multiples of `every_steps`.

    One is also saved where processes that are to be preempted agree on it (`hosts`).
    What a killed process left half-written or without checksums is removed, since
    damage to it could not be found; the newest `keep` stay.

    Raises:
        StorageError: The folder cannot be written, the disk is full, or another program
            has left checkpoints there.
    """
    policies: Any = ocp.training
    with files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if hosts.is_primary():
            _clear(folder)
        hosts.barrier()
        checkpointer = policies.Checkpointer(
            folder.absolute(),
            save_decision_policy=policies.save_decision_policies.AnySavePolicy(
                [
                    policies.save_decision_policies.FixedIntervalPolicy(every_steps),
                    policies.save_decision_policies.PreemptionCheckpointingPolicy(),
                ]
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


def _clear(folder):
    """Removes a checkpoint that was being saved when its process was killed."""
    beginning = _beginning(folder)
    for path in folder.iterdir():
        if not path.name.isdigit() or (path / SEAL).is_file():
            continue
        if not beginning.is_file() or beginning.read_text() != path.name:
            raise StorageError(
                f"{path} was not made by this run, which keeps its checkpoints there: "
                "move it elsewhere, or choose another --workdir."
            )
        shutil.rmtree(path)


def _beginning(folder):
    """The file that says which checkpoint in `folder` is begun and has no checksums."""
    return folder.with_name(f".{folder.name}.begun")


def exist(folder: pathlib.Path) -> bool:
    """Whether there is a checkpoint for `restore_or`."""
    return any(folder.glob(f"*/{SEAL}"))


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
    state = parallel.to_global(state, split=split)
    path = pathlib.Path(checkpointer.directory) / str(step)
    if hosts.is_primary():
        with files.atomic_write(_beginning(path.parent)) as temporary:
            temporary.write_text(path.name)
    try:
        if checkpointer.save(step, state, force=force) and hosts.is_primary():
            _seal(path)
    except Exception as error:
        if number := files.storage_errno(error):
            raise StorageError(
                f"Cannot write checkpoint {path}: {files.HINTS[number]}."
            ) from error
        raise


def restore_or(
    checkpointer: ocp.training.Checkpointer, state: Any, *, split: bool = False
) -> Any:
    """The latest checkpoint in the shapes and shardings of `state`, or `state` itself.

    `split` as in `save`.

    Raises:
        CheckpointError: The checkpoint is damaged, or of another network or run.
    """
    latest = checkpointer.latest
    if latest is None:
        return state
    path = pathlib.Path(checkpointer.directory) / str(latest.step)
    problem = problem_of(path, workdir.mark(path.parents[1]))
    if problem := hosts.broadcast_from_process_0(problem):
        raise _refused(path, problem)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        parallel.to_global(state, split=split),
    )
    try:
        with _quiet_threads():
            restored = checkpointer.load(latest, abstract_state=abstract)
        return parallel.to_local(restored, split=split)
    except Exception as error:  # Orbax, TensorStore and JAX raise kinds of their own.
        raise _not_restored(path, error) from error


def load_variables(folder: pathlib.Path) -> dict[str, Any]:
    """Linen variables (NumPy) of one checkpoint, or of the latest in a series.

    Those of a train state (`params`, and `model_state` or `batch_stats`), a dictionary
    of variables, or bare parameters; or of one such thing beside others.

    Raises:
        CheckpointError: There is none, it is damaged, or it holds several.
    """
    return jax.tree.map(np.asarray, _variables(load_tree(folder), folder))


def load_tree(folder: pathlib.Path) -> Any:
    """What one checkpoint holds, or the latest in a series.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    # Orbax names a step's folder by its number, Flax with a word before it.
    numbers = [(p, p.name.removeprefix("checkpoint_")) for p in folder.glob("*")]
    steps = {p: int(number) for p, number in numbers if number.isdecimal()}
    path = max(steps, key=steps.__getitem__, default=folder)
    problem = problem_of(path)
    try:
        if not problem:
            sharding = SingleDeviceSharding(jax.local_devices()[0])
            abstract = jax.tree.map(
                lambda leaf: (
                    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                    if hasattr(leaf, "shape")
                    else leaf  # A number or text of Python.
                ),
                ocp.metadata(path.absolute()).metadata,  # pyright: ignore[reportArgumentType]
            )
            with _quiet_threads():
                tree = ocp.load(path.absolute(), abstract_state=abstract)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # As above.
        problem = _reason(error)
    if problem:
        raise CheckpointError(
            f"Checkpoint {path} cannot be restored ({problem}): name the folder of a "
            "whole checkpoint of Orbax, or of a series of them."
        )
    return tree


def _variables(tree, path):
    """What of a checkpoint are variables; nothing that holds tensors is dropped."""
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{path} holds a {type(tree).__name__}, expected a dictionary of linen's "
            'variables: save {"params": …}.'
        )
    if {"step", "student", "generator"} <= tree.keys():
        tree = tree["student"]  # The two are trained together.
    if "params" not in tree:
        inner = [k for k, v in tree.items() if isinstance(v, dict) and "params" in v]
        if not inner:
            return {"params": tree}
        if len(inner) > 1:
            raise CheckpointError(
                f"{path} holds several networks ({', '.join(inner)}): save one alone."
            )
        tree = tree[inner[0]]
    params = tree["params"]
    if isinstance(params, dict) and "params" in params:
        return params  # A train state made of whole variables.
    state = {"step", "params", "opt_state", "model_state"}
    others = {key: value for key, value in tree.items() if key not in state}
    others |= tree.get("model_state") or {}
    return {"params": params} | {k: v for k, v in others.items() if _has_floats(v)}


def _has_floats(tree):
    """Whether there are arrays of floats, unlike in counts, keys, names and scores."""
    return any(
        getattr(leaf, "ndim", 0) and jnp.issubdtype(leaf.dtype, jnp.floating)
        for leaf in jax.tree.leaves(tree)
    )


def _seal(path: pathlib.Path) -> None:
    """Syncs the files of a checkpoint and leaves their checksums beside them."""
    with files.storage_errors(path):
        sums = {}
        for file in _contents(path):
            files.sync(file)
            sums[file.relative_to(path).as_posix()] = files.sha256(file)
        content = {"run": workdir.mark(path.parents[1]), "files": sums}
        files.write_json(path / SEAL, content, sealed=True)


def problem_of(path: pathlib.Path, owner: str | None = None) -> str:
    """What is wrong with a checkpoint by its checksums; nothing if it has none.

    Those that others made have none.

    Args:
        path: Folder of the checkpoint.
        owner: Mark of the run that wants it (`workdir.mark`), if that matters.
    """
    if not (path / SEAL).is_file():
        return ""
    try:
        seal = files.read_object(path / SEAL)
        sums, run = dict(seal["files"]), str(seal["run"])
    except CheckpointError as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return f"{SEAL} is damaged"
    if owner is not None and run and run != owner:
        return "it is of another run"
    found = {file.relative_to(path).as_posix(): file for file in _contents(path)}
    for name in sorted(sums.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in sums:
            return f"{name} does not belong to it"
        try:
            if files.sha256(found[name]) != sums[name]:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def _contents(path):
    return sorted(
        file for file in path.rglob("*") if file.is_file() and file != path / SEAL
    )


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
    return _refused(path, _reason(error))


def _reason(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refused(path, reason):
    if "cannot be read" in reason:
        remedy = "Check its permissions and the disk."
    else:
        remedy = (
            "It is damaged or of another network or run: delete that folder to go on "
            "from an earlier one."
        )
    return CheckpointError(f"Checkpoint {path} cannot be restored ({reason}). {remedy}")
