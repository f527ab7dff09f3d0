"""The loop around a data-parallel step: checkpoints, metrics, progress, NaN."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dfkd_jax.errors import NonFiniteError
from dfkd_jax.runtime import (
    checkpoints,
    feed,
    hosts,
    parallel,
    progress,
    stopping,
    writers,
)


def train(
    step_fn: Callable[..., Any],
    *,
    state: Any,
    constants: Any,
    key: Any,
    read: Callable[[int], Any],
    num_steps: int,
    log_every: int,
    checkpoint_every: int,
    stage: str,
    learning_rate_key: str,
    folder: pathlib.Path,
    workdir: pathlib.Path,
    stopwatch: writers.Stopwatch,
) -> Any:
    """Runs steps 1 to `num_steps`, from the latest checkpoint on; the last state.

    Asked to stop, it finishes the step, saves and raises StopRequested.

    Args:
        step_fn: `step(state, constants, batch, key) -> (state, metrics)`,
            data-parallel; metrics are scalars, `loss` among them.
        state: What to start from without a checkpoint; has an int32 `step`.
        constants: What the step reads besides.
        key: Root of the step's randomness; the same in every step.
        read: The batch of a step, `[batch, …]` NumPy arrays.
        num_steps: The last step; it always logs and saves.
        log_every: Steps between two records of metrics.
        checkpoint_every: Steps between two checkpoints.
        stage: Name in metrics, progress and timings.
        learning_rate_key: The setting to lower where numbers go wrong.
        folder: For checkpoints.
        workdir: For `metrics.jsonl`.
        stopwatch: Gets the seconds of checkpointed steps.

    Raises:
        NonFiniteError: A metric or a parameter became NaN or infinite.
        CheckpointError: A checkpoint cannot be restored.
        StorageError: A checkpoint or a record cannot be written.
    """
    state, constants, key = parallel.replicate((state, constants, key))
    with (
        stopping.deferred(),
        writers.open_writer(workdir / "metrics.jsonl", stage=stage) as writer,
        checkpoints.open_checkpoints(folder, every_steps=checkpoint_every) as saved,
    ):
        state = checkpoints.restore_or(saved, state)
        done = int(state.step)
        if done >= num_steps:
            return state
        batches = feed.read_ahead(read, range(done + 1, num_steps + 1))
        with progress.track(stage, total=num_steps, done=done, unit="steps") as update:
            start = time.monotonic()
            for step, batch in enumerate(batches, done + 1):
                batch = parallel.split(batch)
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, constants, batch, key)
                parallel.settle(metrics)
                last = step == num_steps
                stop = hosts.must_stop(step)
                log = last or step % log_every == 0
                save = last or stop or step % checkpoint_every == 0
                if not (log or save):
                    continue
                scalars = {name: float(value) for name, value in metrics.items()}
                if culprits := _not_finite(scalars, state):
                    raise NonFiniteError(
                        f"{stage.capitalize()}: NaN or infinity in "
                        f"{', '.join(culprits)} by "
                        f"step {step}. The last good checkpoint is kept in {folder}. "
                        f"Lower {learning_rate_key}, in a new --workdir."
                    )
                if log:
                    writer.write_scalars(step, scalars)
                    update(step, loss=scalars["loss"])
                if save:
                    # Orbax's own policy saves where processes were told to stop.
                    force = last or stopping.wanted()
                    checkpoints.save(saved, step, state, force=force)
                    stopwatch.add(stage, time.monotonic() - start)
                    start = time.monotonic()
                if stop:
                    stopping.leave()
    return state


def _not_finite(scalars, state):
    """Names of what is NaN or infinite."""
    found = [name for name, value in scalars.items() if not np.isfinite(value)]
    if not found:
        for name in ("params", "model_state"):
            if not parallel.all_finite(getattr(state, name, {})):
                found.append(name)
    return found
