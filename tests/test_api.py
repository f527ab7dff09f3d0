"""What Python's way in refuses, in Python's words."""

import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_fruit
from flax import linen as nn
from flax import nnx
from flax.training import train_state

import dfkd_jax
from dfkd_jax import api, config, config_files, pipeline, verify
from dfkd_jax.errors import CheckpointError, ConfigError, DfkdError
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import admission, files, weights, workdir

SHAPE = (4, 4, 1)
IMAGES = {"image_shape": SHAPE, "mean": 0.5, "std": 0.25}


class Net(nn.Module):
    """A dense network whose activation may be anything."""

    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


def sine(x):
    return jnp.sin(3 * x)


def make(module=None):
    module = module or Net()
    variables = module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return api.from_linen(module, variables, **IMAGES)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"mean": 127.5, "std": 63.75}, r"divide by 255: \(0.5,\) and \(0.25,\)"),
        ({"std": 0}, "std must be above 0"),
        ({"std": -1}, "std must be above 0"),
        ({"std": 1e-30}, "std must be above 0"),
        ({"std": np.nan}, "finite"),
        ({"mean": np.inf}, "finite"),
        ({"mean": "x"}, "mean='x'"),
        ({"std": None}, "std=None"),
        ({"mean": [0.5, 0.5]}, "1 numbers each"),
        ({"image_shape": 16}, "image_shape=16"),
        ({"image_shape": (4, 4)}, r"images of shape \(4, 4\)"),
        ({"image_shape": (4, 4, 0)}, "images of shape"),
        ({"image_shape": (4.5, 4, 1)}, "image_shape="),
        ({"image_shape": ()}, r"image_shape=\(\)"),
        ({"dataset": 3}, "texts"),
    ],
)
def test_what_is_said_of_the_images(changes, phrase):
    teacher = make()
    with pytest.raises(ConfigError, match=phrase):
        api.from_linen(teacher.model.module, teacher.variables, **(IMAGES | changes))


def test_a_data_set_of_other_images():
    """Its classes would have been called by the names of that one's."""
    teacher = make()
    with pytest.raises(CheckpointError, match=r"into 3 classes; mnist has .*dataset"):
        api.from_linen(Net(), teacher.variables, **(IMAGES | {"dataset": "mnist"}))
    own = api.from_linen(Net(), teacher.variables, **(IMAGES | {"dataset": "mine"}))
    assert own.description.dataset == "mine"


def test_a_prepared_data_set_is_known_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def linear(params, images):
        return images.reshape(len(images), -1) @ params

    def network(num_classes):
        size = (np.prod(tiny_fruit.IMAGE_SHAPE), num_classes)
        return api.from_function(
            linear,
            np.random.default_rng(0).normal(size=size).astype(np.float32),
            image_shape=tiny_fruit.IMAGE_SHAPE,
            mean=0.5,
            std=0.25,
            dataset=tiny_fruit.NAME,
        )

    other = network(3)  # The set is not there yet, so its name is but a name.
    version = tiny_fruit.write(tmp_path / "dfkd_jax" / "tfds")
    with pytest.raises(CheckpointError, match=r"tiny_fruit has .* and 4: .*dataset"):
        network(3)
    images, labels = tiny_fruit.contents("test")
    found = dfkd_jax.evaluate(network(4), images, labels)
    names = tuple(row["class"] for row in found["per_class"])
    assert names == tiny_fruit.CLASS_NAMES
    found = dfkd_jax.evaluate(other, images, labels % 3)
    assert [row["class"] for row in found["per_class"]] == ["0", "1", "2"]
    (version / "features.json").unlink()
    assert network(3).description == other.description


def test_numbers_of_any_kind():
    teacher = make()
    found = api.from_linen(
        teacher.model.module,
        teacher.variables,
        image_shape=np.array(SHAPE),
        mean=np.float32(0.5),
        std=jnp.array([0.25]),
    )
    assert found.description == teacher.description


def test_modules_of_other_kinds():
    teacher = make()
    others = {
        r"class Net: call it: Net\(": Net,
        "Expected a network .* got function": lambda x: x,
        "got NoneType": None,
    }
    for phrase, module in others.items():
        with pytest.raises(ConfigError, match=phrase):
            api.distill(teacher, module)
        with pytest.raises(ConfigError, match=phrase):
            api.load("mnist_lenet5", module=module)
    with pytest.raises(ConfigError, match="give it to from_nnx"):
        api.from_linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), {}, **IMAGES)


