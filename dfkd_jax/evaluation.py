"""What a network is worth on labeled images, and how it is found. Imports no JAX."""

import pathlib
from collections.abc import Sequence
from typing import Any

from dfkd_jax.errors import CheckpointError, ConfigError

BATCH_SIZE = 1_000


def evaluate(
    network: Any,
    images: Any,
    labels: Any,
    *,
    reference: Any = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of a network on a labeled set, every example counted once.

    The last batch is padded and the padding masked.

    Args:
        network: `runtime.trained.TrainedNetwork` to evaluate.
        images: `[n, height, width, channels]`, uint8, or floats from 0 to 1.
        labels: `[n]` integers.
        reference: A network that gets the same images, to count agreement with.
        class_names: One a class; empty for those of the network's description.

    Returns:
        See `runtime.metrics.summarize`; no agreement without a reference.
    """
    import jax
    import numpy as np

    from dfkd_jax.runtime import metrics, parallel

    def batch_sums(networks, batch):
        network, *others = networks
        logits = network.logits(batch["images"])
        compared = others[0].logits(batch["images"]) if others else logits
        return metrics.sums(logits, compared, batch["labels"], batch["mask"])

    step = parallel.map_devices(batch_sums)
    networks = parallel.replicate([network] + ([reference] if reference else []))
    size = -(-BATCH_SIZE // parallel.device_count()) * parallel.device_count()
    totals = None
    for start in range(0, len(images), size):
        pixels = network.normalize(images[start : start + size])
        missing = size - len(pixels)
        batch = {
            "images": np.pad(pixels, ((0, missing), *[(0, 0)] * 3)),
            "labels": np.pad(labels[start : start + size], (0, missing)),
            "mask": np.pad(np.ones(len(pixels), np.float32), (0, missing)),
        }
        batch["images"] = batch["images"].astype(np.float32)
        added = step(networks, parallel.split(batch))
        added = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).sum(0), added)
        totals = added if totals is None else jax.tree.map(np.add, totals, added)
    names = class_names or default_class_names(network.description)
    figures = metrics.summarize(totals or {"count": 0}, class_names=names)
    if reference is None:
        figures.pop("agreement_with_teacher", None)
    return figures


def check_task(description: Any, spec: Any, *, source: str, setting: str) -> None:
    """Compares a network's images and classes with those of a data set.

    Args:
        description: Of the network.
        spec: Of the data set.
        source: Where the network is from, for the message.
        setting: What names the data set, for the message.

    Raises:
        CheckpointError: They differ.
    """
    have = tuple(description.image_shape), description.num_classes
    if have != (spec.image_shape, spec.num_classes):
        raise CheckpointError(
            f"{source} classifies {have[0]} images into {have[1]} classes; {spec.name} "
            f"has {spec.image_shape} and {spec.num_classes}: change {setting}."
        )


def check_reference(description: Any, other: Any, *, source: str) -> None:
    """Raises CheckpointError where two networks cannot be asked about the same images.

    Args:
        description: Of the network that is evaluated; images are normalized for it.
        other: Of the network that it is compared with.
        source: What names the other one, for the message.
    """
    import numpy as np

    for name in ("image_shape", "num_classes", "mean", "std"):
        ours, theirs = (np.ravel(getattr(d, name)) for d in (description, other))
        if not np.array_equal(ours, theirs):
            raise CheckpointError(
                f"{source} has {name} {theirs.tolist()}, and the network that is "
                f"compared with it {ours.tolist()}: compare networks of the same "
                "images and classes."
            )


def default_class_names(description: Any, data_dir: str = "") -> tuple[str, ...]:
    """What a network's classes are called: by its data set, else by number."""
    from dfkd_jax.data import datasets

    numbers = tuple(str(place) for place in range(description.num_classes))
    try:
        names = datasets.spec(description.dataset, data_dir).class_names
    except ConfigError:
        return numbers
    return names if len(names) == len(numbers) else numbers


def table(figures: dict[str, Any]) -> str:
    """The figures of `evaluate` for people."""
    low, high = figures["accuracy_interval_95"]
    lines = [
        f"accuracy                {figures['accuracy']:.2%}"
        f"  (95 % interval {low:.2%} to {high:.2%}; "
        f"{figures['num_correct']:,} of {figures['num_examples']:,})",
        f"negative log-likelihood {figures['nll']:.4f}",
        f"calibration error       {figures['expected_calibration_error']:.4f}",
    ]
    if "agreement_with_teacher" in figures:
        agreement = figures["agreement_with_teacher"]
        lines.append(f"agreement with teacher  {agreement:.2%}")
    lines += ["", f"{'class':<14}{'examples':>9}{'recall':>9}{'precision':>11}"]
    for row in figures["per_class"]:
        shares = [
            "–" if row[key] is None else f"{row[key]:.2%}"
            for key in ("recall", "precision")
        ]
        lines.append(
            f"{row['class']:<14}{row['count']:>9,}{shares[0]:>9}{shares[1]:>11}"
        )
    return "\n".join(lines)


def load_checkpoint(
    path: pathlib.Path, *, module: Any = "", flag: str = "--module"
) -> tuple[pathlib.Path, Any]:
    """Where weights were found, and their `runtime.trained.TrainedNetwork`.

    Args:
        path: A work directory, a file or a folder of Orbax checkpoints in the former.
        module: "package.module:Class", if the network is not one of this package; or
            a `Model`. It is never taken from the checkpoint, since importing it runs
            its code.
        flag: What names it, for the message.

    Raises:
        CheckpointError: There are none, or they are damaged or of an unknown network.
    """
    from dfkd_jax.models import adapters, registry
    from dfkd_jax.runtime import admission, checkpoints, records, weights
    from dfkd_jax.teachers import weights as teachers

    path = teachers.find(str(path))
    candidates = (path, path / "student.safetensors", path / "teacher.safetensors")
    file = next((file for file in candidates if file.is_file()), None)
    run = find_run(path)
    record: dict[str, Any] = {}
    if file:
        path = file
        stored = weights.read(path)
    elif run and path != run.parent:
        record = records.read(run)
        stored = weights.Stored(
            variables=checkpoints.load_variables(path),
            description=weights.describe(record.get("description"), source=str(run)),
        )
    else:
        raise CheckpointError(
            f"{path} holds neither student.safetensors, teacher.safetensors nor "
            "checkpoints of a run: name a work directory of dfkd_jax.main, or weights "
            "that it wrote."
        )
    name = stored.description.network
    if not module and name not in registry.NETWORKS:
        raise CheckpointError(
            f"{path} is of the network {name!r}, which is not of this package: say "
            f"{flag}={name} if you trust that code."
        )
    if isinstance(module, str):
        stored = stored.called(module or name, source=str(path))
        module = adapters.create(
            stored.description.network,
            num_classes=stored.description.num_classes,
            arguments=stored.description.arguments,
            image_shape=tuple(stored.description.image_shape),
        )
    else:
        stored = stored.called(module.name, source=str(path))
    network = admission.restore(stored, module, source=str(path))
    # What a checkpoint was trained in, since it keeps no logits of its own.
    if wanted := (record.get("fingerprints") or {}).get("student"):
        admission.filled(network.model, stored.description).check_fingerprint(
            wanted, source=str(run)
        )
    return path, network


def find_run(path: pathlib.Path) -> pathlib.Path | None:
    """`run.json` of the work directory that `path` is or lies in."""
    folders = (path, *path.absolute().parents[:2])
    return next((f / "run.json" for f in folders if (f / "run.json").is_file()), None)


def find_teacher(checkpoint: pathlib.Path) -> str:
    """The weights that a checkpoint's run distilled from, or nothing."""
    from dfkd_jax.runtime import records

    run = find_run(checkpoint)
    if not run:
        return ""
    try:
        name = records.read(run)["config"].get("teacher", {}).get("weights", "")
        # A teacher that was given in Python lies in the work directory.
        beside = run.parent / pathlib.Path(name).name
        return str(beside) if name == beside.name and beside.is_file() else name
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{run} is no run's ({error!r}): name another."
        ) from error


