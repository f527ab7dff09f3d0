"""Data-free knowledge distillation in JAX: a student from the teacher's weights alone."""

__version__ = "0.1.0"
