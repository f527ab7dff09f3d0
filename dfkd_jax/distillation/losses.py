"""What a student minimises: one value an image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hinton(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    temperature: float,
) -> Float[Array, " batch"]:
    """Tempered cross-entropy, times temperature² (Hinton et al., 2015)."""
    targets = jax.nn.softmax(teacher_logits / temperature)
    log_probs = jax.nn.log_softmax(student_logits / temperature)
    return -(temperature**2) * jnp.sum(targets * log_probs, axis=-1)


def logit_l1(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
) -> Float[Array, " batch"]:
    """Mean absolute difference of logits (DFAD, Fang et al., 2019)."""
    return jnp.mean(jnp.abs(student_logits - teacher_logits), axis=-1)


def logit_l2(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
) -> Float[Array, " batch"]:
    """Mean squared difference of logits (Ba and Caruana, 2014)."""
    return jnp.mean((student_logits - teacher_logits) ** 2, axis=-1)
