"""From a teacher's weights to an evaluated student, whatever the method.

The method (`methods/registry.py`) makes the student and leaves it in the work directory
as `student.safetensors`; here the directory is opened before, and `results.json`,
figures and the report are written after. What is finished is not done again. Unless the
method says otherwise by its kind of config, only the evaluation reads real data.
"""

import dataclasses
import datetime
import pathlib
import time
from typing import Any

from dfkd_jax import evaluation, limits
from dfkd_jax.config import StudentConfig, defaults, kind_of
from dfkd_jax.data import datasets, held_out
from dfkd_jax.errors import CheckpointError, DataUnavailableError
from dfkd_jax.methods import referee
from dfkd_jax.methods import registry as methods
from dfkd_jax.methods.task import Task
from dfkd_jax.models import adapters
from dfkd_jax.models.network import Model
from dfkd_jax.reporting import figures, findings, pages, tables
from dfkd_jax.reporting.settings import flatten
from dfkd_jax.runtime import (
    admission,
    files,
    hosts,
    parallel,
    progress,
    records,
    weights,
    writers,
)
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.runtime.workdir import in_place, open_workdir, source, versions
from dfkd_jax.settings import recorded
from dfkd_jax.teachers import weights as teachers


def run(
    config: StudentConfig,
    workdir: pathlib.Path,
    *,
    command: str,
    teacher: TrainedNetwork | None = None,
    student: Model | None = None,
) -> int:
    """Runs what is not finished yet; the exit status (0, or 3 without a test set).

    Args:
        config: Settings; their kind says which method makes the student.
        workdir: Everything goes here.
        command: For `results.json`.
        teacher: In place of what `config.teacher` names.
        student: In place of what `config.student` names.

    Raises:
        DfkdError: Of any stage; what was finished before is kept.
    """
    started = time.monotonic()
    method = methods.find(kind_of(config))
    progress.say(f"{config.name}: seed {config.seed}, work directory {workdir}")
    origin = _origin(config, method)
    teacher, student, description = _networks(config, teacher, student)
    limits.check(
        config,
        image_shape=description.image_shape,
        num_classes=description.num_classes,
        num_parameters=_check_student(student, description),
        workdir=workdir,
    )
    method.check(config, teacher, student)
    functions = {"teacher": teacher, "student": admission.filled(student, description)}
    identity = origin | _identity(config, functions, before=in_place(workdir))
    with open_workdir(workdir, identity):
        for role, network in functions.items():
            network.check_fingerprint(
                identity.get("fingerprints", {}).get(role), source=f"{workdir}/run.json"
            )
        stopwatch = writers.Stopwatch(workdir / "seconds.json")
        stopwatch.add("prepare", time.monotonic() - started)
        made = method.make_student(
            Task(
                config=config,
                teacher=teacher,
                student=student,
                description=description,
                class_names=evaluation.default_class_names(
                    teacher.description, config.data.dir
                ),
                workdir=workdir,
                stopwatch=stopwatch,
                warn_of_images=lambda: _warn(findings.of_transfer_set(workdir)),
            )
        )
        if not hosts.is_primary():
            return hosts.broadcast_from_process_0(None)
        figures.loss_curves(workdir)
        results = {
            "experiment": config.name,
            "seed": config.seed,
            **origin,
            "dataset": config.data.source,
            **made.metadata,
            **_told(config, teacher, made.student, workdir, stopwatch),
            "split": config.data.split,
            "teacher": {
                "network": config.teacher.name,
                "weights": config.teacher.weights,
                **_size(teacher),
            },
            "student": {"network": config.student.name, **_size(made.student)},
            "seconds": stopwatch.seconds,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "machine": parallel.describe(),
            "versions": versions(),
            "kind": kind_of(config),
            "source": source(),
            "config_sha256": files.digest(identity["config"]),
            "config": identity["config"],
            "changed_from_default": _changed(kind_of(config), identity["config"]),
        }
        status = _evaluate(config, teacher, made.student, results, workdir, stopwatch)
        pages.write(workdir)
        return hosts.broadcast_from_process_0(status)


def _origin(config, method) -> dict[str, Any]:
    """For records: what the student learns from, said where it is real data."""
    if not config.reads_real_data:
        return {"data_free": True}
    real = method.real_data(config)
    progress.say(f"NOT data-free: the student learns from {real}.")
    return {"data_free": False, "real_data": real}


def _networks(config, teacher, student):
    """Teacher and student, those given or those that are named, and what it will be."""
    if teacher is None:
        teacher = teachers.load(config.teacher, dataset=config.data.dataset)
    if config.data.dataset:
        evaluation.check_task(
            teacher.description,
            datasets.spec(config.data.dataset, config.data.dir),
            source=f"The teacher {config.teacher.weights}",
            setting="config.data.dataset",
        )
    description = dataclasses.replace(
        teacher.description,
        network=config.student.name,
        arguments=config.student.arguments,
        output="",
    )
    if student is None:
        student = adapters.create(
            config.student.name,
            num_classes=description.num_classes,
            arguments=config.student.arguments,
            image_shape=tuple(description.image_shape),
            seed=config.seed,
        )
    student = admission.finished(
        student, description.image_shape, network=description.network
    )
    return teacher, student, description


