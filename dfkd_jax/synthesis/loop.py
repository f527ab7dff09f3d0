"""Makes the transfer set: a batch on every device at a time, a shard a batch.

Of several processes each makes the batches of its own devices; they meet for
checkpoints and at the end.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from dfkd_jax.config import SynthesisConfig
from dfkd_jax.errors import CheckpointError, NonFiniteError
from dfkd_jax.models.network import Network
from dfkd_jax.runtime import (
    checkpoints,
    hosts,
    parallel,
    progress,
    rng,
    stopping,
    writers,
)
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.sources import shapes
from dfkd_jax.synthesis import parameterization as parameterizations
from dfkd_jax.synthesis import step as steps
from dfkd_jax.synthesis.transfer_set import TransferSet


def make_parameterization(
    config: SynthesisConfig, description: Description
) -> parameterizations.Parameterization:
    """The parameterization of a network's images that `config` asks for."""
    result = parameterizations.grids(
        description.image_shape,
        factors=config.grid_factors,
        init_scale=config.init_scale,
        init="normal" if config.init == "shapes" else config.init,
    )
    if config.pixel_bounds == "sigmoid":
        return parameterizations.bounded(result, normalize=description.normalize)
    if config.pixel_bounds == "rescale":
        return parameterizations.rescaled(result, normalize=description.normalize)
    return result


def synthesize(
    config: SynthesisConfig,
    *,
    teacher: Network,
    feature_layer: str,
    draw_labels: Callable[[Any], Any],
    transfer_set: TransferSet,
    seed: int,
    workdir: pathlib.Path,
    stopwatch: writers.Stopwatch,
) -> None:
    """Makes every shard that `transfer_set` misses.

    Image i depends on (teacher, settings, seed, i) alone: neither on the number of
    devices nor on when the run was interrupted. Asked to stop, it finishes the call of
    the devices, saves the batch under way and raises StopRequested.

    Args:
        config: Settings of synthesis.
        teacher: Whose images are made.
        feature_layer: Whose responses the activation loss looks at.
        draw_labels: Keys `[batch]` to soft labels `[batch, classes]`.
        transfer_set: Where shards go.
        seed: Root of all keys.
        workdir: For checkpoints of a batch under way.
        stopwatch: Gets the seconds of finished rounds.

    Raises:
        NonFiniteError: A soft label, a loss or an image became NaN or infinite.
        StorageError: A shard or checkpoint cannot be written.
    """
    manifest = transfer_set.manifest
    programs = _programs(
        config,
        teacher=teacher,
        feature_layer=feature_layer,
        draw_labels=draw_labels,
        manifest=manifest,
        seed=seed,
    )
    missing = transfer_set.missing()
    devices = parallel.device_count()
    rounds = [
        missing[first : first + devices] for first in range(0, len(missing), devices)
    ]
    left = len(missing)
    with (
        stopping.deferred(),
        writers.open_writer(workdir / "metrics.jsonl", stage="synthesis") as writer,
        checkpoints.open_checkpoints(workdir / "synthesis", keep=1) as checkpointer,
        progress.track(
            "synthesis",
            total=manifest.num_images,
            done=len(transfer_set),
            unit="images",
        ) as update,
    ):
        work = _Rounds(config, programs, manifest, checkpointer)
        for shards in rounds:
            start = time.monotonic()
            # Where fewer shards than devices are left, the rest repeats the last one.
            padded = shards + shards[-1:] * (devices - len(shards))
            images, labels, metrics, stop = work.make(padded)
            for place, position in enumerate(hosts.process_slice(range(devices))):
                if position < len(shards):
                    transfer_set.add(shards[position], images[place], labels[place])
            scalars = {name: value[:, -1].mean() for name, value in metrics.items()}
            left -= len(shards)
            made = manifest.num_images - left * manifest.shard_size
            writer.write_scalars(made, scalars)
            if 0 in shards and metrics:
                _write_steps(workdir, config.num_steps, metrics)
            stopwatch.add("synthesis", time.monotonic() - start)
            shown = [name for name in ("cross_entropy",) if name in scalars]
            update(made, **{name: scalars[name] for name in shown})
            if stop:
                stopping.leave()
    transfer_set.refresh()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Programs:
    """What the devices run, each on a shard of its own, and what they all hold.

    Attributes:
        draw: `(key, index) -> soft labels`.
        init: `((teacher, key), (index, labels)) -> state`.
        step: `(state, teacher, labels, key) -> (state, metrics)`, of several steps.
        render: `(key, params) -> images`.
        key: Root of all keys, on every device.
        teacher: On every device.
    """

    draw: Callable[..., Any]
    init: Callable[..., Any]
    step: Callable[..., Any]
    render: Callable[..., Any]
    key: Any
    teacher: Any


