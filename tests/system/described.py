"""Networks as one value, for tests that make their own."""

from typing import Any

from dfkd_jax.models.network import Linen
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.runtime.trained import TrainedNetwork


def description(image_shape: Any, **fields: Any) -> Description:
    """Of a network called "net" with ten classes, where `fields` says nothing else."""
    channels = image_shape[-1]
    given = {"mean": 0.5, "std": 0.25} | fields
    per_channel = {
        name: (given[name],) * channels
        if isinstance(given[name], float)
        else given[name]
        for name in ("mean", "std")
    }
    known = {"network": "net", "num_classes": 10, "dataset": ""}
    return Description(**known | given | per_channel, image_shape=image_shape)


def network(
    module: Any, variables: Any, image_shape: Any, **fields: Any
) -> TrainedNetwork:
    """A linen module with variables."""
    return TrainedNetwork(
        model=Linen(module),
        variables=variables,
        description=description(image_shape, **fields),
    )
