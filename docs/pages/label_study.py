r"""Measures soft labels: the multivariate normal's beside ZSKD's Dirichlet.

    python -m docs.pages.label_study --config=configs/mnist.py \
        --output=results/soft_labels/mnist.json

From the teacher's weights alone: how sure soft labels are, how evenly they share the
classes, and a map of them (t-SNE; Fig. 4 of Wang, 2021). And how often they are not of
the class that they were drawn for:

- ZSKD draws a class first, then a label from that class's Dirichlet. The label is
  mismatched where another class is its likeliest.
- The multivariate normal draws no class, so no label can miss one.

What both have are finished pseudo samples. With --runs, folders of runs (or folders of
such folders), the teacher is asked about them: on how many is its likeliest class
another one than the soft label's? No real data is read.
"""

import importlib.util
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from dfkd_jax import command_line, config, config_files
from dfkd_jax.errors import ConfigError, MissingPackageError

FLAGS = flags.FLAGS
FORMAT = "dfkd_jax-label-study-1"
NUM_DRAWS = 10_000  # Of each distribution.
NUM_PLACES = 1_000  # Of each on the map.
MAP_SIZE = 999  # Places on the map are whole numbers up to this.
BATCH_SIZE = 1_000
TITLES = {"gaussian": "multivariate normal", "dirichlet": "Dirichlet (ZSKD)"}


