"""One process by itself; several are in `system/test_hosts.py`."""

import contextlib
import subprocess
import sys

import jax
import pytest

from dfkd_jax.errors import CheckpointError, ConfigError, DfkdError, StorageError
from dfkd_jax.runtime import hosts


def test_each_process_has_an_equal_part(monkeypatch):
    monkeypatch.setattr(hosts, "_count", 3)
    parts = []
    for place in range(3):
        monkeypatch.setattr(hosts, "_index", place)
        parts += hosts.process_slice("abcdef")
    assert "".join(parts) == "abcdef"


def test_errors_of_a_process_alone_pass_at_once():
    hosts.leave(1)  # The caller ends it.
    for error in (CheckpointError("damaged"), RuntimeError("of JAX")):
        with pytest.raises(type(error), match=str(error)), hosts.ending_together():
            raise error


@pytest.mark.parametrize(
    ("error", "cause", "waits"),
    [
        (ValueError("Gloo AllGather failed"), None, True),
        (CheckpointError("not restored"), ValueError("Gloo AllGather failed"), True),
        (CheckpointError("not restored"), RuntimeError("of JAX"), True),
        (StorageError("full"), ValueError("No space left on device"), False),
        (StorageError("full"), OSError(28, "No space left on device"), False),
        (ConfigError("no such setting"), None, False),
    ],
)
def test_of_several_who_fails_with_others_waits_for_the_verdict(
    monkeypatch, error, cause, waits
):
    """A process that died is named by JAX, later than calls with it fail."""
    waited, left = [], []
    monkeypatch.setattr(hosts, "_count", 2)
    monkeypatch.setattr(hosts.time, "sleep", waited.append)
    monkeypatch.setattr(hosts, "leave", left.append)
    with contextlib.suppress(DfkdError), hosts.ending_together():
        raise error from cause
    assert bool(waited) == waits
    assert left == ([] if isinstance(error, DfkdError) else [1])


def test_a_cluster_that_says_nonsense_is_named_with_the_remedy(monkeypatch):
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NTASKS": "many",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"many.*--distributed=off"):
        hosts._detected()
    # In a pod that is no indexed job, such as a notebook's, that is no matter.
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    assert hosts._detected() is None


def test_errors_without_words_are_told_by_their_kind():
    assert hosts._first_line(RuntimeError("first\nsecond")) == "first"
    assert hosts._first_line(RuntimeError()) == "RuntimeError"


def test_of_native_output_the_parent_drops_only_greetings():
    rank, ready = "[Gloo] Rank 12", " is connected to 3 peer ranks. "
    expected = "Expected number of connected peer ranks is : 3"
    # As threads print it, one by one and at once.
    greetings = [
        rank + ready + expected,
        "[Gloo] Rank " + rank + ready + ready,
        "3 peer ranks. " + expected + expected,
        "",
        "3",
    ]
    other = ["3 peer ranks. do not answer", "[Gloo] Rank 1 failed"]
    told = "".join(line + "\n" for line in greetings + other)
    program = f"""
import os
from dfkd_jax.runtime import hosts
hosts._supervise(1, 2)
os.write(1, {told.encode()!r})
os._exit(7)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 7
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == other


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        (("", 0, None), "--num_processes=0: must be at least 1"),
        (("h:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("h:1", -3, 0), "--num_processes=-3"),
        (("", None, 0), "give --coordinator and --num_processes, too"),
        (("h:1", 2, 2), "--process_id=2: must be from 0 to 1"),
        (("h:1", 2, -1), "--process_id=-1: must be from 0 to 1"),
        (("h:0", 2, 0), "a port from 1 to 65535"),
        (("h:65536", 2, 0), "a port from 1 to 65535"),
        (("h:1\n", 2, 0), "must be host:port"),
        ((":1", 2, 0), "must be host:port"),
        (("h", 2, 0), "must be host:port"),
        (("http://h:1", 2, 0), "must be host:port"),
        (("x" * 9_000, 2, 0), "x…: must be host:port"),
    ],
)
def test_flags_that_cannot_be(flags, phrase):
    with pytest.raises(ConfigError) as error:
        hosts.named(*flags)
    assert phrase in str(error.value)
    assert len(str(error.value)) < 300


def test_flags_that_can_be():
    assert hosts.named("", None, None) is None
    assert hosts.named("[::1]:65535", 1, 0) == ("[::1]:65535", 1, 0, None)


@pytest.mark.parametrize(
    ("asked", "raised"),
    [
        ("cuda", AssertionError()),
        ("gpus", RuntimeError("Unable to initialize backend 'gpus': …\nmore")),
        ("", RuntimeError("no devices")),
    ],
)
def test_a_backend_that_is_not_there(monkeypatch, asked, raised):
    def devices():
        raise raised

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    phrase = f"JAX_PLATFORMS={asked}: JAX has no such" if asked else "JAX cannot use"
    with pytest.raises(ConfigError, match=phrase) as error:
        hosts.check_backend()
    assert "\n" not in str(error.value)
