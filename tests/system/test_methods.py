"""Every variant of a config makes a student, and says what it made it from."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import toy
from tiny_runs import checkpoint_steps, fingerprint, read_transfer_set

from dfkd_jax.runtime import files, writers
from dfkd_jax.synthesis.transfer_set import TransferSet

HAS_PAGES = importlib.util.find_spec("jinja2") is not None
REAL = {
    "kd": "55,000 training images of mnist with the teacher's answers",
    "labels": "55,000 training images of mnist with their labels",
    "few_shot": "200 training images of mnist with the teacher's answers",
    "metadata": "mean and covariance of the teacher's features over 55,000 training "
    "images of mnist",
}


def read(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def dafl(toys, tmp_path_factory):
    """A DAFL run that was not interrupted; do not change it."""
    workdir = tmp_path_factory.mktemp("dafl") / "run"
    toys.finish(workdir, variant="dafl")
    return workdir


@pytest.fixture(scope="module")
def dafl_of_mnist(lab, tmp_path_factory):
    """The same of MNIST's teacher."""
    workdir = tmp_path_factory.mktemp("dafl_of_mnist") / "run"
    lab.finish(workdir, variant="dafl")
    return workdir


def test_what_dafl_leaves(dafl):
    results = read(dafl)
    assert results["kind"] == "dafl"
    assert results["feature_layer"] == "hidden"
    assert results["num_pseudo_samples"] == 20 * 8
    assert results["student"]["parameters"] == 65 * 6 + 7 * 10
    metrics = writers.read_scalars(dafl / "metrics.jsonl", stage="distillation")
    assert list(metrics) == [5, 10, 15, 20]
    total = {
        name: metrics[20][f"generator_{name}"]
        for name in ("loss", "one_hot", "information_entropy", "activation")
    }
    assert total["loss"] == pytest.approx(
        total["one_hot"] + 5 * total["information_entropy"] + 0.1 * total["activation"]
    )
    images, labels = read_transfer_set(dafl)
    assert images.shape == (30, 8, 8, 1)
    np.testing.assert_allclose(labels.sum(1), np.ones(30), rtol=1e-5)
    assert images.std(0).max() > 1e-3  # Different noise, different images.
    if HAS_PAGES:
        assert "160" in (dafl / "report.html").read_text()


@pytest.mark.full
def test_dafl_killed_and_started_again(toys, dafl, tmp_path):
    workdir = tmp_path / "run"
    for moment in (
        lambda: checkpoint_steps(workdir / "student"),
        lambda: max(checkpoint_steps(workdir / "student")) >= 15,
        lambda: (workdir / "transfer_set" / "images-00000.npy").exists(),
    ):
        toys.start(workdir, variant="dafl").kill_when(moment)
    toys.finish(workdir, variant="dafl")
    assert fingerprint(workdir) == fingerprint(dafl)


def test_dafl_goes_on_from_its_checkpoint(toys, dafl, tmp_path):
    workdir = shutil.copytree(dafl, tmp_path / "run", symlinks=True)
    (workdir / "student.safetensors").unlink()
    (workdir / "results.json").unlink()
    shutil.rmtree(workdir / "transfer_set")
    shutil.rmtree(workdir / "student" / "20")
    (workdir / "metrics.jsonl").unlink()
    toys.finish(workdir, variant="dafl")
    metrics = writers.read_scalars(workdir / "metrics.jsonl", stage="distillation")
    assert list(metrics) == [20]
    assert fingerprint(workdir) == fingerprint(dafl)


