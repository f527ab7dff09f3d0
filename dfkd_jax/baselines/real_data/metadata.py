"""A student from metadata: activation statistics recorded on real images.

NOT data-free. Mean and covariance of the feature layer's units over the real training
images (the metadata that Lopes et al., 2017, keep in the place of data) take the place
of the normal that the weights give; soft labels, synthesis and distillation are those
of the data-free student.
"""

import io
import pathlib
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.baselines.real_data import source
from dfkd_jax.config import MetadataConfig
from dfkd_jax.errors import CheckpointError
from dfkd_jax.methods import pilot, soft_targets
from dfkd_jax.methods.task import MethodResult, Task
from dfkd_jax.models.network import Model
from dfkd_jax.runtime import files, hosts, progress
from dfkd_jax.runtime.trained import TrainedNetwork
from dfkd_jax.targets import gaussian

BATCH_SIZE = 1_000


def real_data(config: MetadataConfig) -> str:
    """What is read, in words."""
    return (
        "mean and covariance of the teacher's features over "
        f"{source.count(config.data):,} training images of {config.data.dataset}"
    )


def check(config: MetadataConfig, teacher: TrainedNetwork, student: Model) -> None:
    """Raises ConfigError where the settings do not suit the networks or the devices."""
    _find_layer(config, teacher)
    soft_targets.check_priors(config.synthesis, teacher)
    soft_targets.check_distillation(config.distillation, teacher, student)


def make_student(task: Task) -> MethodResult:
    """The student; statistics are recorded once and kept in `statistics.npz`.

    Raises:
        DataUnavailableError: The real images cannot be had.
        NonFiniteError: A loss or an image became NaN or infinite.
        CheckpointError: What is in the work directory is damaged or foreign.
        StorageError: The work directory cannot be written.
    """
    started = time.monotonic()
    task, measured = pilot.settle(task)
    config, teacher = task.config, task.teacher
    layer = _find_layer(config, teacher)
    mean, covariance = _recorded(task, layer)
    normal = gaussian.Normal(
        mean=jnp.asarray(mean), factor=gaussian.factor(jnp.asarray(covariance))
    )
    transfer_set = soft_targets.open_transfer_set(
        task, {"metadata": {"feature_layer": layer.name}}
    )
    task.stopwatch.add("prepare", time.monotonic() - started)
    soft_targets.synthesize(
        task,
        feature_layer=layer.name,
        draw_labels=soft_targets.labels_of(
            normal, teacher, layer, grid=config.grid, candidates=config.candidates
        ),
        transfer_set=transfer_set,
    )
    student = soft_targets.distil(task, lambda: transfer_set, images="pseudo samples")
    metadata = soft_targets.metadata(layer.name, transfer_set)
    return MethodResult(student=student, metadata=metadata | measured)


def statistics(
    teacher: TrainedNetwork, images: source.RealImages, *, layer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[units]` and covariance `[units, units]` of a layer's output over images.

    A convolution's places count as that many draws. Sums are in float64.
    """

    @jax.jit
    def look(batch):
        features = teacher.features(batch, layer=layer)
        return features.reshape(-1, features.shape[-1])

    count, total, products = 0, 0.0, 0.0
    for start in range(0, len(images), BATCH_SIZE):
        indices = np.arange(start, min(start + BATCH_SIZE, len(images)))
        features = np.asarray(look(images.gather(indices)[0]), np.float64)
        count += len(features)
        total = total + features.sum(0)
        products = products + features.T @ features
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    return np.asarray(mean, np.float32), np.asarray(covariance, np.float32)


def _recorded(task, layer):
    """The statistics in the work directory; recorded before if they are not there."""
    path = task.workdir / "statistics.npz"
    if hosts.is_primary() and not path.exists():
        images = source.load(
            task.config.data,
            description=task.teacher.description,
            seed=task.config.seed,
        )
        progress.say(f"Recording {layer.name} on {len(images):,} REAL training images")
        mean, covariance = statistics(task.teacher, images, layer=layer.name)
        _save(path, mean=mean, covariance=covariance)
    hosts.barrier()
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["mean"], arrays["covariance"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): delete it and give the same command again "
            "to have it recorded again."
        ) from error


def _save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    content = io.BytesIO()  # NumPy's own writing does not say that a disk is full.
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _find_layer(config, teacher):
    return soft_targets.find_layer(
        config.feature_layer, teacher, setting="config.feature_layer"
    )
