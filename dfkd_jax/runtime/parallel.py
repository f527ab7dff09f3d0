"""Devices: the only module that says pmap, mesh or process.

Two lifts of a pure step. `data_parallel`: the state is replicated, the batch split, and
gradients are averaged inside (teacher, student). `batch_parallel`: the state *is* the
images, split over devices, with the teacher broadcast and no communication (synthesis).
"""

import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def configure(*, cpu_devices: int) -> None:
    """Divides a CPU into devices and turns on the compilation cache.

    Call it before JAX is used: the CPU backend reads the settings once. Operations of
    this size use one core well and two badly, so a device per core, each with a single
    thread, is the fastest.

    Args:
        cpu_devices: Number of CPU devices; 0 for one a core. Without effect on
            GPUs and TPUs, and where XLA_FLAGS sets the number already.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in xla_flags:
        os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_cpu_multi_thread_eigen=false"
    if "xla_force_host_platform_device_count" not in xla_flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        jax.config.update("jax_num_cpu_devices", cpu_devices or cores)
    if jax.config.jax_compilation_cache_dir is None:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update(
            "jax_compilation_cache_dir", os.path.join(root, "dfkd_jax", "compiled")
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def device_count() -> int:
    """The number of devices over which batches are split."""
    return jax.local_device_count()


def describe() -> dict[str, Any]:
    """What the run is on, for `results.json`."""
    return {
        "backend": jax.default_backend(),
        "device_kind": jax.local_devices()[0].device_kind,
        "num_devices": device_count(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":", 1)[1].strip() for line in file if "model name" in line
            )
    except (OSError, StopIteration):
        return platform.processor()


def replicate(tree: Any) -> Any:
    """`tree` with every leaf whole on every device, put there once."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def split(tree: Any) -> Any:
    """Leaves `[batch, …]` as `[devices, batch / devices, …]`, a part on each device."""
    return put_split(
        jax.tree.map(
            lambda leaf: np.reshape(leaf, (device_count(), -1, *leaf.shape[1:])), tree
        )
    )


def put_split(tree: Any) -> Any:
    """Leaves `[devices, …]` with one slice of the first axis on each device."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(AXIS)))


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def data_parallel(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `step(state, constants, batch, key) -> (state, metrics)`.

    Donates `state`. Everything returned must have gone through `mean` inside the step:
    pmap would silently keep the first device's value.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0, None),
        out_axes=(None, None),
        donate_argnums=(0,),
    )


def batch_parallel(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `step(state, constants, batch, key) -> (state, metrics)`, all per device.

    Donates `state`. Devices do not communicate; metrics come back one a device.
    """
    return jax.pmap(step, in_axes=(0, None, 0, None), donate_argnums=(0,))


def map_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `function(constants, batch)` without state; used to start one."""
    return jax.pmap(function, in_axes=(None, 0))


def mean(tree: Any) -> Any:
    """The mean over devices, inside a `data_parallel` step.

    Leaves travel as one vector, in one collective: fewer waits, and see `settle`.
    """
    vector, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(vector, AXIS))


def settle(outputs: Any) -> None:
    """Waits for a step with communication, on a CPU only.

    XLA runs CPU devices on a pool of as many threads. A later step of one device that
    is queued already can take the thread that an earlier step of another device needs
    to join an all-reduce, and both wait for ever. GPUs and TPUs queue in order.
    """
    if jax.default_backend() == "cpu":
        jax.block_until_ready(outputs)


def global_index(per_device: int) -> Any:
    """Places of this device's examples in the whole batch, inside a lifted step."""
    return jax.lax.axis_index(AXIS) * per_device + jax.numpy.arange(per_device)
