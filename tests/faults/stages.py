"""The stages of the package as things that can be started, disturbed and compared."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import command_runner
import fault_programs
import numpy as np
from tiny_runs import Lab, checkpoint_steps, fingerprint, identity, shards

from dfkd_jax.runtime import weights
from dfkd_jax.teachers import weights as teachers

SMALL = {
    "synthesis__num_images": 80,
    "synthesis__num_steps": 40,
    "synthesis__steps_per_call": 5,
    "synthesis__checkpoint_seconds": 0,
    "distillation__num_steps": 60,
    "distillation__checkpoint_every": 10,
}


@dataclasses.dataclass(frozen=True)
class File:
    """A file that a stage reads or leaves, and what to do once it is damaged.

    Attributes:
        path: Pattern below the stage's folder; the last that fits is taken.
        remedy: What the error names: "delete" the file, its "folder" (of a checkpoint),
            or "restore" it from elsewhere. Empty where the same command must go on by
            itself.
        faults: Those that matter; a missing `run.json`, say, is a new directory.
        state: Of the folder in which it is damaged: a method of the stage.
    """

    path: str
    remedy: str = ""
    faults: tuple[str, ...] = ("truncated", "flipped", "missing", "foreign")
    state: str = "middle"


def is_locked(path: pathlib.Path) -> bool:
    """Whether any process holds the file at `path`, as the kernel lists it."""
    if not path.exists():
        return False
    inode = f":{path.stat().st_ino}"
    locks = pathlib.Path("/proc/locks").read_text().splitlines()
    return any(line.split()[5].endswith(inode) for line in locks if "->" not in line)


class Stage:
    """One stage; folders that it starts from are made once and copied."""

    name = ""
    done = 3  # Exit status at the end.
    files: tuple[File, ...] = ()
    graceful = True  # Answers SIGTERM by saving.
    waits = False  # For a process that holds the same, instead of refusing.
    grows = 40  # Kilobytes that fit on the disk that will be full.

    def __init__(self, lab: Lab, root: pathlib.Path):
        self.lab = lab
        self.root = root
        root.mkdir()
        self._made: dict[str, pathlib.Path] = {}

    def start(self, folder: pathlib.Path, wrap: Any = None, **changes: Any) -> Any:
        """Starts the command on `folder`; `wrap(function, *arguments)` runs it."""
        function, *arguments = self.program(folder, **changes)
        call = (wrap, function, *arguments) if wrap else (function, *arguments)
        return self.lab.runner.call(*call)

    def finish(self, folder: pathlib.Path) -> Any:
        """Runs to the end."""
        command = self.start(folder)
        status = command.wait()
        assert status == self.done, (self.name, status, command.stdout + command.stderr)
        return command

    def before(self) -> pathlib.Path:
        """A folder from which the stage starts; do not change it."""
        return self._once("before", self.make_before)

    def middle(self) -> pathlib.Path:
        """A folder in which the stage was killed half way; do not change it."""

        def make(folder):
            shutil.copytree(self.before(), folder, symlinks=True)
            self.start(folder).kill_when(lambda: self.is_half_way(folder))

        return self._once("middle", make)

    def undisturbed(self) -> dict[str, Any]:
        """The result of a run that nothing happened to."""
        return self.result(self.end())

    def end(self) -> pathlib.Path:
        """A folder of a run that nothing happened to; do not change it."""

        def make(folder):
            shutil.copytree(self.before(), folder, symlinks=True)
            self.finish(folder)

        return self._once("end", make)

    @functools.cached_property
    def seconds(self) -> float:
        """That an undisturbed run takes, everything being compiled."""
        self.end()
        folder = self.root / "timed"
        shutil.copytree(self.before(), folder, symlinks=True)
        started = time.monotonic()
        self.finish(folder)
        return time.monotonic() - started

    def foreign(self) -> pathlib.Path:
        """The folder of another run of the stage, with another seed."""

        def make(folder):
            folder.mkdir()
            self.make_foreign(folder)

        return self._once("foreign", make)

    def _once(self, name, make):
        if name not in self._made:
            make(self.root / name)
            self._made[name] = self.root / name
        return self._made[name]

    # What each stage says of itself.

    def program(self, folder: pathlib.Path, **changes: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def make_before(self, folder: pathlib.Path) -> None:
        raise NotImplementedError

    def make_foreign(self, folder: pathlib.Path) -> None:
        raise NotImplementedError

    def is_half_way(self, folder: pathlib.Path) -> bool:
        raise NotImplementedError

    def is_held(self, folder: pathlib.Path) -> bool:
        """Whether a process has got hold of what another must not touch."""
        return is_locked(folder / "run" / ".lock")

    def result(self, folder: pathlib.Path) -> dict[str, Any]:
        """Digests of what must be the same to the last bit."""
        raise NotImplementedError

    def finished(self, folder: pathlib.Path) -> dict[str, tuple[int, int]]:
        """Files that are finished, which nobody may write again."""
        raise NotImplementedError


class _OfMain(Stage):
    """A stage of the main command, in `folder/run`."""

    changes = SMALL

    def program(self, folder, **changes):
        changes = {"teacher__weights": folder / "teacher.safetensors"} | changes
        arguments = self.lab.arguments(folder / "run", **self.changes | changes)
        return command_runner.run_module, "main", arguments

    def start(self, folder, wrap=None, **changes):
        # The teacher is named by its path, which must not change between two starts.
        teacher = self.root / "teacher.safetensors"
        if not teacher.exists():
            shutil.copy(teachers.find("mnist_lenet5"), teacher)
        changes = {"teacher__weights": teacher} | changes
        return super().start(folder, wrap, **changes)

    def make_before(self, folder):
        folder.mkdir(exist_ok=True)

    def make_foreign(self, folder):
        command = self.start(folder, seed=1)
        assert command.wait() == self.done, command.stderr

    def result(self, folder):
        return fingerprint(folder / "run")

    def finished(self, folder):
        made = shards(folder / "run")
        for name in ("student.safetensors",):
            if (folder / "run" / name).exists():
                made[name] = identity(folder / "run" / name)
        return made

    def _run_until(self, folder, condition):
        self.start(folder).kill_when(condition)


RUN_FILES = (
    File("run/run.json", "delete", ("truncated", "flipped", "foreign")),
    File("run/transfer_set/manifest.json", "delete"),
    File("run/transfer_set/shards.jsonl"),
    File("run/transfer_set/images-*.npy"),
    File("run/transfer_set/labels-*.npy"),
    File("run/metrics.jsonl"),
    File("run/seconds.json"),
)


class Synthesis(_OfMain):
    name = "synthesis"
    files = (*RUN_FILES, File("run/synthesis/*/**/d/*"))

    def is_half_way(self, folder):
        run = folder / "run"
        return (
            len(shards(run)) >= 4
            and checkpoint_steps(run / "synthesis")
            and (run / "metrics.jsonl").stat().st_size
        )


class Distillation(_OfMain):
    name = "distillation"
    files = (*RUN_FILES, File("run/student/*/**/d/*", "folder"))
    grows = 700

    def make_before(self, folder):
        folder.mkdir(exist_ok=True)
        self._run_until(folder, lambda: checkpoint_steps(folder / "run" / "student"))
        shutil.rmtree(folder / "run" / "student")

    def is_half_way(self, folder):
        steps = checkpoint_steps(folder / "run" / "student")
        return len(steps) >= 2 and steps[-1] >= 20


class Evaluation(_OfMain):
    name = "evaluation"
    done = 0
    grows = 12
    files = (
        File("run/run.json", "delete", ("truncated", "flipped", "foreign")),
        File("run/student.safetensors", "delete"),
        File("run/results.json", "delete"),
        File("test_set.npz", "restore", ("truncated", "flipped", "missing")),
    )

    def program(self, folder, **changes):
        changes = {"data__dataset": "", "data__file": folder / "test_set.npz"} | changes
        return super().program(folder, **changes)

    def make_before(self, folder):
        folder.mkdir(exist_ok=True)
        real = fault_programs.real_images("test")
        images = np.concatenate([real.images] * 20)
        labels = np.concatenate([real.labels] * 20)
        np.savez(folder / "test_set.npz", images=images, labels=labels)
        command = self.start(folder, data__file="")
        assert command.wait() == 0, command.stderr

    def make_foreign(self, folder):
        self.make_before(folder)
        shutil.rmtree(folder / "run")
        super().make_foreign(folder)

    def is_half_way(self, folder):
        return (folder / "run" / "results.json").exists()

    def result(self, folder):
        results = json.loads((folder / "run" / "results.json").read_text())
        return super().result(folder) | {
            "student accuracy": results["student"]["test_accuracy"],
            "teacher accuracy": results["teacher"]["test_accuracy"],
            "test set": results["test_set_sha256"],
        }


class TeacherTraining(Stage):
    name = "teacher training"
    done = 0
    files = (
        File("run/run.json", "delete", ("truncated", "flipped", "foreign")),
        File("run/metrics.jsonl"),
        File("run/seconds.json"),
        File("run/teacher/*/**/d/*", "folder"),
        File("run/teacher.safetensors", state="end"),
        File("run/teacher.json", "delete", state="end"),
    )
    grows = 1_200

    def program(self, folder, **changes):
        settings = {
            "cpu_devices": 2,
            "num_epochs": 3,
            "batch_size": 32,
            "warmup_steps": 2,
            "log_every": 10,
            "checkpoint_every": 10,
        } | changes
        return (
            fault_programs.train_teacher,
            [
                "--config=configs/teachers/mnist.py",
                f"--workdir={folder / 'run'}",
                *(f"--config.{key}={value}" for key, value in settings.items()),
            ],
        )

    def make_before(self, folder):
        folder.mkdir(exist_ok=True)

    def make_foreign(self, folder):
        command = self.start(folder, seed=1)
        assert command.wait() == 0, command.stderr

    def is_half_way(self, folder):
        steps = checkpoint_steps(folder / "run" / "teacher")
        return len(steps) >= 2 and steps[-1] >= 20

    def result(self, folder):
        manifest = json.loads((folder / "run" / "teacher.json").read_text())
        variables = weights.load(folder / "run" / "teacher.safetensors")[0]
        return {
            "teacher": weights.digest(variables),
            "accuracy": manifest["test_accuracy"],
        }

    def finished(self, folder):
        path = folder / "run" / "teacher.json"
        return {"teacher.json": identity(path)} if path.exists() else {}


class DataPreparation(Stage):
    name = "data preparation"
    done = 0
    graceful = False  # Nothing is worth saving before the end.
    waits = True
    files = (
        File("raw/t10k-images-idx3-ubyte", "restore", state="originals"),
        File("raw/train-labels-idx1-ubyte", "restore", state="originals"),
    )
    grows = 200

    def program(self, folder, **changes):
        raw = folder / "raw"
        return (
            fault_programs.prepare_data,
            str(folder / "tfds"),
            str(raw) if raw.exists() else "",
        )

    def make_before(self, folder):
        folder.mkdir(exist_ok=True)

    def originals(self):
        """Original files that are not the published ones."""
        return self.foreign()

    def make_foreign(self, folder):
        (folder / "raw").mkdir()
        for name in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                path = folder / "raw" / f"{name}-{kind}-ubyte"
                path.write_bytes(b"\0\0\x08\x01\0\0\0\x02" + name.encode())

    def is_half_way(self, folder):
        staging = folder / "tfds" / ".preparing-mnist" / "tfds" / "mnist" / "3.0.1"
        return staging.exists() and len(list(staging.iterdir())) > 5

    def is_held(self, folder):
        return is_locked(folder / "tfds" / ".preparing-mnist.lock")

    def result(self, folder):
        root = folder / "tfds" / "mnist" / "3.0.1"
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.iterdir())
        }

    def finished(self, folder):
        root = folder / "tfds" / "mnist" / "3.0.1"
        return {path.name: identity(path) for path in sorted(root.glob("*"))}


class Export(_OfMain):
    name = "export"
    done = 0
    files = (
        File("run/run.json", "restore", ("truncated", "flipped", "missing")),
        File("run/transfer_set/manifest.json", "restore"),
        File("run/transfer_set/images-*.npy", "restore"),
        File("run/transfer_set/shards.jsonl", "restore"),
    )
    output = "out.npz"
    grows = 100

    def program(self, folder, **changes):
        return (
            command_runner.run_module,
            "export",
            [
                f"--checkpoint={folder / 'run'}",
                "--format=npz",
                f"--output={folder / self.output}",
                "--overwrite",
            ],
        )

    def make_before(self, folder):
        folder.mkdir(exist_ok=True)
        command = _OfMain.program(self, folder, **self._sizes())
        command = self.lab.runner.call(*command)
        assert command.wait() == 3, command.stderr

    def make_foreign(self, folder):
        folder.mkdir(exist_ok=True)
        command = _OfMain.program(self, folder, seed=1, **self._sizes())
        command = self.lab.runner.call(*command)
        assert command.wait() == 3, command.stderr

    def _sizes(self):
        return {"teacher__weights": "mnist_lenet5", "synthesis__num_images": 400}

    def start(self, folder, wrap=None, **changes):
        return Stage.start(self, folder, wrap, **changes)

    def is_half_way(self, folder):
        return (folder / f".{self.output}.partial").exists()

    def is_held(self, folder):
        return self.is_half_way(folder)

    def result(self, folder):
        with np.load(folder / self.output) as arrays:
            return {
                name: hashlib.sha256(arrays[name].tobytes()).hexdigest()
                for name in arrays.files
            }

    def finished(self, folder):
        return {}  # Made again whenever it is asked for.


STAGES: dict[str, Callable[..., Stage]] = {
    stage.name: stage
    for stage in (
        TeacherTraining,
        DataPreparation,
        Synthesis,
        Distillation,
        Evaluation,
        Export,
    )
}
