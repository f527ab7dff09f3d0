"""Data-free knowledge distillation in JAX: from weights to student."""

__version__ = "0.1.0"