def make_step(config: SynthesisConfig, **others: Any) -> Callable[..., Any]:
    """`step.make_step` with the settings of `config`, and what these do not say."""
    return steps.make_step(
        temperature=config.temperature,
        activation_weight=config.activation_weight,
        total_variation=config.total_variation,
        l2=config.l2,
        batch_norm=config.batch_norm,
        batch_norm_distance=config.batch_norm_distance,
        max_shift=config.max_shift,
        flip=config.flip,
        **others,
    )


def _programs(config, *, teacher, feature_layer, draw_labels, manifest, seed):
    parameterization = make_parameterization(config, teacher.description)
    optimizer = optax.adam(config.learning_rate)
    draw_images = None
    if config.init == "shapes":
        draw_images = functools.partial(
            shapes.draw, image_shape=tuple(manifest.image_shape)
        )
    init = steps.make_init(
        parameterization=parameterization,
        optimizer=optimizer,
        draw=draw_images,
        temperature=config.temperature,
    )
    step = make_step(
        config,
        feature_layer=feature_layer,
        parameterization=parameterization,
        optimizer=optimizer,
        num_steps=config.steps_per_call,
    )
    root = rng.stream(jax.random.key(seed), "synthesis")
    key, teacher = parallel.replicate((root, teacher))
    return _Programs(
        draw=parallel.map_devices(
            lambda key, index: draw_labels(
                rng.per_example(rng.stream(key, "labels"), index)
            )
        ),
        init=parallel.map_devices(init),
        step=parallel.batch_parallel(step),
        render=parallel.map_devices(lambda _, params: parameterization.render(params)),
        key=key,
        teacher=teacher,
    )


class _Rounds:
    """Makes rounds, a shard a device, from the one under way when a run ended on."""

    def __init__(self, config, programs, manifest, checkpointer):
        self._config = config
        self._programs = programs
        self._manifest = manifest
        self._checkpointer = checkpointer
        self._cadence = _Cadence(config.checkpoint_seconds)
        latest = checkpointer.latest
        self._calls = itertools.count(latest.step + 1 if latest else 1)

    def make(self, shards):
        """Images, soft labels and metrics of one shard a device of this process.

        Metrics are `[devices, steps]`, of the steps that were made here; there are none
        where images are left as they start. Last, whether to stop when they are kept.
        """
        run, num_steps = self._programs, self._config.num_steps
        size = self._manifest.shard_size
        first_index = np.asarray(hosts.process_slice(shards))[:, None] * size
        index = parallel.put_split(first_index + np.arange(size))
        labels = run.draw(run.key, index)
        drawn = np.asarray(labels)
        if not np.isfinite(drawn).all():
            raise _non_finite(shards, 0, "a soft label")
        started = run.init((run.teacher, run.key), (index, labels))
        state = _resume(self._checkpointer, shards, started)
        begun = int(np.asarray(state.step)[0])
        history = []
        # Without steps, a stop can only be asked about here.
        done, stop = begun, not num_steps and hosts.must_stop(next(self._calls))
        for done in range(begun, num_steps, self._config.steps_per_call):
            since = time.monotonic()
            with jax.transfer_guard("disallow"):
                state, metrics = run.step(state, run.teacher, labels, run.key)
            done += self._config.steps_per_call
            history.append(metrics)
            # With more calls waiting than one, a stop would have to wait for them.
            jax.block_until_ready(history[-2:-1])
            due = self._cadence.due(len(history), metrics, since)
            stop = hosts.must_stop(call := next(self._calls))
            if (due or stop) and done < num_steps:
                _fetch(history, shards, begun)
                _save(self._checkpointer, call, shards, state)
            if stop:
                break
        if done < num_steps:
            stopping.leave()
        metrics = _fetch(history, shards, begun)
        images = np.asarray(run.render(run.key, state.params))
        if not np.isfinite(images).all():
            raise _non_finite(shards, num_steps, "an image")
        return images, drawn, metrics, stop