def dirichlet_labels(kernel: Any, *, betas: Any, seed: int, count: int) -> Any:
    """ZSKD's soft labels with the classes that they were drawn for.

    Every class and every scaling β equally often, as `targets.dirichlet` draws them.

    Args:
        kernel: `[units, classes]`, of the teacher's last layer.
        betas: Scalings of the concentrations.
        seed: Of the draws.
        count: Number of labels, rounded up to a whole number a class and scaling.

    Returns:
        Labels `[n, classes]` and classes `[n]`, shuffled.
    """
    import jax
    import numpy as np

    from dfkd_jax.targets import dirichlet

    rows = dirichlet.concentrations(kernel)
    each = -(-count // (len(rows) * len(betas)))
    labels, classes = [], []
    for place, beta in enumerate(betas):
        for k, row in enumerate(rows):
            key = jax.random.key(seed)
            for value in (place, k):
                key = jax.random.fold_in(key, value)
            drawn = jax.random.dirichlet(key, beta * row + dirichlet.FLOOR, (each,))
            labels.append(np.asarray(drawn))
            classes.append(np.full(each, k))
    order = np.random.default_rng(seed).permutation(each * len(labels))
    return np.concatenate(labels)[order], np.concatenate(classes)[order]


def figures(labels: Any, drawn_for: Any = None) -> dict[str, Any]:
    """What a table says of soft labels.

    Args:
        labels: `[n, classes]`.
        drawn_for: Classes `[n]`; None where labels are drawn for none.
    """
    import numpy as np

    from dfkd_jax.reporting import findings

    likeliest = labels.argmax(-1)
    counts = np.bincount(likeliest, minlength=labels.shape[1])
    missed = None
    by_class = None
    if drawn_for is not None:
        misses = likeliest != drawn_for
        missed = float(misses.mean())
        by_class = [
            float(misses[drawn_for == k].mean()) for k in range(labels.shape[1])
        ]
    return {
        "num_draws": len(labels),
        "drawn_for_another_class": missed,
        "drawn_for_another_class_by_class": by_class,
        "class_shares": [float(share) for share in counts / len(labels)],
        "top_probability": float(labels.max(-1).mean()),
        "entropy": float(findings.entropy(labels).mean()),
    }


def study(settings: Any, teacher: Any) -> dict[str, Any]:
    """Figures and map of both distributions, from a teacher's weights.

    Args:
        settings: `config.ExperimentConfig`.
        teacher: `runtime.trained.TrainedNetwork`.

    Returns:
        `distributions` and `map` of the results file.
    """
    import dataclasses

    import numpy as np

    from dfkd_jax.methods import soft_targets
    from dfkd_jax.reporting import projection, soft_labels

    targets = dataclasses.replace(settings.targets, distribution="gaussian")
    layer = soft_targets.find_feature_layer(targets, teacher)
    normal = soft_labels.draw(
        soft_targets.make_targets(targets, teacher, layer),
        seed=settings.seed,
        count=NUM_DRAWS,
    )
    last = list(teacher.layers().values())[-1]
    other, drawn_for = dirichlet_labels(
        teacher.kernel(last.kernel_layer),
        betas=targets.betas,
        seed=settings.seed,
        count=NUM_DRAWS,
    )
    found = {
        "gaussian": {
            "title": TITLES["gaussian"],
            "settings": {
                "feature_layer": layer.name,
                "sigma": targets.sigma,
                "scale": targets.scale,
                "candidates": targets.candidates,
            },
        }
        | figures(normal),
        "dirichlet": {
            "title": TITLES["dirichlet"],
            "settings": {"betas": list(targets.betas)},
        }
        | figures(other, drawn_for),
    }
    shown = [normal[:NUM_PLACES], other[:NUM_PLACES]]
    places = projection.tsne(shown)
    classes = [shown[0].argmax(-1), drawn_for[:NUM_PLACES]]
    drawn_map = {}
    for name, at, members in zip(found, places or (), classes, strict=False):
        drawn_map[name] = {
            # As text: a number a line would make thousands of lines.
            "places": _as_text(np.round(at * MAP_SIZE).astype(int).reshape(-1)),
            "classes": _as_text(members),
        }
    return {"distributions": found, "map": drawn_map}


def _as_text(numbers):
    return " ".join(map(str, numbers))


def ask_teacher(folder: pathlib.Path, teacher: Any) -> dict[str, Any]:
    """How often a teacher's likeliest class is not the one of the soft label.

    Args:
        folder: Work directory of a finished synthesis.
        teacher: `runtime.trained.TrainedNetwork`.

    Raises:
        CheckpointError: The pseudo samples are of another teacher, or not finished.
    """
    import jax
    import numpy as np

    from dfkd_jax.errors import CheckpointError
    from dfkd_jax.runtime import records
    from dfkd_jax.synthesis.transfer_set import TransferSet

    transfer_set = TransferSet.existing(folder / "transfer_set")
    if transfer_set.manifest.teacher_sha256 != teacher.sha256:
        raise CheckpointError(
            f"{folder} has pseudo samples of another teacher: name its --config."
        )
    if transfer_set.missing():
        raise CheckpointError(f"{folder}: its synthesis is not finished.")
    answer = jax.jit(lambda images: teacher.logits(images).argmax(-1))
    misses = 0
    for start in range(0, len(transfer_set), BATCH_SIZE):
        index = np.arange(start, min(start + BATCH_SIZE, len(transfer_set)))
        images, labels = transfer_set.gather(index)
        misses += int((np.asarray(answer(images)) != labels.argmax(-1)).sum())
    run = folder / "run.json"
    with records.as_written(run):
        settings = records.read(run)["config"]
        return {
            "name": (folder.parent if folder.name.startswith("seed") else folder).name,
            "distribution": settings["targets"]["distribution"],
            "seed": settings["seed"],
            "num_images": len(transfer_set),
            "teacher_answers_otherwise": misses / len(transfer_set),
            "transfer_set_sha256": transfer_set.digest(),
        }


def find_runs(folders: list[pathlib.Path]) -> list[pathlib.Path]:
    """Work directories with a transfer set, in `folders` or below them.

    Raises:
        ConfigError: A folder has none.
    """
    found = []
    for folder in folders:
        manifests = sorted(folder.glob("**/transfer_set/manifest.json"))
        if not manifests:
            raise ConfigError(
                f"--runs={folder}: no work directory with a transfer set."
            )
        found += [path.parent.parent for path in manifests]
    return list(dict.fromkeys(found))


def main(argv: list[str]) -> int:
    """Measures, and writes a results file."""
    del argv
    if FLAGS.config is None or not FLAGS.output:
        raise ConfigError(
            "Name a config and a file: --config=configs/mnist.py "
            "--output=results/soft_labels/mnist.json (see --help)."
        )
    settings = config_files.chosen(FLAGS.config)
    if not isinstance(settings, config.ExperimentConfig):
        raise ConfigError("Name the config of a distillation without real data.")
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackageError(
            'The map of soft labels needs scikit-learn: pip install ".[plots]" in a '
            "clone of dfkd_jax."
        )
    runs = find_runs([pathlib.Path(folder) for folder in FLAGS.runs])
    output = pathlib.Path(FLAGS.output)

    from dfkd_jax.runtime import files, parallel, progress, weights
    from dfkd_jax.runtime.workdir import versions
    from dfkd_jax.teachers import weights as teachers

    files.check_replaceable(output, f'{{\n  "format": "{FORMAT}"')
    parallel.configure(cpu_devices=1)
    teacher = teachers.load(settings.teacher, dataset=settings.data.dataset)
    measured: Mapping[str, Any] = study(settings, teacher)
    result = {
        "format": FORMAT,
        "teacher": {
            "network": settings.teacher.name,
            "weights": settings.teacher.weights,
            "sha256": teacher.sha256,
            "parameters": weights.count(teacher.variables),
        },
        "seed": settings.seed,
        "distributions": measured["distributions"],
        "pseudo_samples": list(
            # Runs of a sweep may share a transfer set; it counts once.
            {
                found["transfer_set_sha256"]: found
                for found in (ask_teacher(folder, teacher) for folder in runs)
            }.values()
        ),
        "map": measured["map"],
        "command": "python -m docs.pages.label_study " + shlex.join(sys.argv[1:]),
        "machine": parallel.describe(),
        "versions": versions(),
    }
    with files.storage_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(output, result)
    progress.say(f"  {output}")
    return 0


if __name__ == "__main__":
    config_files.define_flag("Config of a distillation: teacher and targets; required.")
    flags.DEFINE_multi_string(
        "runs", [], "Folders with runs, to ask the teacher about."
    )
    flags.DEFINE_string("output", "", "JSON file to write; required.")
    command_line.run(main)
