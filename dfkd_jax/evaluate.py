"""Evaluates a checkpoint on a held-out test set.

    python -m dfkd_jax.evaluate --checkpoint=runs/mnist/seed0 --dataset=mnist

`--checkpoint` is a work directory of `dfkd_jax.main`, its `student.safetensors`, its
`student/` folder of Orbax checkpoints, or any weights this package wrote. Prints a
table, and writes the same as JSON with `--output`.
"""

import pathlib

from absl import flags

from dfkd_jax import command_line, evaluation
from dfkd_jax.errors import CheckpointError, ConfigError

FLAGS = flags.FLAGS
SPLITS = ("test", "validation", "train")


def main(argv: list[str]) -> int:
    """Loads a checkpoint, evaluates it, prints and writes what came out."""
    del argv
    if not FLAGS.checkpoint:
        raise ConfigError("Name a checkpoint: --checkpoint=runs/mnist/seed0.")
    if FLAGS.split not in SPLITS:
        raise ConfigError(f"--split={FLAGS.split} is none of {', '.join(SPLITS)}.")

    from dfkd_jax.config import DataConfig
    from dfkd_jax.data import held_out

    held_out.check_flags(
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        raw_dir=FLAGS.raw_dir,
        data_file=FLAGS.data_file,
    )

    from dfkd_jax.runtime import files, parallel, progress

    if FLAGS.output:
        files.check_replaceable(pathlib.Path(FLAGS.output), '{\n  "checkpoint": ')
    parallel.configure(cpu_devices=0)
    checkpoint = pathlib.Path(FLAGS.checkpoint)
    path, network = evaluation.load_checkpoint(checkpoint, module=FLAGS.module)
    description = network.description
    dataset = _dataset(path, description)
    teacher, compared = _reference(checkpoint, description)
    settings = DataConfig(
        dataset=dataset,
        file=FLAGS.data_file,
        dir=FLAGS.data_dir,
        raw_dir=FLAGS.raw_dir,
    )
    held_out.preflight(settings)
    real = held_out.load(settings, split=FLAGS.split, report=progress.say)
    assert real is not None
    real.check(description, source=str(path))
    figures = evaluation.evaluate(
        network,
        real.images,
        real.labels,
        reference=compared,
        class_names=real.class_names,
    )
    dataset = real.name
    progress.say(f"{path}: {description.network} on {dataset}, {FLAGS.split} split\n")
    if teacher:
        progress.say(f"compared with the teacher {teacher}\n")
    progress.say(evaluation.table(figures))
    if FLAGS.output:
        origin = {
            "checkpoint": str(path),
            "teacher": teacher,
            "dataset": dataset,
            "split": FLAGS.split,
        }
        files.write_json(pathlib.Path(FLAGS.output), origin | figures)
    return 0


def _dataset(path, description):
    """The name of the data set to read; empty for a file."""
    from dfkd_jax.data import datasets

    if FLAGS.data_file:
        return ""
    dataset = FLAGS.dataset or description.dataset
    if not dataset:
        raise ConfigError(
            f"{path} names no data set: say --dataset={'|'.join(datasets.NAMES)} or "
            "--data_file=FILE.npz."
        )
    spec = datasets.spec(dataset, FLAGS.data_dir)
    evaluation.check_task(description, spec, source=str(path), setting="--dataset")
    return dataset


def _reference(checkpoint, description):
    """The teacher to compare with, its path or "" and the network or None."""
    from dfkd_jax.runtime import progress
    from dfkd_jax.teachers import weights as teachers

    teacher = FLAGS.teacher or evaluation.find_teacher(checkpoint)
    if not teacher:
        if FLAGS.teacher_module:
            raise ConfigError("--teacher_module: there is no teacher; leave it out.")
        return "", None
    options = {"module": FLAGS.teacher_module, "flag": "--teacher_module"}
    if FLAGS.teacher:
        _, found = evaluation.load_checkpoint(teachers.find(teacher), **options)
        evaluation.check_reference(
            description, found.description, source=f"--teacher={teacher}"
        )
        return teacher, found
    try:
        return teacher, evaluation.load_teacher(checkpoint, **options)
    except (CheckpointError, ConfigError) as error:
        progress.warn(f"Not compared with the teacher of the run. {error}")
        return "", None


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "Work directory, weights or checkpoints.")
    flags.DEFINE_string("dataset", "", "Default: what the network was made for.")
    flags.DEFINE_string("split", "test", "test, validation or train.")
    flags.DEFINE_string(
        "teacher",
        "",
        "Shipped weights, or a file, to count agreement with; default: the teacher of "
        "the checkpoint's run.",
    )
    flags.DEFINE_string(
        "module", "", "package.module:Class of a network that is not of this package."
    )
    flags.DEFINE_string("teacher_module", "", "Likewise, of the teacher's network.")
    flags.DEFINE_string(
        "data_file", "", "An .npz file with images and labels, in place of --dataset."
    )
    flags.DEFINE_string("data_dir", "", "TFDS data folder; default in the cache.")
    flags.DEFINE_string("raw_dir", "", "Folder with the data set's original files.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")
    command_line.run(main)
