"""A run that is killed and started again is the run that was never interrupted."""

import os
import random
import shutil
import signal
import time

import command_runner
import jax
import numpy as np
import pytest
from tiny_runs import NUM_SHARDS, checkpoint_steps, fingerprint, identity, shards

from dfkd_jax import pipeline
from dfkd_jax.methods import soft_targets
from dfkd_jax.runtime import files, parallel


def _run_and_tell_steps(arguments):
    """`main`; prints the step that a state has before each call of the devices."""

    def tell(lift, stage):
        def lift_and_tell(step):
            lifted = lift(step)

            def telling(state, *rest):
                with jax.transfer_guard("allow"):
                    print(stage, np.asarray(state.step).max(), flush=True)
                return lifted(state, *rest)

            return telling

        return lift_and_tell

    parallel.batch_parallel = tell(parallel.batch_parallel, "synthesis-step")
    parallel.data_parallel = tell(parallel.data_parallel, "student-step")
    command_runner.run_module("main", arguments)


def _steps(command, stage):
    """What `_run_and_tell_steps` told of a stage."""
    whole = command.stdout.rpartition("\n")[0]  # Without a line that is being written.
    lines = [line.split() for line in whole.splitlines()]
    return [int(line[1]) for line in lines if line and line[0] == stage]


def test_killed_in_every_stage(toys, finished_toy, tmp_path):
    workdir = tmp_path / "run"
    moments = (
        lambda: (workdir / "run.json").exists(),
        lambda: (workdir / "transfer_set" / "images-00000.npy").exists(),
        lambda: len(shards(workdir)) >= 2,
        lambda: len(shards(workdir)) == 2 * NUM_SHARDS,
        lambda: checkpoint_steps(workdir / "student"),
        lambda: max(checkpoint_steps(workdir / "student")) >= 10,
        lambda: (workdir / "student.safetensors").exists(),
    )
    made = {}
    for moment in moments:
        toys.start(workdir).kill_when(moment)
        now = shards(workdir)
        assert made.items() <= now.items()  # Nothing is made twice.
        made = now
    student = identity(workdir / "student.safetensors")
    toys.finish(workdir)
    assert shards(workdir) == made
    assert identity(workdir / "student.safetensors") == student
    assert fingerprint(workdir) == fingerprint(finished_toy)
    last = toys.finish(workdir).stdout
    assert "Synthesis: done before, 40 pseudo samples" in last
    assert f"Student: {workdir}/student.safetensors\nNext: python -m dfkd_jax." in last


