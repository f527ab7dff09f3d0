"""Keras 3 with JAX as its backend."""

from typing import Any

from dfkd_jax.errors import ConfigError
from dfkd_jax.models.adapters import Network, checked, needed
from dfkd_jax.models.adapters.function import from_function


def from_keras(model: Any) -> Network:
    """A network of a live Keras model.

    Raises:
        ConfigError: It is no Keras model, not built yet, or of another backend.
    """
    keras = needed("keras", extra="keras")
    model = checked(model, keras.Model, name="from_keras")
    if keras.backend.backend() != "jax":
        raise ConfigError(
            f"Keras computes with {keras.backend.backend()}: set the environment "
            "variable KERAS_BACKEND=jax before Keras is imported."
        )
    if not model.built:
        raise ConfigError(
            f"The Keras model {model.name!r} has no weights yet: call it on images "
            "once."
        )
    groups = model.trainable_variables, model.non_trainable_variables
    variables = {one.path: one.value for group in groups for one in group}
    if len(variables) < sum(map(len, groups)):
        raise ConfigError(
            f"Two variables of the Keras model {model.name!r} have one path: name its "
            "layers apart."
        )

    def function(variables, images):
        given = ([variables[one.path] for one in group] for group in groups)
        return model.stateless_call(*given, images, training=False)[0]

    return from_function(function, variables, source=f"Keras {model.name}")
