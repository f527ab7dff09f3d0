"""A tiny experiment, run as a user runs it but cut off from data and network."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import command_runner
import numpy as np

from dfkd_jax.runtime import checkpoints, weights

TINY = {
    "cpu_devices": 2,
    "synthesis.num_images": 40,
    "synthesis.images_per_device": 10,
    "synthesis.num_steps": 6,
    "synthesis.steps_per_call": 2,
    "distillation.num_steps": 20,
    "distillation.procedural": 0,  # They compile for seconds in every program.
    "distillation.batch_size": 8,
    "distillation.warmup_steps": 2,
    "distillation.log_every": 5,
    "distillation.checkpoint_every": 5,
}
NUM_SHARDS = 4
TINY_GENERATED = {
    "cpu_devices": 2,
    "generator.latent_size": 4,
    "generator.features": "(4, 4, 4)",
    "num_steps": 20,
    "batch_size": 8,
    "num_samples": 30,
    "log_every": 5,
    "checkpoint_every": 5,
}


def tiny(variant: str) -> dict[str, Any]:
    """Settings of configs/mnist.py that make a variant tiny."""
    if variant in ("dafl", "dfad"):
        return TINY_GENERATED | ({"student_steps": 2} if variant == "dfad" else {})
    parts = {"kd": ("distillation",), "labels": ("distillation",)}
    parts |= {"few_shot": ("distillation",), "noise": ("distillation", "synthesis")}
    kept = ("cpu_devices", *parts.get(variant, ("distillation", "synthesis")))
    settings = {k: v for k, v in TINY.items() if k.startswith(kept)}
    if variant in ("paper", "zskd"):
        settings["distillation.warmup_steps"] = 0
    if variant == "noise":
        settings["synthesis.num_steps"] = 0
        del settings["synthesis.steps_per_call"]  # It would have no effect.
    return settings


class Lab:
    """Starts tiny experiments and looks into their work directories.

    Attributes:
        runner: Starts commands.
        empty: A folder without data.
        config: File of the experiments.
        settings: What all of them get besides.
        done: Exit status of one that is finished: without a test set that it names, 3.
    """

    def __init__(
        self,
        runner: command_runner.Runner,
        empty: pathlib.Path,
        *,
        config: str = "configs/mnist.py",
        settings: Mapping[str, Any] | None = None,
        done: int = 3,
    ):
        self.runner = runner
        self.empty = empty
        self.config = config
        self.settings = settings or {}
        self.done = done

    def arguments(
        self, workdir: pathlib.Path, *, variant: str = "smoke", **changes: Any
    ) -> list[str]:
        """Of `main`; `synthesis__num_images=…` changes a setting."""
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        settings = tiny(variant) | self.settings | changes
        if self.done and settings.get("data.dataset") != "":  # One is named.
            settings = {"data.dir": self.empty} | settings
        return [
            f"--config={self.config}:{variant}",
            f"--workdir={workdir}",
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]

    def start(self, workdir: pathlib.Path, **changes: Any) -> command_runner.Command:
        return self.runner.start("main", *self.arguments(workdir, **changes))

    def finish(self, workdir: pathlib.Path, **changes: Any) -> command_runner.Command:
        """Runs to the end there is without a data set: a student."""
        command = self.start(workdir, **changes)
        status = command.wait()
        assert status == self.done, command.stdout + command.stderr
        assert (workdir / "student.safetensors").is_file()
        return command

    def errors(self, *commands: command_runner.Command) -> list[tuple[int, str]]:
        """Exit statuses and errors; each must be one line without a traceback."""
        found = []
        for command in commands:
            status = command.wait()
            stderr = command.stderr.splitlines()
            lines = [line for line in stderr if not line.startswith("WARNING: ")]
            assert len(lines) == 1, command.stderr
            assert lines[0].startswith("ERROR: "), command.stderr
            found.append((status, lines[0]))
        return found


def fingerprint(workdir: pathlib.Path) -> dict[str, str]:
    """Digests of the student's weights and of every file of the transfer set."""
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((workdir / "transfer_set").glob("*.npy"))
    }
    student = weights.load(workdir / "student.safetensors")[0]
    return found | {"student": weights.digest(student)}


def identity(path: pathlib.Path) -> tuple[int, int]:
    """Inode and time of the last change: other once a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def checkpoint_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints in `folder`, in order."""
    seals = folder.glob(f"*/{checkpoints.SEAL}")
    return sorted(int(seal.parent.name) for seal in seals)


def shards(workdir: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Files of finished shards with their `identity`."""
    index = workdir / "transfer_set" / "shards.jsonl"
    lines = index.read_text().splitlines() if index.exists() else []
    found = {}
    for line in lines:
        shard = json.loads(line)["shard"]
        for kind in ("images", "labels"):
            path = workdir / "transfer_set" / f"{kind}-{shard:05d}.npy"
            found[f"{kind} {shard}"] = identity(path)
    return found


def read_transfer_set(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and soft labels."""
    return tuple(
        np.concatenate(
            [
                np.load(path)
                for path in sorted((workdir / "transfer_set").glob(f"{kind}-*.npy"))
            ]
        )
        for kind in ("images", "labels")
    )


def run_from_python(workdir: pathlib.Path, empty: pathlib.Path) -> None:
    """What `Lab.finish` runs, by the Python API; prints network and digest."""
    from dfkd_jax import api

    api.configure(cpu_devices=TINY["cpu_devices"])
    changes: dict[str, Any] = {"data": {"dir": str(empty)}}
    for name, value in TINY.items():
        section, _, key = name.rpartition(".")
        if section:
            changes.setdefault(section, {})[key] = value
    student = api.run("configs/mnist.py:smoke", workdir=workdir, **changes)
    print(student.description.network, student.sha256)
