"""Gradient steps on pseudo samples: stage 3 of Wang (AAAI 2021)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from dfkd_jax.models import network
from dfkd_jax.runtime import rng
from dfkd_jax.synthesis import losses, priors
from dfkd_jax.synthesis.parameterisation import Parameterisation


class SynthesisState(struct.PyTreeNode):
    """Images under optimisation on one device. Never averaged across devices.

    Attributes:
        step: Optimiser steps done, int32.
        params: Parameters of the images, a tree of `[batch, …]`.
        opt_state: Optimiser state of `params`.
    """

    step: Any
    params: Any
    opt_state: Any


def make_init(
    *, parameterisation: Parameterisation, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any], SynthesisState]:
    """`init(key, index [batch]) -> state` of images by their global index."""

    def init(key, index):
        keys = rng.per_example(rng.stream(key, "initial noise"), index)
        params = parameterisation.init(keys)
        return SynthesisState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
        )

    return init


def make_step(
    *,
    teacher: nn.Module,
    feature_layer: str,
    parameterisation: Parameterisation,
    optimizer: optax.GradientTransformation,
    temperature: float,
    activation_weight: float,
    total_variation: float,
    l2: float,
    max_shift: int,
    num_steps: int,
) -> Callable[..., tuple[SynthesisState, dict[str, Any]]]:
    """`step(state, teacher variables, labels, key) -> (state, metrics)`.

    One call makes `num_steps` optimiser steps in a `lax.scan`. The loss of an image is

        CE(y, softmax(T(x)/τ)) + λ_a · L_a(x) + priors(x)

    and their sum over the batch is minimised, so that images do not influence each
    other. Metrics are means over the batch, `[num_steps]`.
    """

    def loss(params, variables, labels, key):
        images = parameterisation.render(params)
        seen = priors.random_shift(key, images, max_shift=max_shift)
        features, logits = network.features_and_logits(
            teacher, variables, seen, layer=feature_layer
        )
        terms = {
            "cross_entropy": losses.soft_cross_entropy(
                logits, labels, temperature=temperature
            ),
            "activation": losses.activation_loss(features),
            "total_variation": priors.total_variation(images),
            "l2": priors.squared_norm(images),
        }
        total = (
            terms["cross_entropy"]
            + activation_weight * terms["activation"]
            + total_variation * terms["total_variation"]
            + l2 * terms["l2"]
        )
        return total.sum(), {
            name: value.mean() for name, value in (terms | {"loss": total}).items()
        }

    def step(state, variables, labels, key):
        shift_key = rng.stream(key, "shift")

        def one_step(state, _):
            gradients, metrics = jax.grad(loss, has_aux=True)(
                state.params,
                variables,
                labels,
                jax.random.fold_in(shift_key, state.step),
            )
            updates, opt_state = optimizer.update(
                gradients, state.opt_state, state.params
            )
            state = SynthesisState(
                step=state.step + 1,
                params=parameterisation.project(
                    optax.apply_updates(state.params, updates)
                ),
                opt_state=opt_state,
            )
            return state, metrics

        return jax.lax.scan(one_step, state, length=num_steps)

    return step
