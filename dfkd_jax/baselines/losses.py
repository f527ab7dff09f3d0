"""What DAFL's generator minimizes besides the activation loss (Chen et al., 2019).

"Data-Free Learning of Student Networks", ICCV 2019, section 3.2. The activation loss is
`synthesis.losses.activation_loss`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def one_hot(logits: Float[Array, "batch classes"]) -> Float[Array, " batch"]:
    """L_oh: cross-entropy of the teacher's answer with its own likeliest class.

    That is -log of this class's probability: least where the teacher is sure.
    """
    return -jax.nn.log_softmax(logits).max(axis=-1)


def information_entropy(mean_probs: Float[Array, " classes"]) -> Float[Array, ""]:
    """L_ie: minus the entropy of the mean answer of a batch, in base 10.

    Least, minus log₁₀ of the number of classes, where all classes come equally often.
    The base is that of the authors' code.

    Args:
        mean_probs: Probabilities of the classes, averaged over the whole batch.
    """
    safe = jnp.where(mean_probs > 0, mean_probs, 1.0)  # 0 · log 0 is 0.
    return jnp.sum(mean_probs * jnp.log10(safe))
