"""What runs in processes that are disturbed, where it is no plain command."""

import pathlib
import sys
import time

import command_runner
import numpy as np

DECADE = 10 * 365 * 24 * 3_600


def real_images(split):
    """Stand in for MNIST: small, the same each time, and not to be downloaded."""
    from dfkd_jax.data import tfds

    count = {"train": 640, "validation": 200, "test": 200}[split]
    random = np.random.default_rng(len(split))
    labels = np.arange(count, dtype=np.int32) % 10
    images = random.integers(0, 256, (count, 28, 28, 1), np.uint8) // 4
    for place, label in enumerate(labels):
        images[place, 2 * label : 2 * label + 6] += 150  # A bar for each digit.
    return tfds.ImageDataset(images, labels)


def train_teacher(arguments):
    """`main` with a data set that is there at once."""
    from dfkd_jax.data import tfds

    tfds.load = lambda name, split, **_: real_images(split)
    tfds.preflight = lambda *_, **__: tfds.Availability(True, True, "")
    command_runner.run_module("main", arguments)


def prepare_data(data_dir, raw_dir):
    """`data.prepare` as a process, with TFDS's builder replaced by one that is slow.

    Everything around the builder is the real thing: lock, staging, renaming. With a
    `raw_dir` nothing is replaced, and what lies there is verified.
    """
    from dfkd_jax import errors
    from dfkd_jax.data import prepare

    def build(name, staging, raw_dir, report):
        folder = staging / "tfds" / name / "3.0.1"
        folder.mkdir(parents=True)
        for place in range(30):
            part = folder / f"{name}-test.array_record-{place:05d}-of-00030"
            part.write_bytes(bytes([place]) * 20_000)
            time.sleep(0.01)
        (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
        return folder

    if not raw_dir:
        prepare._build_from_any_source = build
    prepare._check_space = lambda *_: None
    try:
        print("preparing", flush=True)
        prepare.prepare(
            "mnist",
            data_dir=pathlib.Path(data_dir),
            raw_dir=raw_dir,
            report=lambda line: print(line, flush=True),
        )
    except errors.DfkdError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def ten_years_ago(function, *arguments):
    """`function`, by a clock that has gone back."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - DECADE
    time.time_ns = lambda: now_ns() - DECADE * 10**9
    function(*arguments)
