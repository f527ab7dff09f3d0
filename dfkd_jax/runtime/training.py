"""The loop around a data-parallel step: checkpoints, metrics, progress, NaN."""

import math
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

# Of one call of the devices, which costs a host some time: at most so many steps, and
# so many bytes of batches where that is more than a step's.
STEPS_PER_CALL = 10
BYTES_PER_CALL = 2**25
TELLING = ("agreement", "divergence")  # Shown in place of the loss where there are.


def scan_steps(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step(state, constants, batch, key)`, repeated over the first axis of the batch.

    Returns:
        A function of the same arguments, with a batch `[steps, batch, …]` and metrics
        `[steps]`.
    """

    def steps(state, constants, batches, key):
        def one(state, batch):
            return step(state, constants, batch, key)

        return jax.lax.scan(one, state, batches)

    return steps


def train(
    step: Callable[..., Any],
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
        step: `step(state, constants, batch, key) -> (state, metrics)`, to be lifted
            by `parallel.data_parallel`; metrics are scalars, `loss` among them.
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
    call = parallel.data_parallel(scan_steps(step))
    # Logs and checkpoints fall between two calls, of any number of processes.
    own_batch = jax.tree.leaves(read(1))
    per_call = _steps_per_call(
        math.gcd(log_every, checkpoint_every, num_steps),
        bytes_per_step=sum(leaf.nbytes for leaf in own_batch) * hosts.count(),
    )

    def read_call(first):
        batches = [read(step) for step in range(first, _last(first, per_call) + 1)]
        batches = jax.tree.map(lambda *parts: np.stack(parts), *batches)
        return parallel.split(batches, axis=1)

    with (
        stopping.deferred(),
        writers.open_writer(workdir / "metrics.jsonl", stage=stage) as writer,
        checkpoints.open_checkpoints(folder, every_steps=checkpoint_every) as saved,
    ):
        state = checkpoints.restore_or(saved, state)
        done = int(state.step)
        if done >= num_steps:
            return state
        if done:
            progress.say(f"  {stage}: going on at step {done:,} of {num_steps:,}")
        later = range(_last(done + 1, per_call) + 1, num_steps + 1, per_call)
        calls = [done + 1, *later]
        batches = feed.read_ahead(read_call, calls)
        with progress.track(
            stage,
            total=num_steps,
            done=done,
            unit="steps",
            images=len(own_batch[0]) * hosts.count(),
        ) as update:
            start = time.monotonic()
            for first, batch in zip(calls, batches, strict=True):
                with jax.transfer_guard("disallow"):
                    state, metrics = call(state, constants, batch, key)
                parallel.block_on_cpu(metrics)
                done = _last(first, per_call)
                last = done == num_steps
                # Asked about every step: processes agree on one that none has passed.
                stop = any([hosts.must_stop(n) for n in range(first, done + 1)])
                log = last or done % log_every == 0
                save = last or stop or done % checkpoint_every == 0
                if not (log or save):
                    continue
                metrics = {name: np.asarray(each) for name, each in metrics.items()}
                if culprits := _not_finite(metrics, state):
                    raise NonFiniteError(
                        f"{stage.capitalize()}: NaN or infinity in "
                        f"{', '.join(culprits)} by "
                        f"step {done}. The last good checkpoint is kept in {folder}. "
                        f"Lower {learning_rate_key}, in a new --workdir."
                    )
                scalars = {name: float(each[-1]) for name, each in metrics.items()}
                if log:
                    writer.write_scalars(done, scalars)
                    update(done, **_worth_showing(scalars))
                if save:
                    checkpoints.save(saved, done, state, force=last or stop)
                    stopwatch.add(stage, time.monotonic() - start)
                    start = time.monotonic()
                if stop:
                    stopping.leave()
    return state


def _worth_showing(scalars):
    """What tells people most: a loss may stay large however good a network gets."""
    told = {name: scalars[name] for name in TELLING if name in scalars}
    return told or {"loss": scalars["loss"]}


def _steps_per_call(whole, *, bytes_per_step):
    """The largest number of steps that divides `whole` and keeps to both limits."""
    most = min(STEPS_PER_CALL, max(1, BYTES_PER_CALL // max(1, bytes_per_step)))
    return max(n for n in range(1, most + 1) if whole % n == 0)


def _last(first, per_call):
    """The last step of a call: the next multiple of `per_call`, wherever it starts."""
    return -(-first // per_call) * per_call


def _not_finite(metrics, state):
    """Names of what is NaN or infinite."""
    found = [name for name, each in metrics.items() if not np.isfinite(each).all()]
    if not found:
        for name in ("params", "model_state"):
            if not parallel.all_finite(getattr(state, name, {})):
                found.append(name)
    return found
