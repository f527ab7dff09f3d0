"""Shows which layers of a teacher can be feature layers, and what they would give.

    python -m dfkd_jax.inspect --config=configs/mnist.py

Takes the configs of `dfkd_jax.main`. Prints the network layer by layer; for each layer
that can be `config.targets.feature_layer`, rank and conditioning of the correlation R
of its units and the soft labels that come of it; and a recommendation. Layers of
feature maps, for which each soft label takes most of the network, are left out where
the network is a large one: --maps takes them too, minutes or hours. Reads no data.
"""

import dataclasses
from typing import Any

from absl import flags

from dfkd_jax import command_line, config, config_files
from dfkd_jax.errors import ConfigError

FLAGS = flags.FLAGS
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
    cost = jax.jit(teacher.logits).lower(images).cost_analysis()
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


def main(argv: list[str]) -> int:
    """Loads the teacher of a config and prints what was found."""
    del argv
    settings = config_files.chosen(FLAGS.config)
    if not isinstance(settings, config.ExperimentConfig):
        raise ConfigError(
            "Name the config of a distillation with config.targets; this one is of the "
            f"kind {config.kind_of(settings)!r}."
        )

    import jax
    import jax.numpy as jnp
    from flax import linen as nn
    from rich.console import Console
    from rich.table import Table

    from dfkd_jax.models import network, registry
    from dfkd_jax.runtime import parallel, progress
    from dfkd_jax.teachers import weights as teachers

    parallel.configure(cpu_devices=1)
    teacher = teachers.load(settings.teacher, dataset=settings.data.dataset)
    console = Console()
    images = jnp.zeros((1, *teacher.description.image_shape))
    summary = nn.tabulate(
        teacher.model.module,
        jax.random.key(0),
        console_kwargs={"force_terminal": False, "width": max(console.width, 110)},
    )
    progress.say(summary(images, **network.mode(teacher.model.module, train=False)))
    if about := registry.about(settings.teacher.name):
        progress.say(f"{settings.teacher.name} of this package: {about}.")
    layers, left_out = choose_layers(settings.targets, teacher, maps=FLAGS.maps)
    if not layers:
        raise ConfigError(
            f"No layer of {settings.teacher.name!r} can be a feature layer with these "
            "config.targets: it takes a layer with a kernel that is called once."
        )
    found = inspect(settings.targets, teacher, layers, seed=settings.seed)
    table = Table(title="Feature layers, with config.targets as it is")
    table.add_column("layer", no_wrap=True)
    for heading in (
        "units",
        "rank",
        "condition",
        "rarest class",
        "eff. classes",
        "top prob.",
    ):
        table.add_column(heading, justify="right")
    names = teacher.description.num_classes
    for item in found:
        table.add_row(
            item.layer,
            f"{item.num_units:,}",
            f"{item.rank:,}",
            f"{item.condition:,.3g}",
            f"{item.rarest_class}, {item.rarest:.2f}×",
            f"{item.effective_classes:.2f} of {names}",
            f"{item.top:.2f}",
        )
    console.print(table)
    if left_out:
        progress.say(
            f"Left out: {', '.join(left_out)}. Soft labels from their feature maps "
            "take long in so large a network; --maps takes them too."
        )
    progress.say(
        f"Recommended: {recommend(found, num_classes=names)}\n"
        "rank, condition: of the correlation R of the units; below full rank, the "
        "normal lives in a subspace, which is fine.\n"
        "rarest class: how often it is the likeliest, against its fair share (1×).\n"
        "eff. classes: exp of the mean entropy of soft labels; top prob.: mean "
        "probability of the likeliest class."
    )
    return 0


if __name__ == "__main__":
    config_files.define_flag("Config file of a distillation; required.")
    flags.DEFINE_bool("maps", False, "Layers of feature maps, of a large network too.")
    command_line.run(main)
