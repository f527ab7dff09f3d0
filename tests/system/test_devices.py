"""One, two or four devices: the same pictures and, up to rounding, the same student."""

import pathlib

import command_runner
import custom_nets
import jax
import numpy as np
import pytest
import toy
from flax import traverse_util
from tiny_runs import TINY, checkpoint_steps, read_transfer_set

from dfkd_jax import config as configuration
from dfkd_jax.distillation import loop
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import weights, writers
from dfkd_jax.teachers import weights as teachers

FEW_STEPS = {
    "distillation__num_steps": 4,
    "distillation__log_every": 2,
    "distillation__checkpoint_every": 2,
}


def _student(workdir):
    variables, _ = weights.load(workdir / "student.safetensors")
    return traverse_util.flatten_dict(variables, sep="/")


def _assert_same_run(workdir, other):
    for mine, theirs in zip(
        read_transfer_set(workdir), read_transfer_set(other), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    student = _student(workdir)
    for name, leaf in _student(other).items():
        np.testing.assert_allclose(student[name], leaf, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def on_two_devices(toys, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    toys.finish(workdir, cpu_devices=2, **FEW_STEPS)
    return workdir


@pytest.mark.parametrize("cpu_devices", [pytest.param(1, marks=pytest.mark.full), 4])
def test_number_of_devices_does_not_matter(toys, tmp_path, on_two_devices, cpu_devices):
    workdir = tmp_path / "run"
    command = toys.finish(workdir, cpu_devices=cpu_devices, **FEW_STEPS)
    assert f"devices: {cpu_devices}\n" in command.stdout
    _assert_same_run(workdir, on_two_devices)


@pytest.mark.full
def test_goes_on_with_another_number_of_devices(toys, on_two_devices, tmp_path):
    """As when a job moves to another machine."""
    workdir = tmp_path / "run"
    changes = FEW_STEPS | {"synthesis__checkpoint_seconds": 0, "cpu_devices": 0}
    arguments = toys.arguments(workdir, **changes)

    def start(devices):
        flags = toys.runner.environment["XLA_FLAGS"]
        flags += f" --xla_force_host_platform_device_count={devices}"
        return toys.runner.call(
            command_runner.run_module, "main", arguments, XLA_FLAGS=flags
        )

    start(2).kill_when(lambda: checkpoint_steps(workdir / "synthesis"))
    start(4).kill_when(lambda: 2 in checkpoint_steps(workdir / "student"))
    command = start(1)
    assert command.wait() == toys.done, command.stderr
    _assert_same_run(workdir, on_two_devices)


def test_every_device_has_the_same_student(monkeypatch, tmp_path):
    """What a step returns is read from the first device: others could drift unseen."""
    assert jax.local_device_count() == 4
    states = []
    train = loop.training.train

    def spy(*args, **kwargs):
        states.append(train(*args, **kwargs))
        return states[0]

    monkeypatch.setattr(loop.training, "train", spy)
    weights_file = toy.write_teacher(tmp_path / "toy.safetensors")
    teacher = teachers.load(
        configuration.NetworkConfig(module="custom_nets:Toy", weights=str(weights_file))
    )
    settings = configuration.DistillationConfig(
        num_steps=3,
        batch_size=TINY["distillation.batch_size"],
        warmup_steps=0,
        loss="hinton",
        temperature=4.0,
        shift=1.0,
        noise=0.1,
    )
    loop.distil(
        settings,
        teacher=teacher,
        student=Linen(custom_nets.Toy(width=6)),
        source=_Noise(),
        compute_dtype="float32",
        seed=0,
        workdir=pathlib.Path(tmp_path),
        stopwatch=writers.Stopwatch(tmp_path / "seconds.json"),
    )
    leaves = jax.tree_util.tree_leaves_with_path(states[0])
    assert len(leaves) == 1 + 4 + 1 + 2 * 4 + 1  # Step, weights, AdamW's state.
    for path, leaf in leaves:
        parts = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(parts) == 4
        for part in parts[1:]:
            np.testing.assert_array_equal(part, parts[0], err_msg=str(path))


class _Noise:
    """A transfer set of 16 images in memory."""

    images = (
        np.random.default_rng(0).normal(size=(16, *toy.IMAGE_SHAPE)).astype(np.float32)
    )

    def __len__(self):
        return len(self.images)

    def gather(self, indices):
        return self.images[indices], np.full((len(indices), 10), 0.1, np.float32)
