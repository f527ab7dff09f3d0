"""A gradient step of the student: stage 4 of Wang (AAAI 2021)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfkd_jax.distillation import losses
from dfkd_jax.models.network import Model, Network
from dfkd_jax.runtime import optimization, parallel, rng
from dfkd_jax.runtime.optimization import TrainState

Loss = Callable[[Float[Array, "b c"], Float[Array, "b c"]], Float[Array, " b"]]


def make_step(
    *,
    student: Model,
    augment: Callable[[Any, Any, Any], Any],
    loss: Loss,
    stored_labels_temperature: float | None,
    feature_layer: str = "",
    feature_weight: float = 0.0,
    class_balance: float = 0.0,
    draw: Callable[[Any], Any] | None = None,
    draw_every: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """`step(state, teacher, batch, key) -> (state, metrics)`, data-parallel.

    Args:
        student: Gets gradients; the teacher is asked about every augmented image.
        augment: `(key, image, other image) -> image`, mapped over the batch.
        loss: `(student logits, teacher logits)` to one value an image.
        stored_labels_temperature: If given, the teacher is not asked: `loss` gets
            τ · log y for the soft labels y of the batch, whose tempered softmax is y.
        feature_layer: If given, a layer of both: the student follows the teacher's
            features there, too. Needs a teacher that is asked.
        feature_weight: Of `losses.feature_error`, added to `loss`.
        class_balance: Of `losses.class_weights`, which images are weighted by.
        draw: `keys [n]` to pixels of procedural images; None for none of these.
        draw_every: Every so many-th image of a device's part of a batch is one.

    The batch holds `images`, `others` (to mix with) and `labels`, each `[batch, …]`.
    """

    def weights_of(teacher_logits):
        probs = jax.nn.softmax(teacher_logits)
        shares = parallel.mean(probs.mean(axis=0))
        weights = losses.class_weights(probs, shares, balance=class_balance)
        return weights / parallel.mean(weights.mean())

    def step(
        state: TrainState, teacher: Network, batch: Mapping[str, Any], key: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        place = parallel.global_index(batch["images"].shape[0])
        step_key = jax.random.fold_in(key, state.step)
        keys = rng.per_example(step_key, place)
        dropout_key = jax.random.fold_in(rng.stream(step_key, "dropout"), place[0])
        images = batch["images"]
        if draw:
            drawn_keys = rng.per_example(
                rng.stream(step_key, "procedural images"), place[::draw_every]
            )
            drawn = teacher.normalize(draw(drawn_keys))
            images = images.at[::draw_every].set(drawn)
        images = jax.vmap(augment)(keys, images, batch["others"])
        if feature_layer:
            teacher_features, teacher_logits = teacher.features_and_logits(
                images, layer=feature_layer
            )
        elif stored_labels_temperature is None:
            teacher_logits = teacher.logits(images)
        else:
            teacher_logits = stored_labels_temperature * jnp.log(batch["labels"])
        weights = weights_of(teacher_logits) if class_balance else 1.0

        def mean_loss(params):
            student_variables = {"params": params} | state.model_state
            asked = (student_variables, images, dropout_key)
            if not feature_layer:
                student_logits, model_state = student.train_logits(*asked)
                value = loss(student_logits, teacher_logits)
                return (weights * value).mean(), (student_logits, model_state)
            student_features, student_logits, model_state = (
                student.train_features_and_logits(*asked, layer=feature_layer)
            )
            error = losses.feature_error(student_features, teacher_features)
            value = loss(student_logits, teacher_logits) + feature_weight * error
            return (weights * value).mean(), (student_logits, model_state)

        (value, (student_logits, model_state)), gradients = jax.value_and_grad(
            mean_loss, has_aux=True
        )(state.params)
        agreement = jnp.mean(student_logits.argmax(-1) == teacher_logits.argmax(-1))
        divergence = losses.divergence(student_logits, teacher_logits).mean()
        metrics = {"loss": value, "agreement": agreement, "divergence": divergence}
        return optimization.update(state, gradients, model_state, metrics)

    return step


def make_loss(name: str, *, temperature: float) -> Loss:
    """The distillation loss called "l1", "l2" or "hinton"."""
    if name == "hinton":
        return lambda student, teacher: losses.hinton(
            student, teacher, temperature=temperature
        )
    return {"l1": losses.logit_l1, "l2": losses.logit_l2}[name]
