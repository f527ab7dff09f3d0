"""Hard labels, as DeepInversion aims at (Yin et al., 2020): nothing of the teacher."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Key


def labels(num_classes: int) -> Callable[[Key[Array, " batch"]], Float[Array, "b c"]]:
    """Draws labels: all of the probability on one class, each class as often."""

    def draw_one(key):
        return jax.nn.one_hot(jax.random.randint(key, (), 0, num_classes), num_classes)

    return jax.jit(jax.vmap(draw_one))
