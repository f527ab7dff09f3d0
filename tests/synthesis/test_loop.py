"""When a batch under way is checkpointed."""

import time

import jax.numpy as jnp

from dfkd_jax.synthesis import loop


def due(cadence, calls, *, seconds):
    """Which of `calls` a checkpoint follows, where each call took `seconds`."""
    return [
        call
        for call in calls
        if cadence.due(call, jnp.zeros(()), time.monotonic() - seconds)
    ]


def test_checkpoints_follow_a_fixed_number_of_calls():
    cadence = loop._Cadence(25.0)
    assert due(cadence, range(1, 10), seconds=10.0) == [3, 6, 9]
    # Measured once: processes that save together must agree.
    assert due(cadence, range(1, 10), seconds=1.0) == [3, 6, 9]


def test_the_call_that_compiles_is_not_measured():
    cadence = loop._Cadence(60.0)
    assert due(cadence, [1], seconds=1_000.0) == []
    assert due(cadence, range(2, 14), seconds=10.0) == [6, 12]


def test_zero_seconds_means_after_every_call():
    cadence = loop._Cadence(0.0)
    assert due(cadence, range(1, 5), seconds=0.1) == [2, 3, 4]
    assert due(cadence, range(1, 5), seconds=0.1) == [1, 2, 3, 4]