@pytest.mark.full
def test_how_near_pseudo_samples_come(
    lab, dafl_of_mnist, prepared_training_data, tmp_path
):
    """Two pseudo samples are copies of training images, all test images are gray."""
    import prepared_set

    workdir = shutil.copytree(dafl_of_mnist, tmp_path / "run", symlinks=True)
    description = files.read_object(workdir / "run.json")["description"]
    made = TransferSet.existing(workdir / "transfer_set")
    images, labels = made.gather(np.arange(30))
    stripes = np.stack([prepared_set.striped(label) for label in (3, 8)])[..., None]
    images[[4, 20]] = (stripes / 255 - description["mean"]) / description["std"]
    shutil.rmtree(made.folder)
    made = TransferSet(made.folder, made.manifest)
    for shard, rows in enumerate(np.split(np.arange(30), made.manifest.num_shards)):
        made.add(shard, images[rows], labels[rows])

    # All images take a minute.
    arguments = [str(workdir), f"--data_dir={prepared_training_data}"]
    command = lab.runner.call(
        prepared_set.run_on_the_first, 500, "neighbors", arguments
    )
    assert command.wait() == 0, command.stderr
    assert "30 pseudo samples and 500 test images against 500" in command.stdout
    assert "2 are equal to a training image" in command.stdout
    found = files.read_object(workdir / "neighbors.json")
    assert found["num_equal"] == 2
    assert found["transfer_set_sha256"] == made.digest()
    # Four of 28 columns are 231 instead of 33, the others 0; the first pixel, which is
    # 255, lies in the columns of the nearest.
    squares = (4 * 28 - 1) * 198**2 + 24**2 + 24 * 28 * 33**2
    gray = np.sqrt(squares / 784) / 255
    np.testing.assert_allclose(found["held_out_images"], np.full(6, gray), atol=1e-5)


@pytest.mark.full
def test_neighbors_of_what(lab, dafl_of_mnist, tmp_path):
    workdir = shutil.copytree(dafl_of_mnist, tmp_path / "run", symlinks=True)
    identity = files.read_object(workdir / "run.json")
    identity["description"]["dataset"] = ""
    files.write_json(workdir / "run.json", identity, sealed=True)
    no_data = f"--data_dir={lab.empty}"
    (status, line), (early, unfinished), (unnamed, which), (data, none), (wrong, _) = (
        lab.errors(
            lab.runner.start("neighbors"),
            lab.runner.start("neighbors", tmp_path),
            lab.runner.start("neighbors", workdir),
            lab.runner.start("neighbors", dafl_of_mnist, no_data),
            lab.runner.start("neighbors", dafl_of_mnist, "--dataset=cifar10"),
        )
    )
    assert (status, early, unnamed, data, wrong) == (2, 1, 2, 3, 1)
    assert "Name one work directory" in line
    assert "has no student yet" in unfinished
    assert "--dataset=mnist|" in which
    assert "mnist" in none
    assert not (dafl_of_mnist / "neighbors.json").exists()


def test_checkpoint_of_a_game_is_evaluated_as_its_student(lab, dafl, tmp_path):
    command = lab.runner.start(
        "evaluate",
        f"--checkpoint={dafl / 'student'}",
        f"--data_file={toy.write_test_set(tmp_path / 'own.npz')}",
        "--module=custom_nets:Toy",
    )
    assert command.wait() == 0, command.stderr
    assert "custom_nets:Toy on own" in command.stdout


def test_workdir_of_another_method_is_refused(lab, toys, dafl, tmp_path):
    workdir = shutil.copytree(dafl, tmp_path / "run", symlinks=True)
    [(status, line)] = lab.errors(toys.start(workdir, variant="dfad"))
    assert status == 1
    assert "kind was 'dafl' and is now 'dfad'" in line


@pytest.mark.parametrize(
    ("variant", "setting", "phrases"),
    [
        ("dafl", {"feature_layer": "dense_3"}, ["config.feature_layer", "dense_2"]),
        ("dafl", {"batch_size": 7}, ["config.batch_size=7", "2 devices"]),
        ("dfad", {"one_hot_weight": 1}, ["one_hot_weight is not a setting"]),
        ("kd", {"synthesis__num_images": 10}, ["config.synthesis is not a setting"]),
        ("kd", {"data__dataset": ""}, ["config.data.dataset=''", "name the data"]),
    ],
)
def test_settings_that_are_refused(lab, tmp_path, variant, setting, phrases):
    command = lab.start(tmp_path / "run", variant=variant, **setting)
    [(status, line)] = lab.errors(command)
    assert status == 2
    assert all(phrase in line for phrase in phrases), line
    assert not (tmp_path / "run").exists()


