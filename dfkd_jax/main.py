"""Makes a student from a teacher's weights alone, or trains a teacher.

    python -m dfkd_jax.main --config=configs/mnist.py
    python -m dfkd_jax.main --config=configs/mnist.py:smoke
    python -m dfkd_jax.main --config=configs/mnist.py:dafl
    python -m dfkd_jax.main --config=configs/teachers/mnist.py

A variant follows the file after a colon; those that are baselines on real data say so
when they start and go to runs/real_data/. Any setting can be changed:
--config.synthesis.num_images=24000 --config.seed=1. The work directory gets the
student, results.json, metrics.jsonl and pictures. A command that was interrupted goes
on where it was when it is given again. Config files are code: for settings of people
whom you do not know take JSON, --config=settings.json.

On several machines, start one process on each with the same flags and the same work
directory, which they must share (docs/scaling.md):

    python -m dfkd_jax.main --config=configs/mnist.py \
        --coordinator=HOST:PORT --num_processes=2 --process_id=0

Under Slurm, Open MPI, Kubernetes and on TPU pods JAX finds these three by itself.

--verbosity=0 brings back what libraries log, and shows tracebacks.

Exit status: 0 done; 1 weights, checkpoint, disk or numbers; 2 flags or config; 3 the
student is made but the held-out test set could not be had (give the command again to
evaluate only); 130, 143 stopped by SIGINT, SIGTERM, with the step under way saved.
"""

import dataclasses
import pathlib
import shlex
import sys

from absl import flags

from dfkd_jax import command_line, config, config_files, limits, settings_help
from dfkd_jax.data import datasets, held_out
from dfkd_jax.runtime import hosts, progress

FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Flags to config to stages; the exit status."""
    del argv
    settings = config_files.chosen(FLAGS.config)
    if FLAGS.show:
        values = dataclasses.asdict(settings)
        defaults = config.defaults(config.kind_of(settings))
        print(settings_help.shown(type(settings), values, defaults))
        return 0
    workdir = pathlib.Path(
        FLAGS.workdir or f"runs/{settings.folder}/seed{settings.seed}"
    )
    hosts.named(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)  # Or refuses.
    availability = held_out.preflight(settings.data)
    hosts.join(
        coordinator=FLAGS.coordinator,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
        detect=FLAGS.distributed == "auto",
    )
    from dfkd_jax.runtime import parallel

    command = "python -m dfkd_jax.main " + shlex.join(sys.argv[1:])
    held_out.require(settings, availability)
    if config.kind_of(settings) == "teacher":
        spec = datasets.spec(settings.data.dataset, settings.data.dir)
        limits.check(
            settings,
            image_shape=spec.image_shape,
            num_classes=len(spec.class_names),
            num_parameters=0,
            workdir=workdir,
        )
        from dfkd_jax.teachers import pipeline
    else:
        from dfkd_jax import pipeline
    parallel.configure(cpu_devices=settings.cpu_devices)
    status = pipeline.run(settings, workdir, command=command)
    # Of a status that is none of success, the last word is what to do about it.
    if not status and isinstance(settings, config.StudentConfig) and hosts.is_primary():
        _say_end(settings, workdir)
    return status


def _say_end(settings, workdir):
    """Where the student is, and what people do with it next."""
    next_command = f"export --checkpoint={workdir} --format=onnx --output=student.onnx"
    if not settings.data.source:
        next_command = f"evaluate --checkpoint={workdir} --data_file=test.npz"
    if settings.student.module:
        next_command += f" --module={settings.student.module}"
    progress.say(f"Student: {workdir / 'student.safetensors'}")
    progress.say(f"Next: python -m dfkd_jax.{next_command}")


if __name__ == "__main__":
    config_files.define_flag("Config file, with `:variant` if it has any; required.")
    flags.DEFINE_string(
        "workdir",
        None,
        "Where everything goes; default runs/<name>/seed<seed>, of baselines on real "
        "data runs/real_data/<name>/seed<seed>.",
    )
    flags.DEFINE_boolean("show", False, "Print every setting and what it means; stop.")
    flags.DEFINE_string("coordinator", "", "host:port of process 0 of several.")
    flags.DEFINE_integer("num_processes", None, "Number of processes.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "off"],
        "auto: join the processes of a cluster that JAX finds, if there are several; "
        "off: only those that --coordinator names.",
    )
    command_line.run(main)