def test_the_package_has_the_names_and_is_cheap_to_import():
    program = (
        "import sys, dfkd_jax; print('jax' in sys.modules, 'flax' in sys.modules); "
        "from dfkd_jax import *; import dfkd_jax.api; "
        "print(all(callable(getattr(dfkd_jax, name)) for name in dfkd_jax.__all__), "
        "set(dfkd_jax.__all__) <= set(dir(dfkd_jax)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "False", "True", "True"]
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = dfkd_jax.distil


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({}, {}),
        ({"num_images": 30}, {"num_images": 30, "images_per_device": 30}),
        ({"num_images": 101}, {"num_images": 102, "images_per_device": 51}),
        ({"num_images": 8, "images_per_device": 4}, {"num_images": 8}),
        ({"num_steps": 7}, {"steps_per_call": 7}),
        ({"num_steps": 202}, {"steps_per_call": 2}),
        ({"num_steps": 0}, {"num_steps": 0}),
    ],
)
def test_sizes_follow_from_those_given(given, made):
    synthesis, _ = api._sized(given, {})
    found = config.SynthesisConfig(**synthesis)
    assert found == config.SynthesisConfig(**given | made)
    assert api._sized({}, {"num_steps": 5})[1] == {"num_steps": 5, "warmup_steps": 0}
    config.DistillationConfig(**api._sized({}, {"num_steps": 1})[1])


def test_a_train_state_in_place_of_variables():
    teacher = make()
    state = train_state.TrainState(
        step=0,
        apply_fn=None,
        params=teacher.variables["params"],
        tx=None,
        opt_state=None,
    )
    with pytest.raises(CheckpointError, match=r"'params': state\.params"):
        api.from_linen(teacher.model.module, state, **IMAGES)


