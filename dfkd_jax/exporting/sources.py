"""What is exported, and where to."""

import pathlib

from dfkd_jax import evaluation
from dfkd_jax.errors import CheckpointError, ConfigError, ExportError
from dfkd_jax.exporting import networks, transfer_sets
from dfkd_jax.runtime import files, records, weights
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.teachers import weights as teachers


def load_network(
    checkpoint: str, *, which: str = "", module: str = ""
) -> TrainedNetwork:
    """A network, ready for `exporting.networks.write`.

    Args:
        checkpoint: Name of shipped weights, or a path as `evaluate` takes it.
        which: "student" or "teacher" of a work directory; empty for the student, or
            for the teacher where a teacher is what the directory was made for.
        module: "package.module:Class", if the network is not one of this package.

    Raises:
        CheckpointError: There is no such network.
    """
    path = teachers.find(checkpoint)
    if which and not path.is_dir():
        raise ConfigError(
            f"--which={which} chooses from a work directory; {path} is a file: leave "
            "--which out."
        )
    if which and (path / f"{which}.safetensors").is_file():
        path = path / f"{which}.safetensors"
    elif which == "teacher":
        return evaluation.load_teacher(path, module=module, flag="--module")
    elif which == "student":
        raise CheckpointError(
            f"{path} holds no student.safetensors: give the command of the run again "
            "to have the student made, or name another work directory."
        )
    return evaluation.load_checkpoint(path, module=module)[1]


def load_transfer_set(checkpoint: str) -> transfer_sets.Source:
    """The transfer set of a work directory, for `exporting.transfer_sets`.

    Raises:
        CheckpointError: There is none, or it is unfinished or damaged.
    """
    path = pathlib.Path(checkpoint).expanduser()
    run = evaluation.find_run(path)
    if not run:
        raise CheckpointError(
            f"{checkpoint} is no work directory with a transfer set: name one that "
            "dfkd_jax.main made, such as runs/mnist/seed0."
        )
    description = weights.describe(
        records.read(run).get("description"), source=str(run)
    )
    names = evaluation.default_class_names(description)
    folder = run.parent / "transfer_set"
    return transfer_sets.open_source(folder, description, names)


def check_output(path: pathlib.Path, format_name: str, *, overwrite: bool) -> None:
    """Refuses what an export must not replace; makes the folder that it goes to.

    Raises:
        ExportError: Something is there that may not, or must not, be replaced.
        StorageError: The folder cannot be made.
    """
    written = [path]
    if format_name == "stablehlo":
        written.append(networks.card_path(path))
    for place in written:
        if not place.exists():
            continue
        ours = place.is_file()
        if format_name == "tfds":
            ours = place.is_dir() and transfer_sets.is_tfds(place)
        if not ours:
            kind = "folder" if place.is_dir() else "file"
            raise ExportError(
                f"--output: {place} is a {kind} that was not exported as {format_name} "
                "and is left alone: name another."
            )
        if not overwrite:
            raise ExportError(
                f"--output: {place} is there already: name another, or add "
                "--overwrite to replace it."
            )
    with files.storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
