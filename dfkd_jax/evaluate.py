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
    from dfkd_jax.data import datasets, held_out

    if FLAGS.dataset:
        datasets.spec(FLAGS.dataset, FLAGS.data_dir)
    for name in ("dataset", "data_dir", "raw_dir"):
        if FLAGS.data_file and FLAGS[name].value:
            raise ConfigError(f"--{name} has no effect with --data_file: leave it out.")

    from dfkd_jax.runtime import files, parallel, progress
    from dfkd_jax.teachers import weights as teachers

    if FLAGS.output:
        files.check_replaceable(pathlib.Path(FLAGS.output), '{\n  "checkpoint": ')
    parallel.configure(cpu_devices=0)
    checkpoint = pathlib.Path(FLAGS.checkpoint)
    path, network = evaluation.load_checkpoint(checkpoint, module=FLAGS.module)
    description = network.description
    dataset = "" if FLAGS.data_file else FLAGS.dataset or description.dataset
    if dataset:
        spec = datasets.spec(dataset, FLAGS.data_dir)
        evaluation.check_task(description, spec, source=str(path), setting="--dataset")
    elif not FLAGS.data_file:
        raise ConfigError(
            f"{path} names no data set: say --dataset={'|'.join(datasets.NAMES)} or "
            "--data_file=FILE.npz."
        )
    teacher, compared = FLAGS.teacher, None
    if FLAGS.teacher_module and not (teacher or evaluation.find_teacher(checkpoint)):
        raise ConfigError("--teacher_module: there is no teacher; leave it out.")
    if teacher:
        _, compared = evaluation.load_checkpoint(
            teachers.find(teacher),
            module=FLAGS.teacher_module,
            flag="--teacher_module",
        )
        evaluation.check_reference(
            description, compared.description, source=f"--teacher={teacher}"
        )
    elif teacher := evaluation.find_teacher(checkpoint):
        try:
            compared = evaluation.load_teacher(
                checkpoint, module=FLAGS.teacher_module, flag="--teacher_module"
            )
        except (CheckpointError, ConfigError) as error:
            progress.warn(f"Not compared with the teacher of the run. {error}")
            teacher = ""
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
