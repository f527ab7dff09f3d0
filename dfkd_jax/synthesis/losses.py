"""Losses of pseudo samples: one value an image, so that images stay independent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Float[Array, "batch classes"],
    *,
    temperature: float,
) -> Float[Array, " batch"]:
    """Cross-entropy of soft labels and the teacher's tempered prediction.

    CE(y, softmax(T(x)/τ)): with τ = 20 the logits aimed at are 20 times those that
    produced `labels` (ZSKD, Nayak et al., 2019, equation 4).
    """
    return -jnp.sum(labels * jax.nn.log_softmax(logits / temperature), axis=-1)


def activation_loss(
    features: Float[Array, "batch *places units"],
) -> Float[Array, " batch"]:
    """-mean |f|: trained networks respond strongly to what they were trained on.

    The one-hot counterpart is L_a of DAFL (Chen et al., 2019, equation 6).
    """
    return -jnp.mean(jnp.abs(features), axis=tuple(range(1, features.ndim)))
