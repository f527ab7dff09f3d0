"""A network that is not of the package goes in, and its student comes out."""

import json
import shutil

import custom_nets
import digits
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file
from tiny_runs import fingerprint, read_transfer_set

from dfkd_jax import api, inspection
from dfkd_jax.config import NetworkConfig, TargetsConfig
from dfkd_jax.errors import CheckpointError, ConfigError, DfkdError
from dfkd_jax.exporting import sources
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import admission, weights, writers
from dfkd_jax.teachers import weights as teachers

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = {
    "synthesis": {
        "num_images": 40,
        "images_per_device": 10,
        "num_steps": 4,
        "steps_per_call": 2,
    },
    "distillation": {
        "num_steps": 10,
        "batch_size": 8,
        "warmup_steps": 2,
        "procedural": 0,
    },
}
SIZES = {f"{part}.{key}": TINY[part][key] for part in TINY for key in TINY[part]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two teachers of digits and their test set."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("SmallCnn", "AllConvolutional"):
        module = getattr(custom_nets, name)(width=16)
        # Of the first one's student it is asked how good it is.
        num_steps = 400 if name == "SmallCnn" else 20
        digits.train(module, num_steps=num_steps).save(folder / f"{name}.safetensors")
    digits.save_test_set(folder / "test.npz")
    return folder


@pytest.fixture(scope="module")
def teacher(folder):
    return api.load(folder / "SmallCnn.safetensors", module="custom_nets:SmallCnn")


def write_config(folder, path, *, module, layer, weights=None, **changes):
    text = digits.CONFIG.format(
        module=module,
        layer=layer,
        weights=weights or folder / f"{module}.safetensors",
        test_set=folder / "test.npz",
    )
    lines = "".join(f"    config.{key} = {value!r}\n" for key, value in changes.items())
    path.write_text(text.replace("    return config\n", lines + "    return config\n"))
    return f"--config={path}"


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        pytest.param("SmallCnn", "hidden", id="dense feature layer"),
        pytest.param(
            "AllConvolutional",
            "second/Conv_0",
            id="convolutional feature layer",
            marks=pytest.mark.full,
        ),
    ],
)
def test_distilled_by_config_alone(lab, folder, tmp_path, module, layer):
    """The settings of the file reach the run, and its own layer is the one modeled."""
    config = write_config(
        folder, tmp_path / "digits.py", module=module, layer=layer, **SIZES
    )
    command = lab.runner.start("main", config, f"--workdir={tmp_path / 'run'}")
    assert command.wait() == 0, command.stdout + command.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    teacher, student = results["teacher"], results["student"]
    assert results["feature_layer"] == layer
    assert student["parameters"] < teacher["parameters"] / 4
    assert results["num_pseudo_samples"] == TINY["synthesis"]["num_images"]
    for role in (teacher, student):
        assert role["network"] == f"custom_nets:{module}"

    arguments = (
        f"--checkpoint={tmp_path / 'run'}",
        f"--data_file={folder / 'test.npz'}",
        f"--teacher_module=custom_nets:{module}",
        f"--output={tmp_path / 'figures.json'}",
    )
    [(status, line)] = lab.errors(lab.runner.start("evaluate", *arguments))
    assert status == 1
    assert f"say --module=custom_nets:{module} if you trust" in line
    command = lab.runner.start("evaluate", *arguments, f"--module=custom_nets:{module}")
    assert command.wait() == 0, command.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for key in ("accuracy", "nll", "agreement_with_teacher"):
        assert figures[key] == pytest.approx(student["evaluation"][key])
    assert figures["confusion"] == student["evaluation"]["confusion"]


def write_everywhere(teacher, tmp_path):
    """The same weights in every form that is read."""
    variables = teacher.variables
    flat = weights.flatten(variables)
    dotted = {name.replace("/", "."): leaf for name, leaf in flat.items()}
    save_file(flat, tmp_path / "slashes.safetensors")
    save_file(dotted, tmp_path / "dots.safetensors")
    ocp.save(tmp_path / "variables", variables)
    state = {"step": np.array(3), "opt_state": {"count": np.ones(3)}, **variables}
    ocp.save(tmp_path / "state", state)
    return ["slashes.safetensors", "dots.safetensors", "variables", "state"]