def _identity(config, functions, *, before):
    """For `run.json`: what must be the same when the run goes on.

    Args:
        config: Settings.
        functions: Teacher and student as networks, by role.
        before: `run.json` as it is there; empty for a new run.
    """
    settings = dataclasses.asdict(config)
    # What evaluation reads may change between two starts; real images that are learned
    # from may not.
    data = settings.pop("data")
    identity = {
        "kind": kind_of(config),
        "config": recorded(type(config), settings, before.get("config")),
        "teacher_sha256": functions["teacher"].sha256,
        "description": functions["student"].description.to_json(),
    }
    if config.reads_real_data:
        identity["dataset"] = data["dataset"]
    if fingerprints := _fingerprints(before, functions):
        identity["fingerprints"] = fingerprints
    return identity


def _changed(kind, recorded_settings):
    """For `results.json`: the defaults of settings that are something else."""
    known, recorded = (
        {name: list(v) if isinstance(v, tuple) else v for name, v in flat.items()}
        for flat in (flatten(defaults(kind)), flatten(recorded_settings))
    )
    return {
        name: known[name]
        for name, value in recorded.items()
        if name in known and value != known[name]
    }


def _size(network):
    """For `results.json`: a network, before it is evaluated."""
    return {
        "sha256": network.sha256,
        "parameters": weights.count(network.variables),
        "test_accuracy": None,
    }


def _told(config, teacher, student, workdir, stopwatch):
    """For `results.json`: what can be told of a data-free student without data."""
    if config.reads_real_data:
        return {}
    path = workdir / "results.json"
    before = records.read(path) if path.exists() else {}
    if "referee" in before and _at(before, "student.sha256") == student.sha256:
        found = before["referee"]
    else:
        started = time.monotonic()
        with progress.busy("Referee: asking teacher and student about other images"):
            found = referee.judge(teacher, student)
        stopwatch.add("evaluation", time.monotonic() - started)
    accuracy = config.data.teacher_accuracy or None
    return {"referee": found, "expected": referee.estimate(found, accuracy)}


def _check_student(student, description):
    """Returns how many parameters it has; it must suit the teacher's task."""
    expected, num_classes = admission.trace(
        student, description.image_shape, network=description.network
    )
    if num_classes != description.num_classes:
        raise CheckpointError(
            f"The student {description.network!r} tells {num_classes} classes apart, "
            f"the teacher {description.num_classes}: change config.student.arguments."
        )
    admission.check_trainable(
        student, expected, description.image_shape, network=description.network
    )
    return weights.count(expected)


def _fingerprints(before, functions):
    """Those in `run.json`, which rounds elsewhere; where there is none, ours.

    Empty where an earlier release made the run.
    """
    if before:
        return before.get("fingerprints", {})
    ours = {role: network.fingerprint for role, network in functions.items()}
    return hosts.broadcast_from_process_0(ours)


def _evaluate(config, teacher, student, results, workdir, stopwatch):
    path = workdir / "results.json"
    split = config.data.split
    before = records.read(path) if path.exists() else {}
    if before:
        _check_results(path, before, results)
        # Of another test set that is evaluated anew.
        same = before.get("dataset") == results["dataset"]
        if same and before["student"].get(f"{split}_accuracy") is not None:
            progress.say("Finished before: nothing to do.")
            with records.as_written(path):
                tables.print_summary(before)
            return 0
    # Those of the other split are kept until this one is had.
    if not before.get("student", {}).get("evaluation"):
        _keep_results(results, workdir)
    started = time.monotonic()
    try:
        real = held_out.load(config.data, split=split, report=progress.say)
    except DataUnavailableError as error:
        _warn(results.get("warnings", ()))  # None yet if of another split.
        tables.say_expected(results)
        progress.warn(
            f"The student is made ({workdir / 'student.safetensors'}) but not "
            "evaluated. "
            f"{error} The same command then does the evaluation only."
        )
        return error.exit_status
    if real is None:
        _warn(results.get("warnings", ()))  # None yet if of another split.
        tables.say_expected(results)
        progress.say("Not evaluated: no test set is named in config.data.")
        return 0
    progress.say(f"Evaluation on the {split} set of {real.name}")
    real.check(teacher.description, source=f"The teacher {config.teacher.weights}")
    for role, network in (("teacher", teacher), ("student", student)):
        found = evaluation.evaluate(
            network,
            real.images,
            real.labels,
            reference=teacher,
            class_names=real.class_names,
        )
        # Of a validation part, `test_accuracy` stays None: it is not one.
        results[role] |= {f"{split}_accuracy": found["accuracy"], "evaluation": found}
    stopwatch.add("evaluation", time.monotonic() - started)
    results["test_set_sha256"] = real.sha256
    results["seconds"] = stopwatch.seconds
    _keep_results(results, workdir)
    tables.print_summary(results)
    return 0


def _keep_results(results, workdir):
    """Writes `results.json`, with what must not be missed of them."""
    path = workdir / "results.json"
    files.write_json(path, results, sealed=True)
    results["warnings"] = findings.warnings(workdir)
    files.write_json(path, results, sealed=True)


def _warn(warnings):
    for warning in warnings:
        progress.warn(warning)


def _check_results(path, before, results):
    """Raises CheckpointError where `results.json` is of another run."""
    for key in ("seed", "teacher.sha256", "student.sha256", "transfer_set_sha256"):
        old, new = _at(before, key), _at(results, key)
        if old != new:
            raise CheckpointError(
                f"{path} is of another run ({key} is {old}, not {new}): delete it, and "
                "the same command makes it again."
            )


def _at(tree, key):
    """`tree["a"]["b"]` for the key "a.b"; None where there is none."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
