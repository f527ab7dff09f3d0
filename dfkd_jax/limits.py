"""What a run asks for, compared with memory, disk and formats before work starts.

Needs are counted from below, so that nothing is refused that would have fitted.
"""

import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from dfkd_jax.errors import ConfigError, StorageError
from dfkd_jax.synthesis.transfer_set import MAX_NUMBERS

FLOAT = 4  # Bytes.
TRAINED = 4  # Arrays of the size of what Adam changes: itself, its gradient, moments.
CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")


def check(
    config: Any,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    num_parameters: int,
    workdir: pathlib.Path,
) -> None:
    """Makes sure that this machine can hold what a method's settings ask for.

    Args:
        config: Of any kind.
        image_shape: Of the teacher.
        num_classes: Of the teacher.
        num_parameters: Of the student; 0 where there is none.
        workdir: Where the transfer set goes.

    Raises:
        ConfigError: It needs more memory than there is.
        StorageError: It needs more disk than is free.
    """
    pixels = math.prod(image_shape)
    memory = total_memory()
    for setting, value, numbers in _asked(
        config, image_shape, num_classes, num_parameters
    ):
        need = numbers * FLOAT
        if need > memory:
            raise ConfigError(
                f"{setting}={value} is not possible: it takes at least {_size(need)} "
                f"of memory, and this machine has {_size(memory)}. Make it smaller."
            )
    for setting, value in _lengths(config):
        if value >= min(image_shape[:2]):
            raise ConfigError(
                f"{setting}={value} is not possible: images are {image_shape[0]} × "
                f"{image_shape[1]} pixels. Make it smaller."
            )
    setting, shard, count = _transfer_set(config)
    if shard * max(pixels, num_classes) > MAX_NUMBERS:
        raise ConfigError(
            f"{setting}={shard:,} is not possible: a shard of so many images of "
            f"{pixels:,} numbers has more than {MAX_NUMBERS:,}. Make it smaller."
        )
    if not count:
        return
    check_disk(
        count * (pixels + num_classes) * FLOAT,
        workdir / "transfer_set",
        what=f"{count:,} pseudo samples of {pixels:,} numbers",
    )


def _asked(
    config, image_shape, num_classes, num_parameters
) -> Iterator[tuple[str, Any, int]]:
    """Settings, their values, and how many numbers each puts into memory at once."""
    pixels = math.prod(image_shape)
    if num_parameters:
        yield "config.student", config.student.name, num_parameters * TRAINED
    for setting, group in (
        ("config.distillation.batch_size", getattr(config, "distillation", None)),
        ("config.batch_size", config),
    ):
        if size := getattr(group, "batch_size", 0):
            yield setting, size, size * pixels
    if hasattr(config, "synthesis"):
        size = config.synthesis.images_per_device
        yield "config.synthesis.images_per_device", size, size * pixels * TRAINED
        targets = getattr(config, "targets", config)
        if getattr(targets, "distribution", "gaussian") == "gaussian":
            setting = "targets.candidates" if targets is not config else "candidates"
            numbers = size * targets.candidates * num_classes
            yield f"config.{setting}", targets.candidates, numbers
    if hasattr(config, "generator"):
        yield "config.num_samples", config.num_samples, config.num_samples * pixels
        latents, (first, *_) = config.generator.latent_size, config.generator.features
        dense = latents * first * math.prod(-(-side // 4) for side in image_shape[:2])
        yield "config.generator.latent_size", latents, dense * TRAINED
        kernels = first * config.generator.features[1]
        yield "config.generator.features", config.generator.features, kernels * TRAINED


def _lengths(config):
    """Settings in pixels that must be within an image, and their values."""
    for group in ("", "synthesis.", "distillation."):
        place = getattr(config, group[:-1], None) if group else config
        for key in ("max_shift", "cutout"):
            yield f"config.{group}{key}", getattr(place, key, 0)


def _transfer_set(config):
    """What sets the size of a shard, that size, and the number of images."""
    if hasattr(config, "synthesis"):
        synthesis = config.synthesis
        setting = "config.synthesis.images_per_device"
        return setting, synthesis.images_per_device, synthesis.num_images
    if hasattr(config, "generator"):
        return "config.num_samples", config.num_samples, config.num_samples
    return "", 0, 0


def check_disk(need: int, folder: pathlib.Path, *, what: str) -> None:
    """Raises StorageError where `folder` cannot grow to `need` bytes."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    disk = shutil.disk_usage(existing)
    if need <= disk.free or not disk.total:  # Some network file systems say 0.
        return
    made = sum(path.stat().st_size for path in folder.glob("*.npy"))
    if need > disk.free + made:
        raise StorageError(
            f"{folder}: {what} take {_size(need)}, and {_size(disk.free)} are free. "
            "Make config.synthesis.num_images smaller, free some space, or choose a "
            "--workdir on another disk."
        )


def total_memory() -> int:
    """Bytes of memory that this machine, or its container, has."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(found, int(CGROUP.read_text()))
    except (OSError, ValueError):  # No container, or one without a limit: "max".
        return found


def _size(count):
    """Bytes as people read them."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = min(len(units) - 1, int(math.log(max(count, 1), 1_000)))
    return f"{count / 1_000**power:,.4g} {units[power]}"
