"""A data set that is not built in, wherever a command takes the name of one."""

import json

import numpy as np
import pytest
import tiny_fruit

from dfkd_jax.runtime import files


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tiny_fruit.write(folder)
    return folder


@pytest.fixture(scope="module")
def training(data_dir, tmp_path_factory):
    """Arguments of a teacher's training, and its work directory."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    settings = ("cpu_devices=2", "num_epochs=1", "batch_size=8", "warmup_steps=2")
    settings += (f"data.dataset={tiny_fruit.NAME}", f"data.dir={data_dir}")
    arguments = [
        "--config=configs/teachers/mnist.py",
        f"--workdir={workdir}",
        *(f"--config.{setting}" for setting in settings),
    ]
    return arguments, workdir


@pytest.fixture(scope="module")
def teacher(lab, training):
    arguments, workdir = training
    command = lab.runner.start("main", *arguments)
    assert command.wait() == 0, command.stderr
    return workdir


def _class_names(evaluation):
    return tuple(row["class"] for row in evaluation["per_class"])


def test_teacher(lab, training, teacher, data_dir):
    manifest = files.read_object(teacher / "teacher.json")
    assert manifest["num_training_images"] == 36
    assert _class_names(manifest["test_evaluation"]) == tiny_fruit.CLASS_NAMES
    pixels = tiny_fruit.contents("train")[0][:36] / 255
    for name in ("mean", "std"):
        expected = getattr(pixels, name)(axis=(0, 1, 2))
        np.testing.assert_allclose(
            manifest["description"][name], expected, rtol=0, atol=5.1e-5
        )
    again = lab.runner.start("main", *training[0])
    assert again.wait() == 0, again.stderr
    assert "Finished before" in again.stdout
    verify = lab.runner.start("verify", teacher, f"--data_dir={data_dir}")
    assert verify.wait() == 0, verify.stdout
    assert "holds        test accuracy of the teacher" in verify.stdout


def test_evaluate(lab, teacher, data_dir, tmp_path):
    output = tmp_path / "figures.json"
    arguments = ("evaluate", f"--checkpoint={teacher}")
    command = lab.runner.start(
        *arguments, f"--data_dir={data_dir}", f"--output={output}"
    )
    assert command.wait() == 0, command.stderr
    assert "blue fig" in command.stdout
    found = json.loads(output.read_text())
    assert found["num_examples"] == tiny_fruit.SIZES["test"]
    assert _class_names(found) == tiny_fruit.CLASS_NAMES
    accuracy = files.read_object(teacher / "teacher.json")["test_accuracy"]
    assert found["accuracy"] == accuracy

    name = f"--dataset={tiny_fruit.NAME}"
    (absent, where), (other, what), (verify, again) = lab.errors(
        lab.runner.start(*arguments),
        lab.runner.start(
            "evaluate", "--checkpoint=mnist_lenet5", name, f"--data_dir={data_dir}"
        ),
        lab.runner.start("verify", teacher, name),
    )
    assert (absent, other, verify) == (2, 1, 2)
    for line in (where, again):
        assert f'Unknown data set "{tiny_fruit.NAME}"' in line
        assert "tfds build" in line
    assert f"{tiny_fruit.NAME} has (12, 14, 3) and 4" in what


def test_student_of_real_images(lab, teacher, data_dir, tmp_path):
    command = lab.start(
        tmp_path / "run",
        variant="kd",
        teacher__weights=teacher / "teacher.safetensors",
        data__dataset=tiny_fruit.NAME,
        data__dir=data_dir,
    )
    assert command.wait() == 0, command.stderr
    assert "36 training images of tiny_fruit" in command.stdout
    results = files.read_object(tmp_path / "run" / "results.json")
    assert (results["dataset"], results["num_real_images"]) == (tiny_fruit.NAME, 36)
    assert _class_names(results["student"]["evaluation"]) == tiny_fruit.CLASS_NAMES
