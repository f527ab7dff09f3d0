"""Gradient steps on pseudo samples: stage 3 of Wang (AAAI 2021)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dfkd_jax.models import jaxprs
from dfkd_jax.runtime import rng
from dfkd_jax.synthesis import losses, priors
from dfkd_jax.synthesis.parameterization import Parameterization

CANDIDATES = 4  # Procedural images that are drawn for each soft label.


class SynthesisState(struct.PyTreeNode):
    """Images under optimization on one device. Never averaged across devices.

    Attributes:
        step: Optimizer steps done, int32.
        params: Parameters of the images, a tree of `[batch, …]`.
        opt_state: Optimizer state of `params`.
    """

    step: Any
    params: Any
    opt_state: Any


def make_init(
    *,
    parameterization: Parameterization,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any], Any] | None = None,
    temperature: float = 1.0,
) -> Callable[..., SynthesisState]:
    """`init((teacher, key), (index [batch], labels [batch, classes])) -> state`.

    Images are those of their global indices: noise, or procedural ones. Of the latter
    each soft label gets the one whose answer is nearest to it among `CANDIDATES` times
    as many as there are images in the batch.

    Args:
        parameterization: Of the images.
        optimizer: Of its parameters.
        draw: `keys -> pixels [batch, height, width, channels]`; None for noise.
        temperature: τ at which answers and labels are compared.
    """

    def begin(draw, teacher, key, index, labels):
        keys = rng.per_example(rng.stream(key, "procedural images"), index)
        keys = jax.vmap(functools.partial(jax.random.split, num=CANDIDATES))(keys)

        def answer(keys):
            logits = teacher.logits(teacher.normalize(draw(keys)))
            return jax.nn.log_softmax(logits / temperature)

        # As many at a time as there are labels; the chosen ones are drawn again.
        answers = jax.lax.map(answer, keys.T).reshape(-1, labels.shape[-1])
        chosen = keys.T.reshape(-1)[(labels @ answers.T).argmax(1)]
        return parameterization.begin(draw(chosen))

    def init(constants, batch):
        (teacher, key), (index, labels) = constants, batch
        if draw:
            params = begin(draw, teacher, key, index, labels)
        else:
            keys = rng.per_example(rng.stream(key, "initial noise"), index)
            params = parameterization.init(keys)
        return SynthesisState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
        )

    return init


def make_step(
    *,
    feature_layer: str,
    parameterization: Parameterization,
    optimizer: optax.GradientTransformation,
    temperature: float,
    activation_weight: float,
    total_variation: float,
    l2: float,
    batch_norm: float,
    batch_norm_distance: str,
    max_shift: int,
    flip: float,
    num_steps: int,
) -> Callable[..., tuple[SynthesisState, dict[str, Any]]]:
    """`step(state, teacher, labels, key) -> (state, metrics)`.

    One call makes `num_steps` optimizer steps in a `lax.scan`. The loss of an image is

        CE(y, softmax(T(x)/τ)) + λ_a · L_a(x) + priors(x)

    and their sum over the batch is minimized, so that images do not influence each
    other; but for the `batch_norm` prior, which is of the batch as a whole and counts
    once an image. The batch is a whole shard on one device, so that images do not
    depend on the number of devices even then. Metrics are means over the batch,
    `[num_steps]`.
    """

    def look_at(teacher, images):
        """Features, logits, and how far statistics of the batch are from those kept."""
        if not batch_norm:
            return *teacher.features_and_logits(images, layer=feature_layer), {}
        features, logits, moments = teacher.features_logits_and_moments(
            images, layer=feature_layer
        )
        relative = batch_norm_distance == "relative"
        distance = sum(
            priors.statistics_distance(*each, relative=relative) for each in moments
        )
        if relative:
            distance /= len(moments)
        return features, logits, {"batch_norm": jnp.full(len(images), distance)}

    def loss(params, teacher, labels, shift_key, flip_key):
        images = parameterization.render(params)
        seen = priors.random_shift(shift_key, images, max_shift=max_shift)
        seen = priors.random_flip(flip_key, seen, probability=flip)
        features, logits, statistics = look_at(teacher, seen)
        terms = {
            "cross_entropy": losses.soft_cross_entropy(
                logits, labels, temperature=temperature
            ),
            "activation": losses.activation_loss(features),
            "total_variation": priors.total_variation(images),
            "l2": priors.squared_norm(images),
            **statistics,
        }
        total = (
            terms["cross_entropy"]
            + activation_weight * terms["activation"]
            + total_variation * terms["total_variation"]
            + l2 * terms["l2"]
        )
        if batch_norm:
            total += batch_norm * terms["batch_norm"]
        return total.sum(), {
            name: value.mean() for name, value in (terms | {"loss": total}).items()
        }

    def step(state, teacher, labels, key):
        streams = rng.stream(key, "shift"), rng.stream(key, "flip")

        def one_step(constants, state):
            teacher, labels, *streams = constants
            gradients, metrics = jax.grad(loss, has_aux=True)(
                state.params,
                teacher,
                labels,
                *(jax.random.fold_in(stream, state.step) for stream in streams),
            )
            updates, opt_state = optimizer.update(
                gradients, state.opt_state, state.params
            )
            state = SynthesisState(
                step=state.step + 1,
                params=parameterization.project(
                    optax.apply_updates(state.params, updates)
                ),
                opt_state=opt_state,
            )
            return state, metrics

        constants = (teacher, labels, *streams)
        ready = jaxprs.ahead(one_step, constants, state)
        return jax.lax.scan(lambda state, _: ready(state), state, length=num_steps)

    return step