def test_weights_in_any_form(teacher, tmp_path):
    settings = {
        "module": "custom_nets:SmallCnn",
        "arguments": {"width": 16},
        "image_shape": digits.IMAGE_SHAPE,
        "mean": (digits.MEAN,),
        "std": (digits.STD,),
    }
    for name in write_everywhere(teacher, tmp_path):
        found = teachers.load(
            NetworkConfig(weights=str(tmp_path / name), **settings), dataset=""
        )
        assert found.sha256 == teacher.sha256, name
        assert found.description == teacher.description, name


@pytest.mark.full
def test_evaluation_of_a_run_whose_teacher_is_of_another_program(
    lab, folder, teacher, tmp_path
):
    """Compared with the teacher, and evaluated without it where it is gone."""
    save_file(weights.flatten(teacher.variables), tmp_path / "foreign.safetensors")
    config = write_config(
        folder,
        tmp_path / "digits.py",
        module="SmallCnn",
        layer="hidden",
        weights=tmp_path / "foreign.safetensors",
        **{
            "teacher.arguments": {"width": 16},
            "teacher.image_shape": digits.IMAGE_SHAPE,
            "teacher.mean": (digits.MEAN,),
            "teacher.std": (digits.STD,),
        }
        | SIZES,
    )
    command = lab.runner.start("main", config, f"--workdir={tmp_path / 'run'}")
    assert command.wait() == 0, command.stderr

    def evaluate(*flags):
        command = lab.runner.start(
            "evaluate",
            f"--checkpoint={tmp_path / 'run'}",
            f"--data_file={folder / 'test.npz'}",
            "--module=custom_nets:SmallCnn",
            *flags,
        )
        assert command.wait() == 0, command.stderr
        return command.stdout + command.stderr

    found = evaluate("--teacher_module=custom_nets:SmallCnn")
    assert "agreement with teacher" in found
    found = evaluate()
    assert "say --teacher_module=custom_nets:SmallCnn if you trust" in found
    assert "agreement with teacher" not in found
    (tmp_path / "foreign.safetensors").unlink()
    found = evaluate("--teacher_module=custom_nets:SmallCnn")
    assert "foreign.safetensors" in found
    assert "agreement with teacher" not in found


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({"mean": ()}, ["config.teacher.mean is missing"]),
        ({"image_shape": (8, 8, 3)}, ["conv/kernel is (3, 3, 1, 16)"]),
        ({"image_shape": (1, 1, 1)}, ["'custom_nets:SmallCnn'"]),
        ({"arguments": {"width": 8}}, ["norm/mean is (16,) instead of (8,)"]),
        ({"arguments": {"wdth": 8}}, ['Did you mean "width"?']),
        ({"module": "custom_nets:NoLogits", "arguments": {}}, ["instead of logits"]),
        ({"weights": "nothing.safetensors"}, ["neither shipped", "nor a file"]),
    ],
)
def test_weights_that_do_not_fit(teacher, tmp_path, changes, phrases):
    write_everywhere(teacher, tmp_path)
    settings = {
        "module": "custom_nets:SmallCnn",
        "arguments": {"width": 16},
        "weights": str(tmp_path / "slashes.safetensors"),
        "image_shape": digits.IMAGE_SHAPE,
        "mean": (digits.MEAN,),
        "std": (digits.STD,),
    }
    with pytest.raises(DfkdError) as error:
        teachers.load(NetworkConfig(**settings | changes))
    for phrase in phrases:
        assert phrase in str(error.value)