@pytest.mark.full
def test_killed_while_a_part_of_the_teacher_is_fitted_and_after(toys, tmp_path):
    """It is fitted where there is no checkpoint, and not again."""
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
    changes = {"distillation__start": "teacher"}
    command = toys.finish(undisturbed, **changes)
    assert "fitted on" in command.stdout
    moments = (
        lambda: len(shards(workdir)) == 2 * NUM_SHARDS,
        lambda: checkpoint_steps(workdir / "student"),
    )
    for moment in moments:
        toys.start(workdir, **changes).kill_when(moment)
    assert not (workdir / "student.safetensors").exists()
    assert "fitted on" not in toys.finish(workdir, **changes).stdout
    assert fingerprint(workdir) == fingerprint(undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random(toys, finished_toy, tmp_path, seed):
    workdir = tmp_path / "run"
    delays = random.Random(seed)
    for _ in range(4):
        command = toys.start(workdir)
        time.sleep(delays.uniform(0.3, 3))
        if not command.running:
            break
        command.kill()
    toys.finish(workdir)
    assert fingerprint(workdir) == fingerprint(finished_toy)


def test_batch_under_way_goes_on_from_its_checkpoint(toys, finished_toy, tmp_path):
    workdir = tmp_path / "run"
    changes = {"synthesis__checkpoint_seconds": 0}
    toys.start(workdir, **changes).kill_when(
        lambda: checkpoint_steps(workdir / "synthesis")
    )
    finished = len(shards(workdir))
    assert finished < 2 * NUM_SHARDS
    arguments = toys.arguments(workdir, **changes)
    command = toys.runner.call(_run_and_tell_steps, arguments)
    assert command.wait() == toys.done, command.stderr
    assert 0 < (begun := _steps(command, "synthesis-step")[0]) < 6
    assert f"synthesis: going on at step {begun} of the batch" in command.stdout
    assert _steps(command, "student-step") == [0, 5, 10, 15]
    assert fingerprint(workdir) == fingerprint(finished_toy)


def _run_as_before(arguments):
    """`main` of a release that recorded settings without effect, too."""
    for module in (pipeline, soft_targets):
        module.recorded = lambda cls, values, before: values
    command_runner.run_module("main", arguments)


def test_settings_without_effect_are_not_recorded(toys, tmp_path):
    """And where an earlier release recorded them, its run goes on and verifies."""
    workdir = tmp_path / "run"
    changes = {"targets__distribution": "one_hot", "synthesis__batch_norm": 0.0}
    command = toys.runner.call(_run_as_before, toys.arguments(workdir, **changes))
    command.kill_when(lambda: len(shards(workdir)) >= 2)
    made, record = shards(workdir), (workdir / "run.json").read_bytes()
    assert b'"sigma"' in record and b'"momentum"' in record
    toys.finish(workdir, **changes)
    assert (workdir / "run.json").read_bytes() == record
    assert made.items() <= shards(workdir).items()
    module = "--module=custom_nets:Toy"
    command = toys.runner.start(
        "verify", workdir, module, module.replace("module", "teacher_module")
    )
    assert command.wait() == 0, command.stdout
    assert "holds        config:" in command.stdout

    new = tmp_path / "new"
    toys.finish(new, **changes)
    assert fingerprint(new) == fingerprint(workdir)
    for name in ("run.json", "results.json"):
        found = files.read_object(new / name)["config"]
        assert "distribution" in found["targets"]
        assert not {"sigma", "betas", "candidates"} & found["targets"].keys()
        assert not {"momentum", "feature_weight"} & found["distillation"].keys()
        assert "batch_norm_distance" not in found["synthesis"]
        assert "network" not in found["teacher"]  # It has a module.
    manifest = files.read_object(new / "transfer_set" / "manifest.json")
    assert "sigma" not in manifest["settings"]["targets"]


def test_student_goes_on_from_its_checkpoint(lab, workdir_copy, finished_workdir):
    (workdir_copy / "student.safetensors").unlink()
    (workdir_copy / "results.json").unlink()
    shutil.rmtree(workdir_copy / "student" / "20")
    # What a process that was killed while saving leaves behind.
    half = workdir_copy / "student" / "20.orbax-checkpoint-tmp"
    shutil.copytree(workdir_copy / "student" / "15" / "state" / "d", half / "d")
    arguments = lab.arguments(workdir_copy)
    command = lab.runner.call(_run_and_tell_steps, arguments)
    assert command.wait() == 3, command.stderr
    assert _steps(command, "synthesis-step") == []
    assert _steps(command, "student-step") == [15]
    assert fingerprint(workdir_copy) == fingerprint(finished_workdir)


def test_damaged_shards_are_made_again_and_nothing_else(toys, toy_copy, finished_toy):
    (toy_copy / "student.safetensors").unlink()
    (toy_copy / "results.json").unlink()
    shutil.rmtree(toy_copy / "student" / "20")
    flipped = toy_copy / "transfer_set" / "images-00001.npy"
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    cut = toy_copy / "transfer_set" / "labels-00002.npy"
    cut.write_bytes(cut.read_bytes()[:-1])
    before = shards(toy_copy)
    command = toys.finish(toy_copy)
    for shard in (1, 2):
        assert f"Shard {shard} of the transfer set is damaged" in command.stderr
    assert command.stderr.count("is damaged") == 2
    after = shards(toy_copy)
    assert {key for key in before if before[key] != after[key]} == {
        f"{kind} {shard}" for kind in ("images", "labels") for shard in (1, 2)
    }
    assert fingerprint(toy_copy) == fingerprint(finished_toy)


@pytest.mark.parametrize(
    ("stage", "changes", "number"),
    [
        (
            "synthesis",
            {"synthesis__num_steps": 600, "synthesis__num_images": 20},
            signal.SIGTERM,
        ),
        pytest.param(
            "student",
            {"distillation__num_steps": 1_000},
            signal.SIGINT,
            marks=pytest.mark.full,
        ),
    ],
    ids=["SIGTERM in synthesis", "SIGINT in distillation"],
)
def test_stopped_in_order(toys, tmp_path, stage, changes, number):
    """The step is finished and saved, though no checkpoint was due."""
    changes |= {"distillation__checkpoint_every": 10_000}
    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    arguments = toys.arguments(workdir, **changes)
    command = toys.runner.call(_run_and_tell_steps, arguments)
    command.interrupt_when(lambda: len(_steps(command, f"{stage}-step")) >= 5, number)
    assert command.wait() == 128 + number, command.stderr
    told = command.stderr.splitlines()
    assert told[-2].startswith("Stopping: ")
    name = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[number]
    assert told[-1].startswith(f"{name}. The same command goes on from here: python ")
    assert "-m dfkd_jax.main --config=" in told[-1]
    assert "Traceback" not in command.stderr

    made = _steps(command, f"{stage}-step")
    size = 2 if stage == "synthesis" else 5  # Steps in a call of the devices.
    assert len(checkpoint_steps(workdir / stage)) == 1
    again = toys.runner.call(_run_and_tell_steps, arguments)
    assert again.wait() == toys.done, again.stderr
    assert _steps(again, f"{stage}-step")[0] == made[-1] + size
    toys.finish(undisturbed, **changes)
    assert fingerprint(workdir) == fingerprint(undisturbed)


def test_a_second_signal_stops_at_once(toys, tmp_path):
    workdir = tmp_path / "run"
    changes = {
        "synthesis__num_steps": 10_000_000,
        "synthesis__steps_per_call": 10_000_000,
    }
    command = toys.start(workdir, **changes)  # One call that takes minutes.
    while "Synthesis" not in command.stdout:
        assert command.running, command.stderr
        time.sleep(0.01)
    time.sleep(2)  # The devices are busy.
    os.kill(command.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait() == 143
    assert not shards(workdir)