def load_teacher(checkpoint: pathlib.Path, *, module: str, flag: str) -> Any:
    """What a checkpoint's run distilled from: a `runtime.trained.TrainedNetwork`.

    Args:
        checkpoint: A work directory, or what lies in one.
        module: "package.module:Class", if the network is not one of this package.
        flag: What names it, for the message.

    Raises:
        CheckpointError: The run names no teacher, or it is gone, damaged or of another
            network.
        ConfigError: Its settings are not possible.
    """
    from dfkd_jax.config import NetworkConfig, from_mapping
    from dfkd_jax.runtime import records
    from dfkd_jax.teachers import weights as teachers

    name, run = find_teacher(checkpoint), find_run(checkpoint)
    if not (name and run):
        raise CheckpointError(
            f"{checkpoint} names no teacher: name a work directory of dfkd_jax.main, "
            "or the teacher's weights with --checkpoint."
        )
    with records.as_written(run):
        settings = records.read(run)["config"]["teacher"] | {"weights": name}
    config = from_mapping(NetworkConfig, settings, "teacher")
    if config.module != module:  # Importing a module runs its code.
        raise CheckpointError(
            f"{run} has a teacher of the network {config.name!r}: "
            + (
                f"say {flag}={config.module} if you trust that code."
                if config.module
                else f"leave {flag} out."
            )
        )
    return teachers.load(config)
