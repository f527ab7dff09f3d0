"""Optimizer steps that teacher and student share: pure, and data-parallel."""

from typing import Any

import jax.numpy as jnp
import optax
from flax.training import train_state

from dfkd_jax.runtime import parallel


def warmup_then(
    schedule: str, peak: float, *, warmup_steps: int, num_steps: int
) -> optax.Schedule:
    """Linear from 0 to `peak` in `warmup_steps`, then as `schedule` says.

    Args:
        schedule: "cosine": to 0 at `num_steps`; "constant": `peak` to the end.
        peak: The highest rate.
        warmup_steps: May be 0.
        num_steps: The last step.
    """
    if schedule == "constant":
        if not warmup_steps:
            return optax.constant_schedule(peak)
        return optax.linear_schedule(0.0, peak, warmup_steps)
    return warmup_cosine(peak, warmup_steps=warmup_steps, num_steps=num_steps)


def warmup_cosine(peak: float, *, warmup_steps: int, num_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` in `warmup_steps`, then cosine to 0 at `num_steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else peak, peak, warmup_steps, num_steps
    )


def make_optimizer(
    name: str, schedule: optax.Schedule, *, weight_decay: float, momentum: float
) -> optax.GradientTransformation:
    """The optimizer called "adamw" or "sgd".

    Args:
        name: "sgd" is with Nesterov's momentum.
        schedule: Of the learning rate.
        weight_decay: Of all parameters. Apart from the gradient for "adamw"; joins it
            for "sgd", as in PyTorch.
        momentum: For "sgd".
    """
    if name == "adamw":
        return optax.adamw(schedule, weight_decay=weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=True),
    )


class TrainState(train_state.TrainState):
    """A network under training: step, params, opt_state, model_state. Replicated.

    Attributes:
        model_state: Variables besides `params`: `batch_stats`, say, or nothing.
    """

    model_state: Any


def create_state(variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A network that has made no step.

    The step is an int32 array rather than Flax's Python 0, as checkpoints need it.
    """
    model_state = {key: value for key, value in variables.items() if key != "params"}
    state = TrainState.create(
        apply_fn=None,
        params=variables["params"],
        tx=optimizer,
        model_state=model_state,
    )
    return state.replace(step=jnp.zeros((), jnp.int32))


def variables_of(state: TrainState) -> dict[str, Any]:
    """What the network in training computes with."""
    return {"params": state.params} | state.model_state


def update(
    state: Any, gradients: Any, model_state: Any, metrics: dict[str, Any]
) -> tuple[Any, Any]:
    """`state` one step on, inside a data-parallel step, and the metrics.

    Gradients, metrics and what the network carries besides parameters are averaged over
    devices: BatchNorm normalizes with the statistics of a device's part of the batch
    and keeps the mean of them. The norms of the gradient and of the new parameters join
    the metrics: whatever goes wrong shows in one of them.
    """
    gradients, model_state, metrics = parallel.mean((gradients, model_state, metrics))
    state = state.apply_gradients(grads=gradients, model_state=model_state)
    norms = {
        "gradient_norm": optax.tree.norm(gradients),
        "parameter_norm": optax.tree.norm(state.params),
    }
    return state, metrics | norms
