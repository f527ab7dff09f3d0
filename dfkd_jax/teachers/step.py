"""A gradient step of a teacher: supervised, on real data."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dfkd_jax.models.network import Model
from dfkd_jax.runtime import augmentation, optimization, parallel, rng
from dfkd_jax.runtime.optimization import TrainState


def make_augment(
    *, max_shift: int, flip: float, cutout: int
) -> Callable[[Any, Any], Any]:
    """`(key, image) -> image` with the changes that are asked for; 0 leaves one out.

    Args:
        max_shift: Largest random shift, in pixels.
        flip: Probability of a mirrored image.
        cutout: Side of the square that is covered, in pixels.
    """

    def augment(key, image):
        if max_shift:
            image = augmentation.shift(key, image, max_shift=max_shift)
        if flip:
            flip_key = rng.stream(key, "flip")
            image = augmentation.flip(flip_key, image, probability=flip)
        if cutout:
            image = augmentation.cutout(rng.stream(key, "cutout"), image, size=cutout)
        return image

    return augment


def make_step(
    *, teacher: Model, augment: Callable[[Any, Any], Any]
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """`step(state, None, batch, key) -> (state, metrics)`, data-parallel.

    The batch holds normalized `images` and integer `labels`.

    Args:
        teacher: Gets gradients; in training mode.
        augment: `(key, image) -> image`, mapped over the batch.
    """

    def step(state: TrainState, _: None, batch: Mapping[str, Any], key: Any):
        place = parallel.global_index(batch["images"].shape[0])
        step_key = jax.random.fold_in(key, state.step)
        keys = rng.per_example(step_key, place)
        dropout_key = jax.random.fold_in(rng.stream(step_key, "dropout"), place[0])
        images = jax.vmap(augment)(keys, batch["images"])

        def mean_loss(params):
            logits, model_state = teacher.train_logits(
                {"params": params} | state.model_state, images, dropout_key
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["labels"]
            )
            return losses.mean(), (logits, model_state)

        (loss, (logits, model_state)), gradients = jax.value_and_grad(
            mean_loss, has_aux=True
        )(state.params)
        accuracy = jnp.mean(logits.argmax(-1) == batch["labels"])
        return optimization.update(
            state, gradients, model_state, {"loss": loss, "accuracy": accuracy}
        )

    return step