def test_inspect_wants_targets(lab):
    command = lab.runner.start("inspect", "--config=configs/mnist.py:dafl")
    [(status, line)] = lab.errors(command)
    assert status == 2
    assert "config.targets" in line and "'dafl'" in line


def _assert_said(command, workdir, variant):
    """That it is not data-free: at the start, at the end, and in every file."""
    warning = f"NOT data-free: the student learns from {REAL[variant]}."
    assert command.stdout.splitlines()[1] == warning
    assert f"NOT data-free: the student learned from {REAL[variant]}." in command.stdout
    results = read(workdir)
    assert results["data_free"] is False
    assert results["real_data"] == REAL[variant]
    assert results["num_pseudo_samples"] == (40 if variant == "metadata" else 0)
    assert (workdir / "transfer_set").exists() == (variant == "metadata")
    if HAS_PAGES:
        report = (workdir / "report.html").read_text()
        assert "NOT data-free" in report
        assert "no real image and no label was read" not in report


@pytest.mark.full
@pytest.mark.parametrize("variant", ["kd", "few_shot"])
def test_baselines_on_real_data_say_so(lab, prepared_training_data, tmp_path, variant):
    workdir = tmp_path / "run"
    command = lab.start(workdir, variant=variant, data__dir=prepared_training_data)
    assert command.wait() == 0, command.stderr
    _assert_said(command, workdir, variant)


@pytest.mark.full
def test_metadata_is_recorded_once(lab, prepared_training_data, tmp_path):
    workdir, data_dir = tmp_path / "run", tmp_path / "data"
    shutil.copytree(prepared_training_data, data_dir)
    arguments = {"variant": "metadata", "data__dir": data_dir}
    lab.start(workdir, **arguments).kill_when((workdir / "statistics.npz").exists)
    (data_dir / "mnist" / "3.0.1" / "mnist-train.array_record-00000-of-00001").unlink()
    command = lab.start(workdir, **arguments)
    assert command.wait() == 0, command.stderr
    assert "Recording" not in command.stdout
    _assert_said(command, workdir, "metadata")
    with np.load(workdir / "statistics.npz") as arrays:
        assert arrays["mean"].shape == (84,)
        assert arrays["covariance"].shape == (84, 84)
        # Ten images that differ.
        assert np.linalg.matrix_rank(arrays["covariance"], tol=1e-3) in range(5, 10)


@pytest.mark.full
def test_labels_teach_the_labels(lab, prepared_training_data, tmp_path):
    """Ten images, one a class: nothing but their labels tells which is which."""
    workdir = tmp_path / "run"
    command = lab.start(
        workdir,
        variant="labels",
        data__dir=prepared_training_data,
        distillation__num_steps=120,
        distillation__batch_size=40,
        distillation__shift=0,
        distillation__affine=0,
        distillation__log_every=20,
        distillation__checkpoint_every=120,
    )
    assert command.wait() == 0, command.stderr
    _assert_said(command, workdir, "labels")
    metrics = writers.read_scalars(workdir / "metrics.jsonl", stage="distillation")
    assert metrics[120]["agreement"] > 0.9


def test_real_data_that_is_not_there_stops_the_start(lab, tmp_path):
    [(status, line)] = lab.errors(lab.start(tmp_path / "run", variant="kd"))
    assert status == 3
    # Which of them depends on what is installed.
    assert "Ways out" in line or 'pip install "."' in line
    assert not (tmp_path / "run").exists()
