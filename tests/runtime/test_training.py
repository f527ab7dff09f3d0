import jax
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from dfkd_jax.errors import NonFiniteError
from dfkd_jax.runtime import parallel, training, writers


def step(state, constants, batch, key):
    """Least squares; the key only shifts what is logged."""

    def loss(params):
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean() * constants

    value, gradients = jax.value_and_grad(loss)(state.params)
    gradients, value = parallel.mean((gradients, value))
    shift = jax.random.uniform(jax.random.fold_in(key, state.step))
    return state.apply_gradients(grads=gradients), {"loss": value, "shift": shift}


def state():
    fresh = TrainState.create(
        apply_fn=None, params={"w": np.zeros(3, np.float32)}, tx=optax.adam(0.1)
    )
    return fresh.replace(step=np.zeros((), np.int32))


def read(number):
    random = np.random.default_rng(number)
    x = random.normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1.0, -2.0, 3.0], np.float32)}


def train(folder, **changes):
    arguments = {
        "state": state(),
        "constants": np.float32(1),
        "key": jax.random.key(0),
        "read": read,
        "num_steps": 24,
        "log_every": 6,
        "checkpoint_every": 12,
        "stage": "distillation",
        "learning_rate_key": "config.distillation.learning_rate",
        "folder": folder / "student",
        "workdir": folder,
        "stopwatch": writers.Stopwatch(folder / "seconds.json"),
    }
    return training.train(step, **arguments | changes)


def test_several_steps_in_a_call_are_single_steps_in_turn():
    batches = [read(number) for number in range(4)]
    start, constants, key = parallel.replicate(
        (state(), np.float32(1), jax.random.key(3))
    )
    alone, losses = start, []
    single = parallel.data_parallel(step)
    for batch in batches:
        alone, metrics = single(alone, constants, parallel.split(batch), key)
        parallel.block_on_cpu(metrics)
        losses.append(float(metrics["loss"]))
    start = parallel.replicate(state())
    together, metrics = parallel.data_parallel(training.scan_steps(step))(
        start,
        constants,
        parallel.split(jax.tree.map(lambda *parts: np.stack(parts), *batches), axis=1),
        key,
    )
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(together.params["w"], alone.params["w"], rtol=1e-5)
    assert int(together.step) == 4


@pytest.mark.parametrize(
    ("log_every", "checkpoint_every", "expected"),
    [(6, 12, 6), (100, 1_000, 2), (7, 5, 1)],
)
def test_calls_end_where_something_is_due(
    tmp_path, monkeypatch, log_every, checkpoint_every, expected
):
    """No more steps in a call than lie between two logs, two checkpoints, or in all."""
    sizes = []
    split = parallel.split

    def telling(tree, *, axis=0):
        sizes.append(len(tree["x"]))
        return split(tree, axis=axis)

    monkeypatch.setattr(parallel, "split", telling)
    num_steps = 22 if expected == 2 else 24
    final = train(
        tmp_path,
        num_steps=num_steps,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
    )
    assert set(sizes) == {expected}
    assert int(final.step) == sum(sizes) == num_steps


def test_a_checkpoint_within_a_call_leads_to_the_same_end(tmp_path):
    """It comes from a stop of fewer steps a call, as another version may have had."""
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole")
    train(tmp_path, num_steps=5, log_every=5, checkpoint_every=5)
    final = train(tmp_path)
    assert int(final.step) == 24
    np.testing.assert_allclose(final.params["w"], whole.params["w"], rtol=1e-5)
    logged = writers.read_scalars(tmp_path / "metrics.jsonl", stage="distillation")
    assert list(logged) == [5, 6, 12, 18, 24]


@pytest.mark.parametrize(
    ("whole", "bytes_per_step", "expected"),
    [
        (100, 8, 10),
        (100, 2**25 // 4, 4),
        (100, 2**26, 1),
        (7, 8, 7),
        (11, 8, 1),
        (9, 0, 9),
    ],
)
def test_calls_are_bounded_in_steps_and_bytes(whole, bytes_per_step, expected):
    found = training._steps_per_call(whole, bytes_per_step=bytes_per_step)
    assert found == expected


def test_numbers_gone_wrong_between_two_logs_are_found(tmp_path):
    def poisoned(number):
        batch = read(number)
        return batch | {"y": batch["y"] + (np.inf if number == 15 else 0)}

    with pytest.raises(NonFiniteError, match="by step 18"):
        train(tmp_path, read=poisoned)