class _Cadence:
    """After how many calls of the devices a checkpoint is due.

    Measured once, by process 0, on the first call after the one that compiles: a clock
    in every call would keep the devices waiting, and processes save together.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._calls = 0

    def due(self, call: int, metrics: Any, started: float) -> bool:
        """Whether to save after the `call`th call of a round, begun at `started`."""
        if not self._calls and call > 1:
            jax.block_until_ready(metrics)
            fitting = math.ceil(self._seconds / (time.monotonic() - started))
            self._calls = hosts.broadcast_from_process_0(max(1, fitting))
        elif not self._calls:
            jax.block_until_ready(metrics)
        return self._calls > 0 and call % self._calls == 0


def _fetch(history, shards, begun):
    """Metrics `[devices, steps]` of the calls so far, which must be finite."""
    if not history:
        return {}
    history[:] = [jax.tree.map(np.asarray, metrics) for metrics in history]
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *history)
    finite = np.isfinite(metrics["loss"]).all(axis=0)
    if not finite.all():
        raise _non_finite(shards, begun + int(np.argmin(finite)) + 1, "the loss")
    return metrics


def _write_steps(workdir, num_steps, metrics):
    """How the first batch came about, optimizer step by optimizer step."""
    with writers.open_writer(
        workdir / "metrics.jsonl", stage="synthesis, first batch"
    ) as writer:
        made = len(metrics["loss"][0])
        for place in range(made):
            writer.write_scalars(
                num_steps - made + place + 1,
                {name: value[:, place].mean() for name, value in metrics.items()},
            )


def _save(checkpointer, number, shards, state):
    checkpoints.save(
        checkpointer,
        number,
        {"shards": _on_every_device(shards), "images": state},
        split=True,
    )


def _on_every_device(shards):
    """All shards of a round, `[devices, shards]`: processes must agree on a resume."""
    devices = len(hosts.process_slice(shards))
    return parallel.put_split(np.tile(np.asarray(shards), (devices, 1)))


def _resume(checkpointer, shards, state):
    """The checkpoint of a batch under way, if there is one of these very shards."""
    if checkpointer.latest is None:
        return state
    try:
        restored = checkpoints.restore_or(
            checkpointer,
            {"shards": _on_every_device(shards), "images": state},
            split=True,
        )
    except CheckpointError:
        return state  # Of another number of devices; only this batch's steps are lost.
    if (np.asarray(restored["shards"]) == shards).all():
        step = int(np.asarray(restored["images"].step)[0])
        progress.say(f"  synthesis: going on at step {step:,} of the batch under way")
        return restored["images"]
    return state


def _non_finite(shards, step, culprit):
    return NonFiniteError(
        f"Synthesis: {culprit} became NaN or infinite at step {step} of shards "
        f"{sorted(set(shards))}. Finished shards are kept. Lower "
        "config.synthesis.learning_rate or config.targets.sigma, in a new --workdir; "
        "if that does not help, the teacher's weights are at fault."
    )