def test_nan_in_weights(teacher, tmp_path):
    flat = {
        name: leaf.copy() for name, leaf in weights.flatten(teacher.variables).items()
    }
    flat["params/hidden/bias"][3] = np.nan
    save_file(flat, tmp_path / "nan.safetensors")
    config = NetworkConfig(
        module="custom_nets:SmallCnn",
        arguments={"width": 16},
        weights=str(tmp_path / "nan.safetensors"),
        image_shape=digits.IMAGE_SHAPE,
        mean=(0.3,),
        std=(0.4,),
    )
    with pytest.raises(CheckpointError, match="params/hidden/bias holds NaN"):
        teachers.load(config)


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({"targets.feature_layer": "hiden"}, ["'hiden'", 'Did you mean "hidden"?']),
        (
            {"targets.feature_layer": "logits", "targets.weights": "outgoing"},
            ["config.targets.weights='outgoing'", "after 'logits'"],
        ),
        (
            {"targets.feature_layer": "logits", "targets.mean": "batch_norm"},
            ["config.targets.mean='batch_norm'", "no BatchNorm follows 'logits'"],
        ),
        (
            {"targets.feature_layer": "conv", "targets.mean": "biass"},
            ["config.targets.mean='biass'", 'Did you mean "bias"?'],
        ),
        ({"student.module": "custom_nets:SmalCnn"}, ["SmallCnn"]),
        ({"student.module": "no_such_module:Net"}, ["cannot be imported"]),
        ({"data.file": "no_such.npz"}, ["config.data.file=no_such.npz"]),
    ],
)
def test_settings_that_do_not_fit_the_network(lab, folder, tmp_path, changes, phrases):
    config = write_config(
        folder, tmp_path / "digits.py", module="SmallCnn", layer="hidden", **changes
    )
    workdir = tmp_path / "run"
    [(status, line)] = lab.errors(
        lab.runner.start("main", config, f"--workdir={workdir}")
    )
    assert status == 2, line
    for phrase in phrases:
        assert phrase in line
    assert not (workdir / "transfer_set").exists()


