"""Shows which layers of a teacher can be feature layers, and what they would give.

    python -m dfkd_jax.inspect --config=configs/mnist.py

Takes the configs of `dfkd_jax.main`. Prints the network layer by layer; for each layer
that can be `config.targets.feature_layer`, rank and conditioning of the correlation R
of its units and the soft labels that come of it; and a recommendation. Layers of
feature maps, for which each soft label takes most of the network, are left out where
the network is a large one: --maps takes them too, minutes or hours. Reads no data.
"""

from absl import flags

from dfkd_jax import command_line, config, config_files, inspection
from dfkd_jax.errors import ConfigError

FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Loads the teacher of a config and prints what was found."""
    del argv
    settings = config_files.chosen(FLAGS.config)
    if not isinstance(settings, config.ExperimentConfig):
        raise ConfigError(
            "Name the config of a distillation with config.targets; this one is of the "
            f"kind {config.kind_of(settings)!r}."
        )

    from rich.console import Console
    from rich.table import Table

    from dfkd_jax.models import registry
    from dfkd_jax.runtime import parallel, progress
    from dfkd_jax.teachers import weights as teachers

    parallel.configure(cpu_devices=1)
    teacher = teachers.load(settings.teacher, dataset=settings.data.dataset)
    console = Console()
    progress.say(repr(teacher))
    table = Table(title="All layers with a kernel, in the order of their calls")
    for heading in ("layer", "output", "kernel", "then", "calls", "goes round it"):
        table.add_column(heading, no_wrap=heading == "layer")
    for layer in teacher.layers().values():
        table.add_row(
            layer.name,
            " × ".join(map(str, layer.output_shape)),
            " × ".join(map(str, layer.kernel_shape)),
            layer.activation,
            str(layer.calls),
            "" if layer.is_cut else "a skip connection",
        )
    console.print(table)
    if about := registry.about(settings.teacher.name):
        progress.say(f"{settings.teacher.name} of this package: {about}.")
    layers, left_out = inspection.choose_layers(
        settings.targets, teacher, maps=FLAGS.maps
    )
    if not layers:
        raise ConfigError(
            f"No layer of {settings.teacher.name!r} can be a feature layer with these "
            "config.targets: it takes a layer with a kernel that is called once."
        )
    found = inspection.inspect(settings.targets, teacher, layers, seed=settings.seed)
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
        f"Recommended: {inspection.recommend(found, num_classes=names)}\n"
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
