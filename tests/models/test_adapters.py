"""Live networks of several frameworks, as one value; students of those that train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from dfkd_jax import (
    distill,
    from_equinox,
    from_function,
    from_keras,
    from_linen,
    from_nnx,
    load,
)
from dfkd_jax import from_torch as from_pytorch
from dfkd_jax.errors import CheckpointError, ConfigError, MissingPackageError
from dfkd_jax.models import adapters

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (3, 8, 8, 2))
ABOUT = {"image_shape": (8, 8, 2), "mean": 0.5, "std": 0.25}


@pytest.fixture(autouse=True)
def others_broadcast_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, training):
        hidden = nn.relu(nn.Conv(4, (3, 3), name="conv")(images))
        hidden = nn.BatchNorm(use_running_average=not training)(hidden)
        hidden = nn.Dropout(0.5, deterministic=not training)(hidden)
        hidden = nn.max_pool(hidden, (2, 2), (2, 2)).reshape(images.shape[0], -1)
        return nn.Dense(4, name="output")(hidden)


def linen():
    module = Linen()
    variables = jax.jit(lambda key: module.init(key, IMAGES, training=False))(KEY)
    expected = module.apply(variables, IMAGES, training=False)
    return from_linen(module, variables, **ABOUT), expected, ["conv", "output"]


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, images):
        hidden = self.drop(nnx.relu(self.norm(self.conv(images))))
        hidden = nnx.max_pool(hidden, (2, 2), (2, 2))
        return self.output(hidden.reshape(hidden.shape[0], -1))


def flax_nnx():
    module = Nnx(nnx.Rngs(0))
    network = from_nnx(module, **ABOUT)
    assert not module.drop.deterministic  # Left as it was.
    module.eval()
    return network, module(IMAGES), ["conv", "output"]


def equinox():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(KEY)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, padding=1, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.5),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(64, 4, key=second),
        ]
    )
    still = eqx.nn.inference_mode(module)
    expected = jax.vmap(still)(IMAGES.transpose(0, 3, 1, 2))
    return from_equinox(module, **ABOUT), expected, ["layers/0", "layers/5"]


def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(4, name="output"),
        ],
        name="net",
    )
    return from_keras(model, **ABOUT), model(IMAGES), ["net/conv", "net/output"]


def pytorch():
    torch, _ = map(pytest.importorskip, ("torch", "torchax"))
    layers = torch.nn
    module = layers.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        layers.ReLU(),
        layers.Dropout(0.5),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Linear(64, 4),
    )
    network = from_pytorch(module, **ABOUT)
    assert module.training  # Left as it was.
    images = torch.tensor(np.asarray(IMAGES)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network, module.eval()(images).numpy(), ["0", "6"]


@pytest.mark.parametrize("make", [linen, flax_nnx, equinox, keras, pytorch])
def test_logits_are_the_frameworks_own_and_layers_are_named(make, monkeypatch):
    network, expected, names = make(monkeypatch) if make is keras else make()
    logits = jax.jit(network.logits)(IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    found = network.layers()
    assert list(found) == names
    assert all(layer.is_cut for layer in found.values())
    assert network.description.num_classes == 4
    assert len(repr(network).splitlines()) == 3
    for name in names:
        features = network.features(IMAGES, layer=name)
        again = network.head(features, layer=name)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def test_any_function():
    def function(params, images):
        return images.reshape(images.shape[0], -1) @ params["weight"]

    weight = jnp.tile(jnp.arange(4.0), (128, 1))
    network = from_function(function, {"weight": weight}, **ABOUT)
    assert list(network.layers()) == ["weight"]
    np.testing.assert_allclose(
        network.logits(IMAGES)[:, 1], IMAGES.sum((1, 2, 3)), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(CheckpointError, match=r"\[batch, 9, 8, 2\].*images' shape"):
        from_function(
            function, {"weight": weight}, **ABOUT | {"image_shape": (9, 8, 2)}
        )
    with pytest.raises(ConfigError, match=r"channels first: give \(8, 8, 3\)"):
        from_function(
            function, {"weight": weight}, **ABOUT | {"image_shape": (3, 8, 8)}
        )


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (lambda logits: logits[0], r"\(4,\)"),
        (lambda logits: logits[:, None], r"\(2, 1, 4\)"),
    ],
)
def test_what_returns_no_logits(returns, said):
    def function(weight, images):
        return returns(images.reshape(images.shape[0], -1) @ weight)

    with pytest.raises(CheckpointError, match=f"returns {said}.* instead of logits"):
        from_function(function, jnp.ones((128, 4)), **ABOUT)


def test_one_of_several_outputs():
    def function(weight, images):
        images = images.reshape(images.shape[0], -1)
        return {"features": images, "probs": jax.nn.softmax(images @ weight)}

    weight = jax.random.normal(KEY, (128, 4)) / 10
    with pytest.raises(CheckpointError, match="several things"):
        from_function(function, weight, **ABOUT)
    network = from_function(function, weight, **ABOUT, logits="probs")
    images = IMAGES.reshape(3, -1)
    np.testing.assert_allclose(network.logits(IMAGES), images @ weight, rtol=1e-4)


@pytest.mark.usefixtures("no_pictures")
def test_a_network_that_cannot_be_looked_into(capsys):
    """Soft labels are then of the logits, each by itself."""

    def within(weight, images):
        def one(total, row):
            image, part = row
            return total + image @ part, None

        images = images.reshape(images.shape[0], 8, -1)
        rows = jnp.moveaxis(images, 1, 0), weight
        logits = jax.lax.scan(one, jnp.zeros((images.shape[0], 4)), rows)[0]
        return jax.nn.softmax(logits)

    weight = jax.random.normal(KEY, (8, 16, 4)) / 4
    teacher = from_function(within, weight, **ABOUT)
    assert teacher.layers() == {}
    student = distill(
        teacher,
        Linen(),
        synthesis={"num_images": 8, "num_steps": 2},
        distillation={"num_steps": 2, "batch_size": 8, "procedural": 0},
    )
    assert student.description.num_classes == 4
    said = [line for line in capsys.readouterr().out.splitlines() if "no layer" in line]
    assert len(said) == 1
    assert "over its logits" in said[0]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "no weight"),
        ({"weight": np.ones((2, 2), np.int8)}, "no weight of a floating dtype"),
        ({"weight": "w.npz"}, "hold a str"),
    ],
)
def test_what_are_no_weights(variables, said):
    with pytest.raises(ConfigError, match=said):
        from_function(lambda variables, images: images, variables, **ABOUT)


def test_a_weight_that_is_not_finite():
    def function(weight, images):
        return images.reshape(images.shape[0], -1) @ weight

    with pytest.raises(CheckpointError, match="params/weight holds NaN"):
        from_function(function, np.full((128, 4), np.nan), **ABOUT)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({}, "live network of nnx, got a dict"),
        (Linen(), "got a Linen: give it to from_linen"),
        (Nnx, r"class Nnx: call it: Nnx\("),
    ],
)
def test_another_frameworks_network_is_refused(network, said):
    with pytest.raises(ConfigError, match=said):
        from_nnx(network, **ABOUT)


def test_a_missing_framework_is_told():
    with pytest.raises(MissingPackageError, match=r"pip install .*dfkd_jax\[such\]"):
        adapters.needed("no_such_framework", extra="such")


# Students ------------------------------------------------------------------------


class NnxStudent(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(48, 4, rngs=rngs)

    def __call__(self, images):
        hidden = self.drop(nnx.relu(self.norm(self.conv(images))))
        hidden = nnx.avg_pool(hidden, (2, 2), (2, 2))
        return nnx.softmax(self.output(hidden.reshape(hidden.shape[0], -1)))


def linen_student():
    return Linen()


def nnx_student():
    return NnxStudent(nnx.Rngs(1))


def equinox_student():
    eqx = pytest.importorskip("equinox")

    class Student(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        drop: eqx.nn.Dropout
        output: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(2, 3, 3, padding=1, key=first)
            self.norm = eqx.nn.BatchNorm(3, axis_name="images", mode="ema")
            self.drop = eqx.nn.Dropout(0.5)
            self.output = eqx.nn.Linear(192, 4, key=second)

        def __call__(self, image, state, *, key=None):
            hidden, state = self.norm(self.conv(image), state)
            hidden = self.drop(jax.nn.relu(hidden), key=key)
            return self.output(hidden.reshape(-1)), state

    return eqx.nn.make_with_state(Student)(jax.random.key(1))


def keras_student():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(4, name="output"),
        ]
    )


STUDENTS = [linen_student, nnx_student, equinox_student, keras_student]


@pytest.fixture
def student(request, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return request.param()


@pytest.mark.parametrize("student", STUDENTS, indirect=True)
def test_batch_norm_and_dropout_are_trained(student):
    model, _ = adapters.adapt(student)
    variables = model.init(KEY, (8, 8, 2))
    images = 3 + 2 * jax.random.normal(KEY, (16, 8, 8, 2))
    train = jax.jit(model.train_logits)
    one, changed = train(variables, images, jax.random.key(1))
    again, _ = train(variables, images, jax.random.key(1))
    other, _ = train(variables, images, jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01  # Dropout is drawn from the key.
    before = {name: variables[name] for name in variables if name != "params"}
    assert jax.tree.structure(changed) == jax.tree.structure(before)
    for old, new in zip(*map(jax.tree.leaves, (before, changed)), strict=True):
        assert not np.array_equal(old, new)
    logits = model.logits(variables | changed, images)
    np.testing.assert_array_equal(logits, model.logits(variables | changed, images))
    np.testing.assert_allclose(
        logits[:1], model.logits(variables | changed, images[:1]), atol=1e-5
    )

    def loss(params):
        return jnp.square(train(variables | {"params": params}, images, KEY)[0]).sum()

    gradients = jax.tree.leaves(jax.grad(loss)(variables["params"]))
    # A bias before a BatchNorm has none.
    assert sum(bool(np.abs(leaf).max() > 1e-3) for leaf in gradients) >= 5


@pytest.mark.parametrize(
    "student",
    [
        each if each is nnx_student else pytest.param(each, marks=pytest.mark.full)
        for each in STUDENTS
    ],
    indirect=True,
)
@pytest.mark.usefixtures("no_pictures")
def test_ten_lines_make_a_student(student, tmp_path, capsys):
    teacher, *_ = flax_nnx()
    found = distill(
        teacher,
        student,
        seed=1,
        progress=False,
        synthesis={"num_images": 7, "num_steps": 3},
        distillation={"num_steps": 4, "batch_size": 8},
    )
    assert capsys.readouterr().out == ""
    pixels = np.random.default_rng(0).random((5, 8, 8, 2), np.float32)
    answers = found.predict_proba(pixels)
    found.save(tmp_path / "student.safetensors")
    again = load(tmp_path / "student.safetensors", module=student)
    np.testing.assert_array_equal(again.predict_proba(pixels), answers)
    assert again.sha256 == found.sha256


@pytest.mark.full
def test_a_narrower_student_starts_from_the_teacher():
    teacher = from_nnx(Nnx(nnx.Rngs(0)), **ABOUT)
    small = {"synthesis": {"num_images": 8, "num_steps": 2}}
    small["distillation"] = {"num_steps": 2, "batch_size": 8, "start": "teacher"}
    module = Nnx(nnx.Rngs(1))
    module.conv = nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(2))
    module.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(2))
    module.output = nnx.Linear(32, 4, rngs=nnx.Rngs(2))
    student = distill(teacher, module, progress=False, **small)
    found = student.variables["params"]["conv"]["kernel"]
    theirs = teacher.variables["params"]["conv"]["kernel"]
    # Two steps from least squares, on what is a part of the teacher.
    near = np.abs(found[..., None] - theirs[..., None, :]).max((0, 1, 2)).min(1)
    assert near.max() < 0.3


def test_a_pytorch_network_cannot_be_a_student():
    torch, _ = map(pytest.importorskip, ("torch", "torchax"))
    teacher, *_ = flax_nnx()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 4))
    with pytest.raises(ConfigError, match="PyTorch Sequential is a teacher alone"):
        distill(teacher, net)
