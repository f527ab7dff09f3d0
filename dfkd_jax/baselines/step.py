"""A step of a generator and a student that learn together: DAFL's and DFAD's."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dfkd_jax.baselines import losses
from dfkd_jax.distillation import losses as distillation_losses
from dfkd_jax.models.network import Model, Network
from dfkd_jax.runtime import optimization, parallel, rng
from dfkd_jax.runtime.optimization import TrainState, variables_of
from dfkd_jax.synthesis.losses import activation_loss


class GameState(struct.PyTreeNode):
    """A generator and a student under training. Replicated.

    Attributes:
        step: Steps done, int32.
        student: Its parameters, optimizer and other collections.
        generator: Likewise.
    """

    step: Any
    student: TrainState
    generator: TrainState


def draw_latents(
    key: PRNGKeyArray, index: Int[Array, " batch"], *, size: int
) -> Float[Array, "batch size"]:
    """Standard normal noise; a row depends on the key and its global index alone."""
    keys = rng.per_example(key, index)
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def generate(
    generator: Model, state: Any, latents: Any, key: Any
) -> tuple[Any, dict[str, Any]]:
    """Images in training mode, and the generator's collections as they are now.

    Args:
        generator: As functions of arrays.
        state: With `params` and `model_state`.
        latents: `[batch, latents]`.
        key: For dropout, if it has any.
    """
    return generator.train_logits(variables_of(state), latents, key)


def make_dafl_step(
    *,
    generator: Model,
    student: Model,
    feature_layer: str,
    latent_size: int,
    one_hot_weight: float,
    information_weight: float,
    activation_weight: float,
) -> Callable[..., tuple[GameState, dict[str, Any]]]:
    """`step(state, teacher, batch, key) -> (state, metrics)`, data-parallel.

    The generator G minimizes, over the noise z,

        one-hot loss + λ_ie · information entropy loss + λ_a · activation loss

    of what the teacher says about G(z) (Chen et al., 2019); features are taken after
    their ReLU. The student learns the teacher's answers about the same images, at
    temperature 1. Both make one optimizer step.

    Args:
        generator: Of images from noise.
        student: Learns what the teacher says of them.
        feature_layer: Of the teacher, for the activation loss.
        latent_size: Numbers of noise an image.
        one_hot_weight: Of the one-hot loss; 1 in the paper.
        information_weight: λ_ie.
        activation_weight: λ_a.

    The batch holds `index`, the global places of its images.
    """

    def step(
        state: GameState, teacher: Network, batch: Mapping[str, Any], key: Any
    ) -> tuple[GameState, dict[str, Any]]:
        step_key, dropout_key = _keys(key, state, batch)
        latents = draw_latents(step_key, batch["index"], size=latent_size)

        def generator_loss(params):
            images, model_state = generate(
                generator, state.generator.replace(params=params), latents, dropout_key
            )
            features, logits = teacher.features_and_logits(images, layer=feature_layer)
            probs = jax.nn.softmax(logits).mean(axis=0)
            terms = {
                "one_hot": losses.one_hot(logits).mean(),
                "information_entropy": losses.information_entropy(parallel.mean(probs)),
                "activation": activation_loss(nn.relu(features)).mean(),
            }
            total = (
                one_hot_weight * terms["one_hot"]
                + information_weight * terms["information_entropy"]
                + activation_weight * terms["activation"]
            )
            return total, (images, logits, model_state, terms)

        (total, (images, logits, model_state, terms)), gradients = jax.value_and_grad(
            generator_loss, has_aux=True
        )(state.generator.params)

        def loss(student_logits, teacher_logits):
            return distillation_losses.hinton(
                student_logits, teacher_logits, temperature=1.0
            )

        student_state, metrics = _student_step(
            student, state.student, images, logits, loss, dropout_key
        )
        generator_state, generator_metrics = optimization.update(
            state.generator,
            gradients,
            model_state,
            terms | {"loss": total},
        )
        state = GameState(
            step=state.step + 1, student=student_state, generator=generator_state
        )
        return state, metrics | _of_generator(generator_metrics)

    return step


def make_dfad_step(
    *,
    generator: Model,
    student: Model,
    latent_size: int,
    student_steps: int,
) -> Callable[..., tuple[GameState, dict[str, Any]]]:
    """`step(state, teacher, batch, key) -> (state, metrics)`, data-parallel.

    The student makes `student_steps` optimizer steps, each on new images, down the mean
    absolute difference of its logits and the teacher's; then the generator makes one
    up that difference (Fang et al., 2019).

    Args:
        generator: Of images from noise.
        student: Learns what the teacher says of them.
        latent_size: Numbers of noise an image.
        student_steps: For each step of the generator.

    The batch holds `index`, the global places of its images. Metrics of the student are
    those of its last step.
    """
    difference = distillation_losses.logit_l1

    def step(
        state: GameState, teacher: Network, batch: Mapping[str, Any], key: Any
    ) -> tuple[GameState, dict[str, Any]]:
        step_key, dropout_key = _keys(key, state, batch)

        def images_for(turn, generator_state):
            turn_key = jax.random.fold_in(step_key, turn)
            latents = draw_latents(turn_key, batch["index"], size=latent_size)
            return generate(generator, generator_state, latents, dropout_key)

        def student_turn(states, turn):
            student_state, generator_state = states
            images, model_state = images_for(turn, generator_state)
            generator_state = generator_state.replace(model_state=model_state)
            logits = teacher.logits(images)
            student_state, metrics = _student_step(
                student, student_state, images, logits, difference, dropout_key
            )
            return (student_state, generator_state), metrics

        (student_state, generator_state), metrics = jax.lax.scan(
            student_turn,
            (state.student, state.generator),
            jnp.arange(student_steps),
        )
        metrics = {name: each[-1] for name, each in metrics.items()}

        def generator_loss(params):
            images, model_state = images_for(
                student_steps, generator_state.replace(params=params)
            )
            teacher_logits = teacher.logits(images)
            # As in training; what it carries besides parameters stays as it is.
            student_logits, _ = student.train_logits(
                variables_of(student_state),
                images,
                dropout_key,
            )
            return -difference(student_logits, teacher_logits).mean(), model_state

        (total, model_state), gradients = jax.value_and_grad(
            generator_loss, has_aux=True
        )(generator_state.params)
        generator_state, generator_metrics = optimization.update(
            generator_state, gradients, model_state, {"loss": total}
        )
        state = GameState(
            step=state.step + 1, student=student_state, generator=generator_state
        )
        return state, metrics | _of_generator(generator_metrics)

    return step


def _keys(key, state, batch):
    """For the noise of a step, and for dropout."""
    step_key = jax.random.fold_in(key, state.step)
    dropout_key = jax.random.fold_in(rng.stream(step_key, "dropout"), batch["index"][0])
    return rng.stream(step_key, "latents"), dropout_key


def _student_step(student, state, images, teacher_logits, loss, key):
    """The student one step on, on images that are taken as given; and metrics."""
    images, teacher_logits = jax.lax.stop_gradient((images, teacher_logits))

    def mean_loss(params):
        logits, model_state = student.train_logits(
            {"params": params} | state.model_state, images, key
        )
        return loss(logits, teacher_logits).mean(), (logits, model_state)

    (value, (logits, model_state)), gradients = jax.value_and_grad(
        mean_loss, has_aux=True
    )(state.params)
    agreement = (logits.argmax(-1) == teacher_logits.argmax(-1)).mean()
    return optimization.update(
        state, gradients, model_state, {"loss": value, "agreement": agreement}
    )


def _of_generator(metrics):
    return {f"generator_{name}": value for name, value in metrics.items()}
