"""What `sweep.json` says, and whose transfer set a run gets."""

import dataclasses
import json

import numpy as np
import pytest

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import files
from dfkd_jax.sweeps import outcome, sharing
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet


def finish(run, accuracy, *, synthesis=10.0, versions=None):
    """Leaves what a finished run leaves, as far as a sweep looks."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    evaluation = {"num_examples": 5_000, "agreement_with_teacher": 0.9}
    seconds = {"synthesis": synthesis, "distillation": 5.0}
    content = {
        "experiment": "mnist_smoke",
        "dataset": "mnist",
        "data_free": True,
        "num_pseudo_samples": 400,
        "teacher": {
            "network": "lenet5",
            "weights": "mnist_lenet5",
            "sha256": "f" * 64,
            "parameters": 61_706,
            "test_accuracy": None,
            "validation_accuracy": 0.99,
        },
        "student": {
            "network": "lenet5_half",
            "sha256": "e" * 64,
            "parameters": 35_820,
            "test_accuracy": None,
            "validation_accuracy": accuracy,
            "evaluation": evaluation,
        },
        "transfer_set_sha256": "d" * 64,
        "seconds": seconds,
        "machine": {"backend": "cpu"},
        "versions": versions or {"jax": "0.10.2"},
    }
    files.write_json(run.workdir / "results.json", content)
    files.write_json(run.workdir / "seconds.json", seconds)
    settings = dataclasses.asdict(run.settings)
    del settings["data"]
    files.write_json(run.workdir / "run.json", {"config": settings}, sealed=True)


def summarize(runs, failed=None):
    return outcome.summarize(
        runs,
        failed or {},
        name="noise",
        config_file="configs/mnist.py:smoke",
        fixed={},
        command="python -m dfkd_jax.sweep",
    )


def test_mean_and_deviation_over_seeds(runs):
    for run, accuracy in zip(runs, (0.8, 0.5, 0.9, 0.6), strict=True):
        finish(run, accuracy)
    summary = json.loads(json.dumps(summarize(runs)))
    first, second = summary["rows"]
    assert first["settings"] == {"distillation.noise": 0.0}
    assert [run["accuracy"] for run in first["runs"]] == [0.8, 0.9]
    assert first["mean"] == pytest.approx(0.85)
    assert first["std"] == pytest.approx(0.1 / 2**0.5)
    assert second["mean"] == pytest.approx(0.55)
    assert summary["seeds"] == [0, 1]
    assert summary["varied"] == ["distillation.noise"]
    assert summary["split"] == "validation"
    assert summary["num_examples"] == 5_000
    assert summary["versions"] == {"jax": "0.10.2"}
    assert first["runs"][0]["teacher"]["accuracy"] == 0.99


def test_runs_that_failed_are_named_and_not_counted(runs, capsys):
    for run in runs[:2]:
        finish(run, 0.75)
    summary = summarize(runs, {runs[2]: "no disk", runs[3]: "no luck"})
    first, second = summary["rows"]
    assert (first["mean"], first["std"]) == (0.75, None)
    assert first["failed"] == {"1": "no disk"}
    assert second["failed"] == {"1": "no luck"}
    outcome.print_table(summary)
    printed = capsys.readouterr().out
    assert "75.00%" in printed
    assert printed.count("1 of 2") == 2


def test_nothing_finished(runs, capsys):
    summary = summarize(runs, {run: "no" for run in runs})
    assert [row["mean"] for row in summary["rows"]] == [None, None]
    assert summary["machine"] == []
    outcome.print_table(summary)
    assert capsys.readouterr().out.count("0 of 2") == 2


def test_other_versions_do_not_go_unnoticed(runs):
    finish(runs[0], 0.8)
    finish(runs[1], 0.8, versions={"jax": "0.12.0"})
    assert summarize(runs)["versions"] == [{"jax": "0.10.2"}, {"jax": "0.12.0"}]


def test_finished_on_the_test_set_is_not_finished_on_the_validation_part(runs):
    finish(runs[0], None)
    assert not outcome.is_finished(runs[0])
    finish(runs[0], 0.0)
    assert outcome.is_finished(runs[0])
    assert outcome.in_words(runs[0]) == "validation accuracy 0.00%"


def test_a_work_directory_of_other_settings_is_refused(runs):
    for run in runs:
        finish(run, 0.5)
    output = runs[0].workdir.parents[1] / "sweep.json"
    outcome.check_workdirs(runs, output)
    path = runs[2].workdir / "run.json"
    content = files.read_object(path)
    content["config"]["targets"]["sigma"] = 7.5
    files.write_json(path, content, sealed=True)
    with pytest.raises(CheckpointError) as error:
        outcome.check_workdirs(runs, output)
    assert str(runs[2].workdir) in str(error.value)
    assert "targets.sigma was 7.5 and is now 0.0" in str(error.value)


def test_what_is_not_of_a_sweep_is_left_as_it_is(runs, tmp_path):
    mine = runs[0].workdir / "student" / "100"
    mine.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"seed0 is not empty \(student\) and"):
        outcome.check_workdirs(runs, tmp_path / "sweep.json")
    files.write_json(tmp_path / "sweep.json", {"learning_rate": [1, 2]})
    with pytest.raises(StorageError, match=r"sweep\.json is no sweep's"):
        outcome.check_workdirs(runs[1:], tmp_path / "sweep.json")


def make_transfer_set(run, *, shards=2):
    made = TransferSet(
        run.workdir / "transfer_set",
        Manifest(
            num_images=4,
            shard_size=2,
            image_shape=(2, 2, 1),
            num_classes=3,
            seed=run.seed,
            teacher_sha256="f" * 64,
            settings={},
        ),
    )
    for shard in range(shards):
        made.add(shard, np.full((2, 2, 2, 1), shard), np.full((2, 3), shard))
    return made


def test_a_whole_transfer_set_is_shared(runs):
    one, other = runs[0], runs[1]
    assert one.transfer_set == other.transfer_set != runs[2].transfer_set
    finish(one, 0.5)
    made = make_transfer_set(one, shards=1)
    assert sharing.sources(runs) == {}  # It is not whole.
    made = make_transfer_set(one)
    assert sharing.sources(runs) == {one.transfer_set: one}
    other.workdir.mkdir(parents=True)
    sharing.share(one, other)
    shared = TransferSet.existing(other.workdir / "transfer_set")
    assert shared.verify() == []
    assert shared.digest() == made.digest()
    for shard in range(2):
        for mine, its in zip(made.paths(shard), shared.paths(shard), strict=True):
            assert mine.samefile(its)
    assert sharing.origin(other) == {"run": "noise=0/seed0", "seconds": 10.0}
    assert not sharing.is_source(other)  # It is the first one's.


def test_damage_in_a_shared_transfer_set_is_mended_in_one_place(runs):
    one, other = runs[0], runs[1]
    finish(one, 0.5)
    made = make_transfer_set(one)
    other.workdir.mkdir(parents=True)
    sharing.share(one, other)
    shared = TransferSet.existing(other.workdir / "transfer_set")
    before = made.paths(0)[0].read_bytes()
    shared.add(0, np.full((2, 2, 2, 1), 9), np.full((2, 3), 9))
    assert made.paths(0)[0].read_bytes() == before
    assert made.verify() == []


def test_a_transfer_set_that_was_begun_is_kept(runs):
    one, other = runs[0], runs[1]
    finish(one, 0.5)
    make_transfer_set(one)
    begun = make_transfer_set(other, shards=1)
    sharing.share(one, other)
    assert sharing.origin(other) == {}
    assert not begun.paths(0)[0].samefile(first_shard(one))


def first_shard(run):
    return run.workdir / "transfer_set" / "images-00000.npy"


def test_seconds_are_those_of_a_run_by_itself(runs):
    one, other = runs[0], runs[1]
    finish(one, 0.5, synthesis=100.0)
    make_transfer_set(one)
    other.workdir.mkdir(parents=True)
    sharing.share(one, other)
    finish(other, 0.5, synthesis=0.0)
    first, second = (row["runs"][0] for row in summarize(runs[:2])["rows"])
    assert (
        first["seconds"]
        == second["seconds"]
        == {
            "synthesis": 100.0,
            "distillation": 5.0,
        }
    )
    assert second["transfer_set_of"] == "noise=0/seed0"
    assert "transfer_set_of" not in first


@pytest.mark.parametrize(
    "content",
    [
        {"student": "x"},
        {"student": {"validation_accuracy": "high"}},
        {"student": {"validation_accuracy": 0.9}, "seconds": "x"},
        {"student": {"validation_accuracy": 0.9}, "seconds": {"synthesis": None}},
        {"student": {"validation_accuracy": 0.9}},
    ],
)
def test_results_that_no_run_wrote(runs, content):
    """A wrong value, or one that is missing."""
    run = runs[0]
    run.workdir.mkdir(parents=True)
    content = {"dataset": "mnist"} | content
    (run.workdir / "results.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"results\.json is not as dfkd_jax"):
        outcome.summarize(runs, {}, name="it", config_file="it", fixed={}, command="it")
