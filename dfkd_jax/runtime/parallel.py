"""Devices: the only module that says pmap or mesh.

Two lifts of a pure step. `data_parallel`: the state is replicated, the batch split, and
gradients are averaged inside (teacher, student). `batch_parallel`: the state *is* the
images, split over devices, with the teacher broadcast and no communication (synthesis).

Where a run has several processes (`hosts`), each holds arrays on its own devices, and
only `data_parallel` spans them all: gradients are averaged over every device there is.
"""

import os
import pathlib
import platform
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfkd_jax.errors import ConfigError
from dfkd_jax.runtime import compiled, hosts, places, progress

AXIS = "devices"
RIGHT_SUMS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
# From which jaxlib to before which: a flag that XLA does not know ends the process.
KNOWN = ((0, 10, 2), (0, 13))
_WHOLE = PartitionSpec()


def configure(*, cpu_devices: int) -> None:
    """Divides a CPU into devices and turns on the compilation cache.

    Call it before JAX is used: the CPU backend reads the settings once. Operations of
    this size use one core well and two badly, so a device per core, each with a single
    thread, is the fastest.

    Args:
        cpu_devices: Number of CPU devices; 0 for one a core. Without effect on
            GPUs and TPUs, and where XLA_FLAGS sets the number already.

    Raises:
        ConfigError: JAX was used already, on another number of CPU devices.
    """
    sum_rightly()
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if "xla_force_host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        _divide_cpu(cpu_devices or cores)
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        compiled.keep_in(str(places.cache() / "compiled"))
    hosts.check_backend()


def _divide_cpu(count):
    if not hosts.backends_started():
        jax.config.update("jax_num_cpu_devices", count)
    elif jax.default_backend() == "cpu" and jax.local_device_count() != count:
        raise ConfigError(
            f"JAX was used already, on {jax.local_device_count()} CPU devices in place "
            f"of {count}: call configure before anything else uses JAX, or not at all."
        )


def sum_rightly() -> None:
    """Keeps XLA's CPU compiler from fusing sums wrongly; a user's own setting wins.

    In JAX 0.10.2 such fusions give wrong rows (jax-ml/jax#39103), in 0.11.0 some crash
    (#39257), and all of them are slow after a difference (#37465). Call it before JAX
    is used: XLA reads its flags once. JAX's keys of compiled programs know the flags.

    Raises:
        ConfigError: XLA_FLAGS names a file that cannot be read.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # XLA takes it for the name of a file.
        try:
            flags = " ".join(pathlib.Path(flags).read_text().split())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"XLA_FLAGS={flags} starts with no dash, so XLA reads flags from that "
                f"file, which cannot be read ({error}): set or unset XLA_FLAGS."
            ) from error
    name, _, _ = RIGHT_SUMS.partition("=")
    version = tuple(int(part) for part in re.findall(r"\d+", jaxlib.__version__)[:3])  # pyright: ignore[reportPrivateImportUsage]
    if name not in flags and KNOWN[0] <= version < KNOWN[1]:
        flags = f"{flags} {RIGHT_SUMS}"
        if hosts.backends_started() and sums_are_wrong():
            progress.warn(
                f"JAX {jax.__version__} was used before dfkd_jax and sums wrongly on "
                "this CPU. Import dfkd_jax.api before JAX is used, or set "
                f"XLA_FLAGS={RIGHT_SUMS}."
            )
    os.environ["XLA_FLAGS"] = flags.strip()


def sums_are_wrong() -> bool:
    """Whether XLA gets a sum wrong that JAX 0.10.2 is known to get wrong on CPUs."""
    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    matrix = jnp.eye(3)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    return not np.allclose(squares, rows[:, 0] ** 2, rtol=1e-4)


def device_count() -> int:
    """The number of devices over which batches are split, of all processes."""
    return jax.device_count()


def check_devices(batch_size: int, *, setting: str) -> None:
    """Makes sure that a batch can be split evenly.

    Args:
        batch_size: Examples in a step, over all devices.
        setting: What it is called, for the message.

    Raises:
        ConfigError: It cannot.
    """
    here = jax.local_device_count()
    if here * hosts.count() != device_count():
        raise ConfigError(
            f"Process {hosts.index()} of {hosts.count()} has {here} of "
            f"{device_count()} devices: give every process the same number."
        )
    if batch_size % device_count():
        processes = f" of {hosts.count()} processes" if hosts.count() > 1 else ""
        raise ConfigError(
            f"{setting}={batch_size} cannot be split over {device_count()} devices"
            f"{processes}: make it a multiple, or set config.cpu_devices on a CPU."
        )


def describe() -> dict[str, Any]:
    """What the run is on, for `results.json`."""
    return {
        "backend": jax.default_backend(),
        "device_kind": jax.local_devices()[0].device_kind,
        "num_devices": device_count(),
        "num_processes": hosts.count(),
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
    """`tree` with every leaf whole on every device of this process, put there once."""
    return jax.device_put(tree, NamedSharding(_mesh(), _WHOLE))


def split(tree: Any, *, axis: int = 0) -> Any:
    """Leaves `[batch, …]` as `[devices, batch / devices, …]`, a part on each device.

    Of several processes, each gives its own part of the batch for its own devices.

    Args:
        tree: NumPy arrays.
        axis: The one of the batch, where it is not the first.
    """
    count = jax.local_device_count()

    def parts(leaf):
        before, after = leaf.shape[:axis], leaf.shape[axis + 1 :]
        return np.moveaxis(leaf.reshape(*before, count, -1, *after), axis, 0)

    return put_split(jax.tree.map(parts, tree))


def put_split(tree: Any) -> Any:
    """Leaves `[devices, …]` with one slice of the first axis on each device."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(AXIS)))


