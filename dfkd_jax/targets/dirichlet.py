"""Soft labels from Dirichlet distributions, one a class: ZSKD (Nayak et al., 2019)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dfkd_jax.targets import gaussian

FLOOR = 1e-4  # Added to concentrations, as in the authors' code: 0 is not allowed.


def concentrations(kernel: Float[Array, "units classes"]) -> Float[Array, "c c"]:
    """Class similarity of the last layer's weights, each row min-max scaled.

    Section 3.2 of Nayak et al. (ICML 2019); row k is the concentration of class k. In a
    row the class itself has 1 and the class least like it 0.
    """
    cosines = gaussian.correlation(gaussian.unit_vectors(kernel))
    low = cosines.min(axis=1, keepdims=True)
    high = cosines.max(axis=1, keepdims=True)
    return (cosines - low) / (high - low)


def soft_labels(
    kernel: Float[Array, "units classes"], *, betas: Sequence[float] = (1.0, 0.1)
) -> Callable[[Key[Array, " batch"]], Float[Array, "batch classes"]]:
    """Draws soft labels: a class, a scaling β, a sample of Dir(β · row + floor)."""
    rows = concentrations(kernel)
    scalings = jnp.asarray(betas, rows.dtype)

    def draw_one(key):
        class_key, beta_key, label_key = jax.random.split(key, 3)
        row = rows[jax.random.randint(class_key, (), 0, rows.shape[0])]
        beta = scalings[jax.random.randint(beta_key, (), 0, scalings.shape[0])]
        return jax.random.dirichlet(label_key, beta * row + FLOOR)

    return jax.jit(jax.vmap(draw_one))
