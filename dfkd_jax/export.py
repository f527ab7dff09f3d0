"""Writes a network, or the pseudo samples it learned from, for use without dfkd_jax.

    python -m dfkd_jax.export --checkpoint=runs/mnist/seed0 --format=onnx --output=student.onnx
    python -m dfkd_jax.export --checkpoint=mnist_lenet5 --format=stablehlo --output=teacher.stablehlo
    python -m dfkd_jax.export --checkpoint=runs/mnist/seed0 --format=npz --output=transfer_set.npz

Formats of a network. The file takes float32 pixels from 0 to 1, [batch, height, width,
channels] with any batch, normalizes them itself and gives logits [batch, classes]:

    stablehlo    for JAX, through jax.export; cpu, cuda and tpu in one file; what a user
                 has to know is in a JSON file beside it
    onnx         for ONNX Runtime and whatever else reads ONNX; needs the extra onnx
    safetensors  the weights alone, with a description; for archives and for dfkd_jax

Formats of the transfer set of a work directory (pixels from 0 to 1, soft labels):

    npz          one file for NumPy and all that reads it
    tfds         a folder for tfds.builder_from_directory (ArrayRecord)

Whatever is written is read back and compared before it takes its name.
Exit status: 0 done; 1 weights, formats or disk; 2 flags.
"""  # noqa: E501 - Commands are one line each, to be copied.

import pathlib

from absl import flags

from dfkd_jax import command_line, evaluation
from dfkd_jax.errors import ConfigError, did_you_mean

FLAGS = flags.FLAGS
NETWORK_FORMATS = ("stablehlo", "onnx", "safetensors")
TRANSFER_SET_FORMATS = ("npz", "tfds")
FORMATS = (*NETWORK_FORMATS, *TRANSFER_SET_FORMATS)
ROLES = ("student", "teacher")


def main(argv: list[str]) -> int:
    """Loads, writes, compares, and says what came out."""
    del argv
    for name, example in (
        ("checkpoint", "runs/mnist/seed0"),
        ("format", "onnx"),
        ("output", "student.onnx"),
    ):
        if not getattr(FLAGS, name):
            raise ConfigError(f"Say --{name}, such as --{name}={example} (see --help).")
    if FLAGS.format not in FORMATS:
        raise ConfigError(
            f"--format={FLAGS.format} is none of {', '.join(FORMATS)}."
            + did_you_mean(FLAGS.format, FORMATS)
        )
    if FLAGS.which and FLAGS.which not in ROLES:
        raise ConfigError(f"--which={FLAGS.which} is none of {', '.join(ROLES)}.")
    path = pathlib.Path(FLAGS.output).expanduser().absolute()
    if FLAGS.format in TRANSFER_SET_FORMATS:
        if FLAGS.which or FLAGS.module:
            raise ConfigError(
                f"--format={FLAGS.format} writes a transfer set, which has no --which "
                "and no --module: leave them out."
            )
        return _export_transfer_set(path)
    return _export_network(path)


def _export_network(path):
    from dfkd_jax.exporting import networks, sources, to_onnx
    from dfkd_jax.runtime import parallel, progress, weights

    if FLAGS.format == "onnx":
        to_onnx.check_installed()
    sources.check_output(path, FLAGS.format, overwrite=FLAGS.overwrite)
    parallel.configure(cpu_devices=0)
    network = sources.load_network(
        FLAGS.checkpoint, which=FLAGS.which, module=FLAGS.module
    )
    description = network.description
    difference = networks.write(
        path,
        network,
        format_name=FLAGS.format,
        class_names=evaluation.default_class_names(description),
    )
    shape = ", ".join(map(str, description.image_shape))
    progress.say(
        f"{path}: {description.network}, {weights.count(network.variables):,} "
        f"parameters, {path.stat().st_size:,} bytes of {FLAGS.format}"
    )
    if FLAGS.format != "safetensors":
        progress.say(
            f"images: float32 [batch, {shape}], 0 to 1; logits: float32 [batch, "
            f"{description.num_classes}]"
        )
    progress.say(
        "Read back and compared with the network on random images: logits differ by "
        f"{difference:.1e} at most."
    )
    return 0


def _export_transfer_set(path):
    from dfkd_jax.exporting import sources, transfer_sets
    from dfkd_jax.runtime import progress

    sources.check_output(path, FLAGS.format, overwrite=FLAGS.overwrite)
    source = sources.load_transfer_set(FLAGS.checkpoint)
    transfer_sets.FORMATS[FLAGS.format](path, source)
    shape = ", ".join(map(str, source.manifest.image_shape))
    progress.say(
        f"{path}: {len(source):,} images float32 [{shape}], 0 to 1, with soft labels "
        f"float32 [{source.manifest.num_classes}]"
    )
    progress.say("Read back and compared with the transfer set: equal.")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(
        "checkpoint",
        None,
        "Work directory, weights, folder of checkpoints, or name of shipped weights.",
    )
    flags.DEFINE_string("format", None, f"{', '.join(FORMATS)}.")
    flags.DEFINE_string("output", None, "File to write; for tfds a folder.")
    flags.DEFINE_string(
        "which", "", "student or teacher of a work directory; default: what it made."
    )
    flags.DEFINE_string(
        "module",
        "",
        "package.module:Class of the network, if it is none of this package's.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier export wrote.")
    command_line.run(main)