def to_global(tree: Any, *, split: bool) -> Any:
    """The arrays of all processes as one, for checkpoints; copies nothing.

    Args:
        tree: Arrays on the devices of this process.
        split: Whether they are `[devices, …]` with a slice on each device, rather than
            whole on every device.
    """
    if hosts.count() == 1:
        return tree
    return _on(jax.devices(), tree, split)


def of_the_first(tree: Any) -> Any:
    """What process 0 has, as NumPy arrays in every process.

    Processes that compute the same need not get the same to the last bit.
    """
    if hosts.count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def to_local(tree: Any, *, split: bool) -> Any:
    """The inverse of `to_global`."""
    if hosts.count() == 1:
        return tree
    return _on(jax.local_devices(), tree, split)


def _on(devices, tree, split):
    """The same pieces of arrays, seen as arrays on `devices`."""
    spec = PartitionSpec(AXIS) if split else _WHOLE
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), spec)

    def see(leaf):
        shape = (len(devices), *leaf.shape[1:]) if split else leaf.shape
        pieces = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    return jax.tree.map(see, tree)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def data_parallel(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `step(state, constants, batch, key) -> (state, metrics)`.

    Donates `state`. Everything returned must have gone through `mean` inside the step:
    pmap would silently keep the first device's value.
    """
    return _lift(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0, None),
        out_axes=(None, None),
    )


def batch_parallel(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `step(state, constants, batch, key) -> (state, metrics)`, all per device.

    Donates `state`. Devices do not communicate; metrics come back one a device.
    """
    return _lift(step, in_axes=(0, None, 0, None), devices=jax.local_devices())


def _lift(step, **options):
    """A pmap that donates the state and leaves the key on the device.

    Where there are several processes, pmap alone takes a typed key to the host and back
    in every call.
    """

    def with_key_data(state, constants, batch, data):
        return step(state, constants, batch, jax.random.wrap_key_data(data))

    lifted = jax.pmap(with_key_data, donate_argnums=(0,), **options)
    return lambda state, constants, batch, key: lifted(
        state, constants, batch, jax.random.key_data(key)
    )


def map_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `function(constants, batch)` without state; used to start one."""
    return jax.pmap(function, in_axes=(None, 0), devices=jax.local_devices())


def mean(tree: Any) -> Any:
    """The mean over devices, inside a `data_parallel` step.

    Leaves travel as one vector, in one collective: fewer waits, and see
    `block_on_cpu`. On a CPU every device adds up the parts in the order of devices, so
    that the answer is the same to the last bit however devices are shared out over
    processes; elsewhere the hardware's own reduction is worth more.
    """
    vector, unravel = ravel_pytree(tree)
    if jax.default_backend() == "cpu":
        return unravel(jax.lax.all_gather(vector, AXIS).mean(0))
    return unravel(jax.lax.pmean(vector, AXIS))


@jax.jit
def _all_finite(leaves):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def all_finite(tree: Any) -> bool:
    """Whether arrays that are whole on every device hold neither NaN nor infinity."""
    leaves = [
        leaf.addressable_shards[0].data
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return not leaves or bool(_all_finite(leaves))


def block_on_cpu(outputs: Any) -> None:
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
