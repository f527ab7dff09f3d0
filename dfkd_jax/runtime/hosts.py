"""The processes of one run: how they meet, wait for each other, and end together.

A run is one process unless `join` finds more: those that the flags name, or those of a
cluster that JAX knows (Slurm, Open MPI, Kubernetes, TPU pods). All of them run the same
program on the same work directory; process 0 alone prints and writes results.

When a process dies, JAX ends the others from a thread of its own, with a page of native
output and no way to catch it. So each process of several is two: `join` forks, the
child goes on and does the work, and the parent, which never imports JAX's backends,
holds back that output and says in one line who died.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from dfkd_jax.errors import ConfigError, DfkdError, ProcessError, StorageError, shown
from dfkd_jax.runtime import progress, stopping

T = TypeVar("T", bound=Any)

JOIN_SECONDS = 300  # To wait for processes that a cluster starts one after another.
SILENT_SECONDS = 20  # After which a process that says nothing counts as dead.
LEAVE_MILLISECONDS = 3_000  # For the others to be done with saving, too.
WAIT_MILLISECONDS = 7 * 24 * 3_600_000  # Whoever is waited for is alive: see above.

_index = 0
_count = 1
_client: Any = None
_order = itertools.count()  # Of barriers and answers: the same in every process.


def index() -> int:
    """This process's place, from 0."""
    return _index


def count() -> int:
    """The number of processes of the run."""
    return _count


def is_primary() -> bool:
    """Whether this is the process that prints and writes results."""
    return _index == 0


def backends_started() -> bool:
    """Whether JAX has been used, so that its flags and devices can change no more."""
    from jax._src import xla_bridge  # Every public way starts them.

    return xla_bridge.backends_are_initialized()


def process_slice(sequence: T) -> T:
    """This process's equal share of what all processes see alike."""
    size = len(sequence) // _count
    return sequence[_index * size : (_index + 1) * size]


def barrier() -> None:
    """Waits until every process is here. All must call it, in the same order."""
    if _count > 1:
        _client.wait_at_barrier(f"dfkd_jax/{next(_order)}", WAIT_MILLISECONDS)


def broadcast_from_process_0(value: Any) -> Any:
    """What process 0 gives as `value` (JSON), in every process. Order as `barrier`."""
    if _count == 1:
        return value
    key = f"dfkd_jax/{next(_order)}"
    if is_primary():
        _client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client.blocking_key_value_get(key, WAIT_MILLISECONDS))


def must_stop(step: int) -> bool:
    """Whether to save and leave now: SIGINT, SIGTERM or a notice of preemption came.

    Of several processes all get the same answer at the same step: JAX tells the others
    and agrees with them on the first step that none has passed.

    Args:
        step: Counts the calls; the same in every process.
    """
    if _count == 1:
        return stopping.wanted()
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def join(
    *, coordinator: str, num_processes: int | None, process_id: int | None, detect: bool
) -> None:
    """Meets the other processes of the run; call it before JAX is used.

    Args:
        coordinator: "host:port" of process 0, or empty.
        num_processes: How many there are; given with `coordinator`.
        process_id: Which of them this is; given with `coordinator`.
        detect: Whether to ask JAX, where no coordinator is named, for a cluster that
            started this process with others.

    Raises:
        ConfigError: The flags are incomplete or impossible.
        ProcessError: The processes did not meet.
    """
    found = named(coordinator, num_processes, process_id)
    if found is None and detect:
        found = _detected()
    if found is None or found[1] < 2:
        stopping.watch()
        return
    address, number, place, local_device_ids = found
    _supervise(place, number)

    import jax
    from jax._src import distributed  # No public way to a barrier without devices.

    if place:
        progress.mute()
    progress.say(f"Waiting for {number} processes at {address}")
    try:
        jax.distributed.initialize(
            address,
            number,
            place,
            local_device_ids=local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=SILENT_SECONDS,
        )
    except RuntimeError as error:  # JAX's own kinds derive from it.
        raise ProcessError(
            f"Process {place} of {number} could not join the others at {address} "
            f"({_first_line(error)}). Start all processes, with the same --coordinator "
            "and --num_processes, on machines that reach each other, on a free port."
        ) from error
    global _index, _count, _client
    _index, _count, _client = place, number, distributed.global_state.client


def named(
    coordinator: str, num_processes: int | None, process_id: int | None
) -> tuple[Any, ...] | None:
    """Coordinator, number, place and devices as the flags say, or None without any.

    Raises:
        ConfigError: The flags are incomplete or impossible.
    """
    flags = {
        "--coordinator": coordinator or None,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if num_processes is not None and num_processes < 1:
        raise ConfigError(
            f"--num_processes={num_processes}: must be at least 1; leave it out for a "
            "run of one process."
        )
    missing = [flag for flag, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return None
    if missing or num_processes is None or process_id is None:
        raise ConfigError(
            f"{', '.join(flags)} belong together: give {' and '.join(missing)}, too, "
            "or none of them."
        )
    host, _, port = coordinator.rpartition(":")
    if not re.fullmatch(r"[^\s/]+", host) or not (
        re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16
    ):
        raise ConfigError(
            f"--coordinator={shown(coordinator)}: must be host:port of process 0, with "
            "a port from 1 to 65535."
        )
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id}: must be from 0 to {num_processes - 1}, below "
            f"--num_processes={num_processes}."
        )
    return coordinator, num_processes, process_id, None


