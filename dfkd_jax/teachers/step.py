"""A gradient step of a teacher: supervised, on real data."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from dfkd_jax.models import network
from dfkd_jax.runtime import optimisation, parallel, rng


class TeacherState(train_state.TrainState):
    """The teacher under training: step, params, opt_state, model_state. Replicated.

    Attributes:
        model_state: Collections besides `params`: `batch_stats`, say, or nothing.
    """

    model_state: Any


def shift(key: Any, image: Any, *, max_shift: int) -> Any:
    """One image `[height, width, channels]` moved by up to `max_shift` pixels."""
    margin = ((max_shift, max_shift), (max_shift, max_shift), (0, 0))
    padded = jnp.pad(image, margin, mode="edge")
    y, x = jax.random.randint(key, (2,), 0, 2 * max_shift + 1)
    return jax.lax.dynamic_slice(padded, (y, x, 0), image.shape)


def make_step(
    *, teacher: nn.Module, max_shift: int
) -> Callable[..., tuple[TeacherState, dict[str, Any]]]:
    """`step(state, None, batch, key) -> (state, metrics)`, data-parallel.

    The batch holds standardised `images` and integer `labels`.
    """

    def step(state: TeacherState, _: None, batch: Mapping[str, Any], key: Any):
        place = parallel.global_index(batch["images"].shape[0])
        step_key = jax.random.fold_in(key, state.step)
        keys = rng.per_example(step_key, place)
        dropout_key = jax.random.fold_in(rng.stream(step_key, "dropout"), place[0])
        images = batch["images"]
        if max_shift:
            images = jax.vmap(lambda k, x: shift(k, x, max_shift=max_shift))(
                keys, images
            )

        def mean_loss(params):
            logits, model_state = network.train_logits(
                teacher, {"params": params} | state.model_state, images, dropout_key
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["labels"]
            )
            return losses.mean(), (logits, model_state)

        (loss, (logits, model_state)), gradients = jax.value_and_grad(
            mean_loss, has_aux=True
        )(state.params)
        accuracy = jnp.mean(logits.argmax(-1) == batch["labels"])
        return optimisation.update(
            state, gradients, model_state, {"loss": loss, "accuracy": accuracy}
        )

    return step
