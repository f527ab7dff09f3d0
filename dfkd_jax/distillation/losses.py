"""What a student minimizes: one value an image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FLOOR = 1e-6  # Of squared features: those of a blank image may all be zero.
RARE = 0.01  # Added to a class's share: a class that is not there counts for no more.


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


def divergence(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
) -> Float[Array, " batch"]:
    """Kullback-Leibler divergence of the student from the teacher, in nats."""
    theirs = jax.nn.log_softmax(teacher_logits)
    shares = jnp.exp(theirs)
    difference = theirs - jax.nn.log_softmax(student_logits)
    # Logits of a hard label are infinite, but for one.
    return jnp.sum(jnp.where(shares > 0, shares * difference, 0), axis=-1)


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


def feature_error(
    student_features: Float[Array, "batch *places units"],
    teacher_features: Float[Array, "batch *places units"],
) -> Float[Array, " batch"]:
    """Squared distance of features (Romero et al., 2015), as a share of the teacher's.

    A share, so that images that excite the teacher more do not count for more.
    """
    axes = tuple(range(1, teacher_features.ndim))
    distance = jnp.sum((student_features - teacher_features) ** 2, axis=axes)
    return distance / (jnp.sum(teacher_features**2, axis=axes) + FLOOR)


def class_weights(
    teacher_probs: Float[Array, "batch classes"],
    shares: Float[Array, " classes"],
    *,
    balance: float,
) -> Float[Array, " batch"]:
    """What an image counts for: Σ_c p_c · (s_c + 0.01)^−balance, up to a factor.

    Args:
        teacher_probs: p, the teacher's answers.
        shares: s, their mean over the batches of all devices.
        balance: 0: every image counts the same; 1: every class does.
    """
    return teacher_probs @ (shares + RARE) ** -balance
