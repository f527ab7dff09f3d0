"""Measurements of speed and memory, one command each; not installed."""

from dfkd_jax.runtime import parallel

parallel.sum_rightly()
