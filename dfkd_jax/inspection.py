"""What each layer of a teacher would give as the feature layer. Imports no JAX."""

import dataclasses
from typing import Any

from dfkd_jax.errors import ConfigError

NUM_LABELS = 2_000
AT_ONCE = 20  # Of these; a soft label takes `targets.candidates` feature maps.
LARGE = 1e12  # Operations for the soft labels of a layer.
RARE = 0.1  # Of its fair share: below, a class is drawn too seldom.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a feature layer would give.

    Attributes:
        layer: Name.
        num_units: Dimension of the normal.
        rank: Of the correlation R of the units.
        condition: Largest eigenvalue of R over the smallest that is not 0.
        rarest: Share of the rarest class among the likeliest classes of soft labels,
            times the number of classes: 1 when all classes are drawn equally often.
        rarest_class: Which one that is.
        effective_classes: exp of the mean entropy of soft labels: 1 for one-hot ones,
            the number of classes for uniform ones.
        top: Mean probability of the likeliest class.
    """

    layer: str
    num_units: int
    rank: int
    condition: float
    rarest: float
    rarest_class: int
    effective_classes: float
    top: float


def choose_layers(
    targets: Any, teacher: Any, *, maps: bool
) -> tuple[dict[str, Any], list[str]]:
    """Layers that can be the feature layer, and the names of those left out.

    Args:
        targets: `config.TargetsConfig`; its `feature_layer` is passed over.
        teacher: `runtime.trained.TrainedNetwork`.
        maps: Whether to take layers of feature maps if the network is a large one.
    """
    import jax
    import jax.numpy as jnp

    from dfkd_jax.methods import soft_targets

    images = jnp.zeros((1, *teacher.description.image_shape))
    cost: Any = jax.jit(teacher.logits).lower(images).cost_analysis()
    maps = maps or cost["flops"] * targets.candidates * NUM_LABELS <= LARGE
    taken, left_out = {}, []
    for name, layer in teacher.layers().items():
        try:
            asked = dataclasses.replace(targets, feature_layer=name)
            soft_targets.find_feature_layer(asked, teacher)
        except ConfigError:
            continue  # Called twice, or without what these settings need.
        if maps or len(layer.output_shape) == 1:
            taken[name] = layer
        else:
            left_out.append(name)
    return taken, left_out


def inspect(
    targets: Any, teacher: Any, layers: dict[str, Any], *, seed: int
) -> list[Inspection]:
    """What each of `layers` would give as the feature layer.

    Args:
        targets: `config.TargetsConfig`; its `feature_layer` is passed over.
        teacher: `runtime.trained.TrainedNetwork`.
        layers: From `choose_layers`.
        seed: Of the soft labels.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dfkd_jax.methods import soft_targets
    from dfkd_jax.runtime import progress, rng
    from dfkd_jax.targets import gaussian

    keys = rng.per_example(jax.random.key(seed), jnp.arange(NUM_LABELS))

    def look_at(name, layer):
        asked = dataclasses.replace(targets, feature_layer=name)
        draw = soft_targets.make_targets(asked, teacher, layer)
        parts = np.split(keys, NUM_LABELS // AT_ONCE)
        labels = np.concatenate([draw(part) for part in parts])
        counts = np.bincount(labels.argmax(-1), minlength=labels.shape[1])
        entropy = -(labels * np.log(np.maximum(labels, 1e-30))).sum(-1).mean()
        kernel = soft_targets.find_kernel(asked, teacher, layer)
        vectors = gaussian.unit_vectors(
            kernel, weights=targets.weights, window=targets.window
        )
        values = np.linalg.eigvalsh(np.asarray(gaussian.correlation(vectors)))
        values = values[values > values.max() * 1e-6]
        return Inspection(
            layer=name,
            num_units=layer.num_units,
            rank=len(values),
            condition=float(values.max() / values.min()),
            rarest=float(counts.min() / counts.mean()),
            rarest_class=int(counts.argmin()),
            effective_classes=float(np.exp(entropy)),
            top=float(labels.max(-1).mean()),
        )

    found = []
    with progress.track("inspection", total=len(layers), done=0, unit="layers") as show:
        for name, layer in layers.items():
            found.append(look_at(name, layer))
            show(len(found))
    return found


def recommend(found: list[Inspection], *, num_classes: int) -> str:
    """A feature layer and the reason: the last but one, unless a class goes missing."""
    usable = [item for item in found if item.rarest >= RARE]
    before = found[:-1]
    if not usable:
        best = max(found, key=lambda item: item.rarest)
        advice = [
            f"feature_layer={best.layer}, though class {best.rarest_class} is hardly "
            "ever likeliest: raise config.targets.sigma, or try another "
            "config.targets.mean or targets.distribution=dirichlet"
        ]
    else:
        best = next((i for i in reversed(before) if i in usable), usable[-1])
        advice = [f"feature_layer={best.layer}"]
    if best.effective_classes > 0.9 * num_classes:
        advice.append("soft labels are nearly alike: raise config.targets.sigma")
    if best.top > 0.95:
        advice.append("soft labels are nearly one-hot: lower config.targets.sigma")
    return "; ".join(advice)