def test_a_network_with_a_function_of_ones_own(tmp_path):
    path = tmp_path / "w.safetensors"
    network = make(Net(activation=sine))
    network.save(path)
    with pytest.raises(CheckpointError, match=r"say module=.*:Net"):
        api.load(path)
    with pytest.raises(CheckpointError, match=r"activation.*load\(path, module="):
        api.load(path, module=f"{__name__}:Net")
    found = api.load(path, module=Net(activation=sine))
    assert found.fingerprint == network.fingerprint
    api.export(found, tmp_path / "again.safetensors")
    with pytest.raises(CheckpointError, match="computes other logits"):
        api.load(tmp_path / "again.safetensors", module=Net())


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({"synthesis": {"num_images": 3, "images_per_device": 2}}, ['synthesis["num']),
        ({"synthesis": {"num_imagess": 3}}, ['synthesis["num_imagess"]', "num_images"]),
        ({"targets": {"sigma": -1.0}}, ['targets["sigma"]=-1.0']),
        ({"targets": {"feature_layer": "x"}}, ["targets[\"feature_layer\"]='x'"]),
        ({"distillation": {"batch_size": 7}}, ['distillation["batch_size"]=7']),
        ({"student": "lenet6"}, ["student='lenet6'", "lenet5"]),
        ({"seed": "x"}, ["seed='x'"]),
        ({"seed": np.int64(-1)}, ["seed=-1", "from 0"]),
        ({"synthesis": 3}, ["synthesis=3", "a group of settings"]),
        ({"targets": [1]}, ["targets=[1]", "a group of settings"]),
        (
            {"distillation": {"momentum": 0.5}},
            ['distillation["momentum"]=0.5', "no eff"],
        ),
    ],
)
def test_settings_are_called_as_in_python(tmp_path, changes, phrases):
    given = {"student": Net()} | changes
    with pytest.raises(DfkdError) as caught:
        api.distill(make(), given.pop("student"), workdir=tmp_path / "run", **given)
    message = str(caught.value)
    assert all(phrase in message for phrase in phrases), message
    assert "config." not in message
    assert "--" not in message
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("value", [None, 3, "mnist_lenet5", Net(), Net])
def test_what_is_no_trained_network(value, tmp_path):
    images, labels = np.full((1, *SHAPE), 255, np.uint8), [0]
    for call in (
        lambda: api.distill(value, Net(), workdir=tmp_path / "run"),
        lambda: api.inspect(value),
        lambda: api.export(value, tmp_path / "w.onnx"),
        lambda: api.evaluate(value, images, labels),
        lambda: api.evaluate(make(), images, labels, reference=value or 0),
    ):
        with pytest.raises(ConfigError, match=r"expected a network, as from_linen"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_other_images():
    """Images are standardized for one of both: compared with, it would be wrong."""
    images, labels = np.full((2, *SHAPE), 255, np.uint8), [0, 1]
    ours = make()
    assert api.evaluate(ours, images, labels, reference=make())[
        "agreement_with_teacher"
    ]
    for changes in ({"mean": 0.4}, {"std": 0.5}):
        other = api.from_linen(Net(), ours.variables, **(IMAGES | changes))
        with pytest.raises(
            CheckpointError, match=f"reference has {next(iter(changes))}"
        ):
            api.evaluate(ours, images, labels, reference=other)
    with pytest.raises(CheckpointError, match="reference has image_shape"):
        api.evaluate(ours, images, labels, reference=api.load("mnist_lenet5"))
    with pytest.raises(CheckpointError, match="teacher has image_shape"):
        api.estimate(api.load("mnist_lenet5"), ours)
    with pytest.raises(ConfigError, match="teacher_accuracy=99"):
        api.estimate(ours, ours, teacher_accuracy=99)
    assert api.estimate(ours, ours)["agreement"] > 0.9


def test_inspection_takes_what_has_an_effect():
    with pytest.raises(ConfigError, match=r'targets\["sigma"\]=3.0 has no effect'):
        api.inspect(make(), targets={"distribution": "one_hot", "sigma": 3.0})
    for seed in ("x", -1, 2**40):
        with pytest.raises(ConfigError, match="seed="):
            api.inspect(make(), seed=seed)


def test_a_test_set_that_is_not_there_is_missed_before_work(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.file=.*no such file"):
        api.run(
            "configs/mnist.py:smoke",
            workdir=tmp_path / "run",
            data={"dataset": "", "file": str(tmp_path / "no.npz")},
        )
    assert not (tmp_path / "run").exists()


def test_a_run_knows_what_its_networks_compute(tmp_path):
    def of(teacher, student):
        filled = admission.filled(Linen(student), make().description)
        return {"teacher": make(teacher), "student": filled}

    first = pipeline._fingerprints(workdir.in_place(tmp_path), of(Net(), Net()))
    files.write_json(tmp_path / "run.json", {"fingerprints": first}, sealed=True)
    for networks, role in (
        (of(Net(sine), Net()), "teacher"),
        (of(Net(), Net(sine)), "student"),
    ):
        assert pipeline._fingerprints(workdir.in_place(tmp_path), networks) == first
        for name, network in networks.items():
            if name != role:
                network.check_fingerprint(first[name], source="run.json")
                continue
            with pytest.raises(CheckpointError, match="computes other logits"):
                network.check_fingerprint(first[name], source="run.json")
    # An earlier release kept none.
    files.write_json(tmp_path / "run.json", {"seed": 1}, sealed=True)
    assert pipeline._fingerprints(workdir.in_place(tmp_path), of(Net(), Net())) == {}


@pytest.mark.parametrize(
    "name",
    ["x" * 5_000, "~nobody-at-all/w", "", "\0", "a/b/c", b"a/\0", None, 3, ["w"]],
)
def test_paths_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        api.load(name)
    assert len(str(caught.value)) < 700
    if name and (not isinstance(name, str) or name[0] in "~\0"):
        for call in (
            lambda: api.distill(make(), Net(), workdir=name),
            lambda: api.run("configs/mnist.py", workdir=name),
            lambda: api.run(name, workdir=tmp_path),
            lambda: api.export(make(), name, format_name="safetensors"),
            lambda: make().save(name),
            lambda: list(verify.check(name, verify.Sources())),
        ):
            with pytest.raises(ConfigError, match=r"home folder|path"):
                call()
    assert not list(tmp_path.iterdir())


def test_paths_of_the_home_folder(tmp_path, monkeypatch):
    """No shell puts it in place of a tilde where Python calls."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    make().save("~/w.safetensors")
    found = api.load("~/w.safetensors", module=Net())
    api.export(found, "~/again.safetensors")
    assert {path.name for path in home.glob("*.s*")} == {
        "w.safetensors",
        "again.safetensors",
    }

    def stop(settings, workdir, **_):
        raise KeyError(str(workdir))

    monkeypatch.setattr(pipeline, "run", stop)
    shutil.copy(config_files.config_folder() / "mnist.py", home / "my.py")
    for call in (
        lambda: api.distill(found, Net(), workdir="~/runs"),
        lambda: api.run("~/my.py:smoke", workdir=pathlib.Path("~/runs")),
    ):
        with pytest.raises(KeyError, match=str(home / "runs")):
            call()
    with pytest.raises(ConfigError, match=f"{home}/runs is no work directory"):
        list(verify.check("~/runs", verify.Sources()))
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("where", ["exists", "is_file", "open"])
def test_files_and_folders_without_permission(tmp_path, monkeypatch, where):
    path = tmp_path / "w.safetensors"
    make().save(path)

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), where, refuse)
        with pytest.raises(CheckpointError, match="Permission denied"):
            if where == "exists":
                api.load(path)
            else:
                weights.read(path)
