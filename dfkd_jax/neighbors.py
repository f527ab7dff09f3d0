"""How near the pseudo samples of a finished run come to the real training images.

    python -m dfkd_jax.neighbors runs/mnist/seed0

For those whose reason is privacy. Of every pseudo sample: the distance to the nearest
training image (root mean squared difference of pixels from 0 to 1), beside the same of
test images, which the teacher never saw. Writes `neighbors.json` into the work
directory, numbers and no images, and the report shows them from then on. Reads real
data, so it refuses a run whose student is not made yet.

Small distances would say that images were copied. Large ones do not say that nothing of
them can be had from the teacher or the student: see SECURITY.md.

Exit status: 0 done; 1 work directory or disk; 2 flags; 3 no real data.
"""

import pathlib

from absl import flags

from dfkd_jax import command_line
from dfkd_jax.errors import CheckpointError, ConfigError

FLAGS = flags.FLAGS
FILE = "neighbors.json"


def main(argv: list[str]) -> int:
    """Measures, prints, and writes `neighbors.json`."""
    if len(argv) != 2:
        raise ConfigError(
            "Name one work directory: python -m dfkd_jax.neighbors runs/mnist/seed0."
        )
    folder = pathlib.Path(argv[1])

    import numpy as np

    from dfkd_jax import evaluation
    from dfkd_jax.data import datasets, neighbors, tfds
    from dfkd_jax.exporting import transfer_sets
    from dfkd_jax.reporting import pages
    from dfkd_jax.runtime import files, progress, records, weights

    if not (folder / "student.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no student yet: real data are read when it is made."
        )
    fields = records.read(folder / "run.json").get("description")
    description = weights.describe(fields, source=str(folder / "run.json"))
    names = evaluation.default_class_names(description)
    source = transfer_sets.open_source(folder / "transfer_set", description, names)
    name = FLAGS.dataset or description.dataset
    if not name:
        raise ConfigError(
            f"{folder} names no data set: say --dataset={'|'.join(datasets.NAMES)}."
        )
    evaluation.check_task(
        description,
        datasets.spec(name, FLAGS.data_dir),
        source=str(folder),
        setting="--dataset",
    )
    real = {
        split: tfds.load(
            name,
            split,
            data_dir=FLAGS.data_dir,
            raw_dir=FLAGS.raw_dir,
            report=progress.say,
        ).images
        for split in ("train", "test")
    }
    progress.say(
        f"{len(source):,} pseudo samples and {len(real['test']):,} test images against "
        f"{len(real['train']):,} training images of {name}"
    )
    distances = np.concatenate(
        [
            neighbors.nearest(np.clip(images, 0, 1), real["train"])
            for images, _ in source.batches()
        ]
    )
    found = {
        "dataset": name,
        "num_training_images": len(real["train"]),
        "transfer_set_sha256": source.transfer_set.digest(),
    } | neighbors.summarize(distances, neighbors.nearest(real["test"], real["train"]))
    files.write_json(folder / FILE, found, sealed=True)
    heading = "  ".join(f"{share:>7.0%}" for share in found["quantiles"])
    progress.say(f"distance to the nearest, quantile  {heading}")
    for key in ("pseudo_samples", "held_out_images"):
        row = "  ".join(f"{value:>7.4f}" for value in found[key])
        progress.say(f"{key.replace('_', ' '):<33}  {row}")
    progress.say(
        f"{found['num_nearer_than_near']:,} pseudo samples are nearer than "
        f"{found['near']:.4f}, as 1 % of the test images are; {found['num_equal']:,} "
        "are equal to a training image."
    )
    pages.write(folder)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("dataset", "", "Default: what the teacher was trained on.")
    flags.DEFINE_string("data_dir", "", "TFDS data folder; default in the cache.")
    flags.DEFINE_string("raw_dir", "", "Folder with the data set's original files.")
    command_line.run(main, positional=True)