def variables_of(module):
    shapes, _ = admission.trace(Linen(module), digits.IMAGE_SHAPE, network="net")
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize(
    ("module", "phrase"),
    [
        (custom_nets.Shared(), "'again' is called 2 times"),
        (custom_nets.NoKernel(), "choose one of none"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_without_such_a_layer(tmp_path, module, phrase):
    teacher = api.from_linen(
        module, variables_of(module), image_shape=digits.IMAGE_SHAPE, mean=0, std=1
    )
    with pytest.raises(ConfigError, match=phrase):
        api.distill(
            teacher,
            module,
            workdir=tmp_path / "run",
            targets={"feature_layer": "again"},
        )


@pytest.mark.full
def test_deep_inversion_of_a_network_of_ones_own(teacher, tmp_path):
    """Hard labels and the statistics of its BatchNorms, then the student by SGD."""
    workdir = tmp_path / "run"
    student = api.distill(
        teacher,
        custom_nets.SmallCnn(width=7),
        workdir=workdir,
        targets={"distribution": "one_hot"},
        synthesis=TINY["synthesis"]
        | {"num_steps": 40, "batch_norm": 10.0, "flip": 0.5},
        distillation=TINY["distillation"] | {"optimizer": "sgd", "flip": 0.5},
    )
    _, labels = read_transfer_set(workdir)
    np.testing.assert_array_equal(np.sort(labels)[:, -2:], np.tile([0, 1], (40, 1)))
    assert len(set(labels.argmax(1))) > 5
    steps = writers.read_scalars(
        workdir / "metrics.jsonl", stage="synthesis, first batch"
    )
    assert steps[40]["batch_norm"] < steps[1]["batch_norm"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(student.variables))


@pytest.mark.full
def test_a_student_that_starts_as_a_part_of_the_teacher(teacher, tmp_path, capsys):
    """It is good before it has learnt anything; one that cannot is refused at once."""
    accuracies = {}
    for start in ("random", "teacher"):
        student = api.distill(
            teacher,
            custom_nets.SmallCnn(width=8),
            workdir=tmp_path / start,
            synthesis=TINY["synthesis"] | {"num_images": 200, "num_steps": 20},
            distillation=TINY["distillation"]
            | {"start": start, "learning_rate": 1e-6, "mixup": 0.0, "cutmix": 0.0},
        )
        accuracies[start] = api.evaluate(student, *digits.load()["test"])["accuracy"]
    assert accuracies["teacher"] > accuracies["random"] + 0.3
    assert (
        "Start: a part of the teacher, fitted on 400 images" in capsys.readouterr().out
    )
    with pytest.raises(ConfigError, match="'conv' is wider in the student"):
        api.distill(
            teacher,
            custom_nets.SmallCnn(width=17),
            workdir=tmp_path / "wide",
            distillation={"start": "teacher"},
        )
    assert not (tmp_path / "wide").exists()


def test_python_api(teacher, folder, tmp_path, capsys):
    student = api.distill(
        teacher, custom_nets.SmallCnn(width=7), workdir=tmp_path / "run", **TINY
    )
    first = fingerprint(tmp_path / "run")
    images, labels = digits.load()["test"]
    assert student.predict_proba(images).shape == (len(images), 10)
    np.testing.assert_allclose(
        student.predict_proba(images[:2]),
        student.predict_proba((images[:2] * 255).round().astype(np.uint8)),
        atol=0.2,
    )
    figures = api.evaluate(student, images, labels, reference=teacher)
    share = (student.predict(images) == labels).mean()
    assert figures["accuracy"] == pytest.approx(share)
    assert 0 <= figures["agreement_with_teacher"] <= 1
    assert "agreement_with_teacher" not in api.evaluate(teacher, images, labels)

    # The same call finds everything done; another teacher is refused.
    again = api.distill(
        teacher, custom_nets.SmallCnn(width=7), workdir=tmp_path / "run", **TINY
    )
    assert again.sha256 == student.sha256 == first["student"]
    other = api.from_linen(
        teacher.model.module,
        jax.tree.map(lambda leaf: leaf + 0.01, teacher.variables),
        image_shape=digits.IMAGE_SHAPE,
        mean=digits.MEAN,
        std=digits.STD,
    )
    with pytest.raises(CheckpointError, match="teacher_sha256"):
        api.distill(
            other, custom_nets.SmallCnn(width=7), workdir=tmp_path / "run", **TINY
        )

    for which, expected in {"teacher": teacher, "student": student}.items():
        exported = sources.load_network(
            str(tmp_path / "run"), which=which, module="custom_nets:SmallCnn"
        )
        assert exported.sha256 == expected.sha256

    loaded = api.load(tmp_path / "run", module="custom_nets:SmallCnn")
    assert loaded.sha256 == student.sha256
    shutil.copy(tmp_path / "run" / "teacher.safetensors", tmp_path)
    kept = api.load(tmp_path / "teacher.safetensors", module="custom_nets:SmallCnn")
    assert kept.sha256 == teacher.sha256
    with pytest.raises(CheckpointError, match="takes images"):
        api.evaluate(student, images[:, :4], labels)
    with pytest.raises(ConfigError, match=r"num_image\W"):
        api.distill(
            teacher, "lenet5_half", workdir=tmp_path / "x", synthesis={"num_image": 1}
        )
    with pytest.raises(ConfigError, match='Did you mean "synthesis"'):
        api.run("configs/mnist.py", workdir=tmp_path / "x", sythesis={"num_images": 1})


def test_inspection_from_python(teacher):
    """The normal of every layer; the same with another width of it."""
    found = {item.layer: item for item in api.inspect(teacher)}
    assert list(found) == ["conv", "hidden", "logits"]
    assert [item.num_units for item in found.values()] == [16, 64, 10]
    assert [item.rank for item in found.values()] == [9, 64, 10]
    assert all(1 <= item.effective_classes <= 10 for item in found.values())
    with pytest.raises(ConfigError, match="targets"):
        api.inspect(teacher, targets={"sigmas": 3})


@pytest.mark.full
def test_inspection_says_what_our_networks_are(lab):
    """One of another kind would be read as one of them, under the same names."""
    command = lab.runner.start("inspect", "--config=configs/mnist.py:smoke")
    assert command.wait() == 0, command.stderr
    assert "lenet5 of this package: ReLU and max pooling" in command.stdout


def test_inspection_of_a_large_network(teacher, monkeypatch):
    """Feature maps are passed over, unless they are asked for."""
    monkeypatch.setattr(inspection, "LARGE", 1.0)
    assert [item.layer for item in api.inspect(teacher)] == ["hidden", "logits"]
    asked = [item.layer for item in api.inspect(teacher, maps=True)]
    assert asked == ["conv", "hidden", "logits"]
    _, left_out = inspection.choose_layers(TargetsConfig(), teacher, maps=False)
    assert left_out == ["conv"]


def test_inspection(lab, folder, tmp_path):
    config = write_config(
        folder, tmp_path / "digits.py", module="SmallCnn", layer="hidden"
    )
    command = lab.runner.start("inspect", config)
    assert command.wait() == 0, command.stderr
    lines = command.stdout.splitlines()
    assert any("SmallCnn" in line for line in lines)
    for layer, units, rank in (("conv", 16, 9), ("hidden", 64, 64), ("logits", 10, 10)):
        rows = [line for line in lines if line.startswith(f"│ {layer} ")]
        row = rows[-1]  # The first table is of all modules.
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1:3] == [str(units), str(rank)]
    assert any(line.startswith("Recommended: feature_layer=hidden") for line in lines)
