r"""Makes a run for every combination of settings and every seed, and a table of them.

    python -m dfkd_jax.sweep --config=configs/mnist.py --workdir=sweeps/sigma \
        --set=targets.sigma=0.5,1,1.5,2,3 --seeds=0,1,2

Each run is an ordinary one (`python -m dfkd_jax.main`) in a process of its own, in
WORKDIR/NAME/seed<n>, with what it prints beside it in seed<n>.log. A command that was
interrupted goes on where it was when it is given again: finished runs are skipped, the
one under way goes on. A run that fails does not stop the rest. At the end there is a
table, and the same in WORKDIR/sweep.json. Everything is checked before anything starts;
--dry_run shows the commands.

What is varied:

    --set=KEY=V1,V2,V3     values of one setting; with several --set, all combinations
    --case="KEY=V KEY=V"   a choice of one or several settings; all --case together are
                           alternatives, and --case= is the one that changes nothing

A value may be a tuple: --set="synthesis.grid_factors=(4,2,1),(2,1),(1,)". A text with
commas or spaces takes quotation marks: --set='student.module="a:B","a:C"'. `variant` is
what follows the config's colon: --set=variant=default,smoke. Settings that are the same
for all runs: --config.distillation.num_steps=5000.

Runs that differ in the student or its distillation alone share one transfer set of each
seed: the first makes it, the others get hard links to it and compare all checksums, and
end in the same student as by themselves. Their seconds in sweep.json contain those of
the synthesis that they were spared. --noshare makes every run do its own.

--nopictures saves the time for pictures and report.html; `python -m dfkd_jax.report`
makes the report of a run later.

Hyper-parameters are chosen on the validation part (the last 5,000 training images), so
that is what --split reads by default.

Examples, the ablations of the paper (all of them: docs/ablations.md):

  variance of the features
    --set=targets.sigma=0.5,1,1.5,2,3
  activation loss: its weight, and off
    --set=synthesis.activation_weight=0,0.01,0.05,0.1,0.5
  feature layer: FC-1, FC-2, the logits; and ZSKD's Dirichlet over the softmax
    --case=targets.feature_layer=dense_1 --case=targets.feature_layer=dense_2
    --case=targets.feature_layer=output --case=targets.distribution=dirichlet
  image prior, one part off at a time
    --case= --case=synthesis.total_variation=0 --case=synthesis.l2=0
    --case="synthesis.grid_factors=(1,)" --case=synthesis.max_shift=0
  stored labels against fresh ones
    --case= --case="distillation.mixup=0 distillation.cutmix=0"
    --case="distillation.labels=stored distillation.mixup=0 distillation.cutmix=0"
  number of images, of iterations
    --set=synthesis.num_images=1000,10000,100000
    --set=synthesis.num_steps=50,100,200,400

Exit status: 0 all runs are done; 1 a run failed (the others are done), or disk; 2 flags
or config; 3 the data that evaluation reads cannot be had; 130 interrupted.
"""

import pathlib
import shlex
import sys

from absl import flags

from dfkd_jax import command_line, config_files
from dfkd_jax.data import held_out
from dfkd_jax.errors import ConfigError, DataUnavailableError
from dfkd_jax.runtime import files, progress
from dfkd_jax.sweeps import execution, outcome, plan

FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Plans, checks and makes the runs; 1 if one failed."""
    del argv
    config_file = config_files.required(FLAGS.config)
    if not FLAGS.workdir:
        raise ConfigError("Name a folder for the runs: --workdir=sweeps/sigma.")
    workdir = pathlib.Path(FLAGS.workdir)
    fixed = dict(command_line.changes)
    axes = [plan.axis_of_set(text) for text in FLAGS["set"].value or ()]
    if FLAGS.case:
        axes.append(plan.axis_of_cases(FLAGS.case))
    runs = plan.plan(
        config_file,
        fixed,
        axes,
        seeds=plan.seeds(FLAGS.seeds),
        split=FLAGS.split,
        workdir=workdir,
    )
    outcome.check_workdirs(runs, workdir / "sweep.json")
    if FLAGS.dry_run:
        for run in runs:
            progress.say(execution.command(run))
        return 0
    _check_data(runs)
    progress.say(f"{len(runs)} runs in {workdir}, {FLAGS.jobs} at a time")
    with files.lock(workdir):
        failed = execution.execute(
            runs, jobs=FLAGS.jobs, share=FLAGS.share, pictures=FLAGS.pictures
        )
        summary = outcome.summarize(
            runs,
            failed,
            name=workdir.name,
            config_file=config_file,
            fixed=fixed,
            command="python -m dfkd_jax.sweep " + shlex.join(sys.argv[1:]),
        )
        outcome.print_table(summary)
        outcome.write(workdir / "sweep.json", summary)
    for run, reason in failed.items():
        progress.warn(f"{run.title} failed: {reason}")
    return 1 if failed else 0


def _check_data(runs):
    """Raises where a run could not be evaluated: a sweep is about accuracies."""
    checked = []
    for run in runs:
        data = run.settings.data
        if data in checked:
            continue
        checked.append(data)
        if not data.source:
            raise ConfigError(
                "config.data names no data set, so no run would be evaluated: set "
                "config.data.dataset or config.data.file."
            )
        availability = held_out.preflight(data)
        if not availability.obtainable:
            raise DataUnavailableError(
                f"The {data.split} set cannot be had: {availability.message}"
            )


if __name__ == "__main__":
    config_files.define_flag("Config file of all runs, with `:variant` if any.")
    flags.DEFINE_multi_string("set", [], "KEY=V1,V2,…: a setting and its values.")
    flags.DEFINE_multi_string("case", [], '"KEY=V KEY=V": one of several alternatives.')
    flags.DEFINE_string("seeds", "0,1,2", "Seeds of every combination.")
    flags.DEFINE_enum(
        "split", "validation", ["validation", "test"], "What evaluation reads."
    )
    flags.DEFINE_string("workdir", None, "Where the runs and sweep.json go; required.")
    flags.DEFINE_integer(
        "jobs", 1, "Runs at a time; each uses the whole machine.", lower_bound=1
    )
    flags.DEFINE_boolean("share", True, "Share transfer sets where they are equal.")
    flags.DEFINE_boolean(
        "pictures", True, "Let runs draw pictures and write report.html."
    )
    flags.DEFINE_boolean("dry_run", False, "Print the commands and stop.")
    command_line.run(main)
