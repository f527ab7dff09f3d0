"""Soft labels beside each other: what is counted, and what it is counted on."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax import config, config_files
from dfkd_jax.config import NetworkConfig
from dfkd_jax.errors import CheckpointError, ConfigError, MissingPackageError
from dfkd_jax.runtime import files, parallel
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet
from dfkd_jax.teachers import weights as teachers
from docs.pages import label_study, result_figures, results_files


@pytest.fixture(scope="module")
def teacher():
    found = teachers.load(NetworkConfig(weights="mnist_lenet5"))
    variables = jax.tree.map(jnp.asarray, found.variables)
    return dataclasses.replace(found, variables=variables)


def test_mismatches_are_counted_by_hand():
    labels = np.array([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9], [0.5, 0.5]])
    found = label_study.figures(labels, np.array([0, 0, 1, 1]))
    assert found["num_draws"] == 4
    assert found["drawn_for_another_class"] == 0.5
    assert found["drawn_for_another_class_by_class"] == [0.5, 0.5]
    assert found["class_shares"] == [0.5, 0.5]
    assert found["top_probability"] == pytest.approx((0.7 + 0.6 + 0.9 + 0.5) / 4)
    entropy = -np.mean(np.sum(labels * np.log(labels), 1))
    assert found["entropy"] == pytest.approx(entropy)


def test_labels_that_are_drawn_for_no_class_miss_none():
    found = label_study.figures(np.array([[0.7, 0.3]]))
    assert found["drawn_for_another_class"] is None


def test_classes_that_have_nothing_in_common_are_never_missed():
    """Concentrations are 1 for the class itself and 0 for the others."""
    labels, classes = label_study.dirichlet_labels(
        jnp.eye(4), betas=(1.0, 0.1), seed=0, count=800
    )
    assert labels.shape == (800, 4)
    assert (np.bincount(classes) == 200).all()
    assert label_study.figures(labels, classes)["drawn_for_another_class"] < 0.02


def test_classes_that_are_alike_are_missed_as_often_as_chance_says():
    """Two classes with the same weights, a third one opposite: rows (1, 1, 0)."""
    kernel = jnp.array([[1.0, 1.0, -1.0], [2.0, 2.0, -2.0]])
    labels, classes = label_study.dirichlet_labels(
        kernel, betas=(1.0,), seed=0, count=6_000
    )
    found = label_study.figures(labels, classes)["drawn_for_another_class_by_class"]
    assert found[0] == pytest.approx(0.5, abs=0.04)
    assert found[1] == pytest.approx(0.5, abs=0.04)
    assert found[2] < 0.02


def transfer_set(folder, teacher, images, labels, **changes):
    made = TransferSet(
        folder / "transfer_set",
        Manifest(
            **{
                "num_images": len(images),
                "shard_size": len(images),
                "image_shape": (28, 28, 1),
                "num_classes": 10,
                "seed": 0,
                "teacher_sha256": teacher.sha256,
                "settings": {},
            }
            | changes
        ),
    )
    made.add(0, images, labels)
    settings = {"name": "toy", "seed": 3, "targets": {"distribution": "gaussian"}}
    files.write_json(folder / "run.json", {"config": settings})
    return made


def test_the_teacher_is_asked_about_finished_pseudo_samples(
    teacher, tmp_path, monkeypatch
):
    images = np.random.default_rng(0).normal(size=(30, 28, 28, 1)).astype(np.float32)
    logits = teacher.logits(jnp.asarray(images))
    labels = np.eye(10, dtype=np.float32)[np.asarray(logits).argmax(-1)]
    labels[:6] = np.roll(labels[:6], 1, axis=1)
    folder = tmp_path / "seed0"
    made = transfer_set(folder, teacher, images, labels)
    monkeypatch.setattr(label_study, "BATCH_SIZE", 8)  # The last batch is smaller.
    found = label_study.ask_teacher(folder, teacher)
    assert found["teacher_answers_otherwise"] == pytest.approx(0.2)
    assert found["num_images"] == 30
    assert (found["name"], found["seed"]) == (tmp_path.name, 3)
    assert found["transfer_set_sha256"] == made.digest()
    assert label_study.find_runs([tmp_path, folder]) == [folder]


def test_pseudo_samples_of_another_teacher_are_refused(teacher, tmp_path):
    images, labels = np.zeros((2, 28, 28, 1)), np.ones((2, 10)) / 10
    transfer_set(tmp_path, teacher, images, labels, teacher_sha256="f" * 64)
    with pytest.raises(CheckpointError, match="another teacher"):
        label_study.ask_teacher(tmp_path, teacher)


def test_unfinished_pseudo_samples_are_refused(teacher, tmp_path):
    images, labels = np.zeros((2, 28, 28, 1)), np.ones((2, 10)) / 10
    transfer_set(tmp_path, teacher, images, labels, num_images=4, shard_size=2)
    with pytest.raises(CheckpointError, match="not finished"):
        label_study.ask_teacher(tmp_path, teacher)


@pytest.mark.parametrize(
    "config", [{"seed": "x"}, {"seed": 0}, {"seed": 0, "targets": []}, 3]
)
def test_a_record_that_is_edited_is_named(teacher, tmp_path, config):
    images, labels = np.zeros((2, 28, 28, 1)), np.ones((2, 10)) / 10
    transfer_set(tmp_path, teacher, images, labels)
    files.write_json(tmp_path / "run.json", {"config": config})
    with pytest.raises(CheckpointError, match=r"run\.json is not as dfkd_jax writes"):
        label_study.ask_teacher(tmp_path, teacher)


def test_records_that_are_none_have_no_transfer_set(tmp_path):
    """Of pictures: runs that cannot be read are passed over."""
    records = {"good": {"transfer_set_sha256": "f"}, "none": {}}
    records |= {"edited": {"transfer_set_sha256": ["f"]}, "list": [1]}
    for name, record in records.items():
        (tmp_path / name).mkdir()
        files.write_json(tmp_path / name / "results.json", record)
    found = result_figures.find_transfer_sets([tmp_path])
    assert found == {"f": tmp_path / "good"}


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no work directory with a transfer set"):
        label_study.find_runs([tmp_path])


def test_a_study_of_the_shipped_teacher(teacher, monkeypatch):
    pytest.importorskip("sklearn", reason="the map is made with scikit-learn")
    monkeypatch.setattr(label_study, "NUM_DRAWS", 400)
    monkeypatch.setattr(label_study, "NUM_PLACES", 100)
    settings = config.parse(config_files.read_config("configs/mnist.py").to_dict())
    found = json.loads(json.dumps(label_study.study(settings, teacher)))
    normal, dirichlet = found["distributions"].values()
    assert normal["settings"]["feature_layer"] == "dense_2"
    assert normal["drawn_for_another_class"] is None
    assert 0 < dirichlet["drawn_for_another_class"] < 1
    assert sum(normal["class_shares"]) == pytest.approx(1)
    for drawn in found["map"].values():
        places = np.array(drawn["places"].split(), int)
        assert places.shape == (200,)
        assert places.min() >= 0 and places.max() <= label_study.MAP_SIZE
        assert len(drawn["classes"].split()) == 100


@pytest.fixture
def flags(monkeypatch, tmp_path):
    """Of the command, as a tiny study has them."""
    found = types.SimpleNamespace(
        config="configs/mnist.py",
        output=str(tmp_path / "new" / "mnist.json"),
        runs=[],
    )
    monkeypatch.setattr(label_study, "FLAGS", found)
    # Devices and compilation cache of this process are set.
    monkeypatch.setattr(parallel, "configure", lambda **kwargs: None)
    monkeypatch.setattr(label_study, "NUM_DRAWS", 200)
    monkeypatch.setattr(label_study, "NUM_PLACES", 60)
    return found


def test_the_command_writes_what_tables_and_figures_are_made_of(
    teacher, flags, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("sklearn", reason="the map is made with scikit-learn")
    images = np.zeros((4, 28, 28, 1), np.float32)
    labels = np.ones((4, 10), np.float32) / 10
    # Two runs that share a transfer set, one that does not.
    for name, level in (("a/seed0", 0), ("b/seed0", 0), ("a/seed1", 1)):
        transfer_set(tmp_path / "runs" / name, teacher, images + level, labels)
    flags.runs = [str(tmp_path / "runs")]
    # With the arrays that the annotations of the networks, checked here, ask for.
    monkeypatch.setattr(teachers, "load", lambda *args, **kwargs: teacher)
    assert label_study.main(["label_study"]) == 0
    assert flags.output in capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "mnist.json").read_text())
    assert found["format"] == label_study.FORMAT
    assert found["teacher"]["sha256"] == teacher.sha256
    assert found["teacher"]["parameters"] == 61_706
    assert list(found["distributions"]) == list(found["map"])
    assert [run["name"] for run in found["pseudo_samples"]] == ["b", "a"]
    # The reports read it.
    shutil.copytree(tmp_path / "new", tmp_path / "results" / "soft_labels")
    assert results_files.read(tmp_path / "results").label_studies["mnist"]


@pytest.mark.parametrize(
    ("changes", "error", "phrase"),
    [
        ({"config": None}, ConfigError, "Name a config and a file"),
        ({"output": ""}, ConfigError, "Name a config and a file"),
        (
            {"config": "configs/teachers/mnist.py"},
            ConfigError,
            "a distillation without real data",
        ),
        ({"runs": ["no_such_folder"]}, ConfigError, "no work directory"),
    ],
)
def test_what_the_command_refuses(flags, tmp_path, changes, error, phrase):
    if "runs" in changes:
        pytest.importorskip("sklearn", reason="asked for before")
    vars(flags).update(changes)
    with pytest.raises(error, match=phrase):
        label_study.main(["label_study"])
    assert not (tmp_path / "new").exists()


def test_without_scikit_learn_there_is_one_clear_error(flags, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match="needs scikit-learn"):
        label_study.main(["label_study"])
