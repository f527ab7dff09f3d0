"""Keras 3 with JAX as its backend."""

from typing import Any

import jax

from dfkd_jax.errors import ConfigError
from dfkd_jax.models import adapters, registry


class Keras(adapters.Live):
    """A model: trainable variables, and others but for the states of its seeds."""

    def __init__(self, model: Any):
        """Takes the model, which is left as it is.

        Raises:
            ConfigError: It is not built yet, or of another backend.
        """
        keras = adapters.needed("keras", extra="keras")
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
        self._model, self.name = model, registry.name_of(model)
        groups = model.trainable_variables, model.non_trainable_variables
        found = [{one.path: one.value for one in group} for group in groups]
        if sum(map(len, found)) < sum(map(len, groups)):
            raise ConfigError(
                f"Two variables of the Keras model {model.name!r} have one path: name "
                "its layers apart."
            )
        self._params, others = found
        self._seeds = {path: v for path, v in others.items() if _is_seed(path)}
        self._others = {path: v for path, v in others.items() if not _is_seed(path)}
        self.variables = adapters.groups(self._params, self._others)
        adapters.check_weights(self.variables, source=f"The Keras model {model.name}")

    def __call__(self, variables: Any, images: Any, *key: Any) -> Any:
        """See `Model`."""
        params = adapters.filled(self._params, variables["params"])
        others = adapters.filled(self._others, variables.get("batch_stats", {}))
        for place, (path, seed) in enumerate(self._seeds.items()):
            others[path] = seed
            if key:
                drawn = jax.random.fold_in(key[0], place)
                others[path] = jax.random.bits(drawn, seed.shape, seed.dtype)
        names = [one.path for one in self._model.non_trainable_variables]
        logits, changed = self._model.stateless_call(
            [params[one.path] for one in self._model.trainable_variables],
            [others[name] for name in names],
            images,
            training=bool(key),
        )
        if not key:
            return logits
        changed = dict(zip(names, changed, strict=True))
        return logits, adapters.groups(
            {}, {name: changed[name] for name in self._others}
        )


def _is_seed(path):
    return path.endswith("seed_generator_state")


def adapt(model: Any) -> tuple[Keras, Any]:
    """A live Keras model."""
    found = Keras(model)
    return found, found.variables