def check_backend() -> None:
    """Raises ConfigError where JAX has not the devices that JAX_PLATFORMS asks for."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = f" ({_first_line(error)})"
        if not asked:
            raise ConfigError(f"JAX cannot use its devices{reason}.") from error
        raise ConfigError(
            f"JAX_PLATFORMS={asked}: JAX has no such devices here{reason}. Set "
            "JAX_PLATFORMS=cpu or unset it; GPUs and TPUs need the extra gpu or tpu."
        ) from error


def _detected() -> tuple[Any, ...] | None:
    """Coordinator, number, place and devices as JAX finds them, or None."""
    from jax._src.clusters import ClusterEnv

    try:
        with warnings.catch_warnings():
            # That a pod lacks the package `kubernetes` matters in indexed jobs alone.
            warnings.simplefilter("ignore", UserWarning)
            found = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, JOIN_SECONDS
            )
    except Exception as error:  # Of a cluster's interface, whatever it raises.
        in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
        if in_pod and "JOB_COMPLETION_INDEX" not in os.environ:
            return None  # A notebook, say.
        raise ConfigError(
            f"JAX sees a cluster but not its processes ({_first_line(error)}): give "
            "--coordinator, --num_processes and --process_id, or --distributed=off."
        ) from error
    return found if None not in found[:3] else None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def leave(status: int) -> None:
    """Ends this process where it failed; the others notice and end too.

    JAX would wait for the others at the exit, which wait for this one. Returns where
    the process is alone or has not failed.
    """
    if _count > 1 and status not in (0, 3):
        if status == ConfigError.exit_status or status > 128:
            # It concerns all of them; whoever is first to go takes the others along.
            with contextlib.suppress(Exception):
                _client.wait_at_barrier("dfkd_jax/stopped", LEAVE_MILLISECONDS)
            time.sleep(0.5 * is_primary())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around a run: waits for the verdict where another process may have died.

    A collective, a barrier or a checkpoint with a dead process can fail, with any kind
    of error, before JAX knows that it is dead. An error that this process has by itself
    passes at once.
    """
    try:
        yield
    except Exception as error:
        if _count == 1:
            raise
        if not _by_itself(error):
            time.sleep(SILENT_SECONDS + 20)  # JAX ends this process meanwhile.
        if isinstance(error, DfkdError):
            raise
        traceback.print_exc()
        leave(1)


def _by_itself(error):
    """Whether an error has nothing to do with other processes."""
    cause = error.__cause__
    own = cause is None or isinstance(cause, DfkdError | OSError)
    return isinstance(error, StorageError) or (isinstance(error, DfkdError) and own)


# The parent -----------------------------------------------------------------------

_COORDINATION = re.compile(rb"[IWEF]\d{4} [\d:.]+ .*\b(coordination|client\.h)")
# Threads of Gloo say this at once, each piece by piece, so lines mix.
_GLOO = re.compile(
    rb"(\[Gloo\] Rank|is connected to|peer ranks\.|"
    rb"Expected number of connected peer ranks is :|\d|\s)*"
)


def _supervise(place: int, number: int) -> None:
    """Returns in a child; the parent waits for it and ends as it does."""
    sys.stdout.flush()
    sys.stderr.flush()
    alive_read, alive_write = os.pipe()  # Closed by the system when the parent dies.
    native_read, native_write = os.pipe()
    child = os.fork()
    if child:
        os.close(alive_read)
        os.close(native_write)
        _watch(child, native_read, place, number)
    os.close(alive_write)
    os.close(native_read)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent passes it on.
    # Python prints where it did; native code, JAX's above all, to the parent.
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(native_write, 1)
    os.dup2(native_write, 2)
    os.close(native_write)

    def end_with_parent():
        os.read(alive_read, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _watch(child: int, native: int, place: int, number: int) -> NoReturn:
    """Passes on native output, but for what `_verdict` says better; then exits."""
    asked = _pass_on_signals(child)
    held: list[bytes] = []
    with os.fdopen(native, "rb") as lines:
        for line in lines:
            if held or _COORDINATION.match(line):
                held.append(line)
            elif not _GLOO.fullmatch(line):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0 and asked:
        print(stopping.DROPPED, file=sys.stderr)
        sys.stderr.flush()
        status = 128 + asked[0]
    elif status < 0:
        told = b"".join(held).decode(errors="replace")
        print(f"ERROR: {_verdict(status, told, place, number)}", file=sys.stderr)
        sys.stderr.flush()
        status = 1
    os._exit(status)


def _pass_on_signals(child: int) -> list[int]:
    """Tells the child to stop, and sees to it that it does; what came so far.

    In the child JAX answers SIGTERM: it has all processes save at the same step.
    """
    asked: list[int] = []

    def ask(number, frame):
        del frame
        os.kill(child, signal.SIGKILL if asked else signal.SIGTERM)
        asked.append(number)
        signal.setitimer(signal.ITIMER_REAL, stopping.GRACE_SECONDS)

    for number in stopping.SIGNALS:
        signal.signal(number, ask)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    return asked


def _verdict(status: int, told: str, place: int, number: int) -> str:
    """Why a process ended by a signal did.

    Args:
        status: Minus the signal.
        told: What JAX's coordination service last said.
        place: Of the process that ended.
        number: Of processes.
    """
    goes_on = "Give the same commands again to go on from what is finished."
    silent = re.search(r"stopped sending heartbeats\):([\d\s,]+)", told)
    if silent:
        dead = sorted({int(number) for number in re.findall(r"\d+", silent[1])})
    elif "Failed to send RPC to coordination service" in told:
        dead = [0]
    else:
        name = signal.Signals(-status).name
        memory = "; the memory may be full" if name == "SIGKILL" else ""
        return f"Process {place} of {number} was ended by {name}{memory}. {goes_on}" + (
            f"\n{told}" if told else ""
        )
    names = " and ".join(str(process) for process in dead)
    return (
        f"Process {names} of {number} stopped answering: it failed, was killed, or its "
        f"machine cannot be reached; what it printed says more. Process {place} stops "
        f"too. {goes_on}"
    )
