"""A student that starts as a part of its teacher."""

import custom_nets
import described
import jax
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import loop, start
from dfkd_jax.errors import ConfigError
from dfkd_jax.models import registry
from dfkd_jax.models.alexnet import AlexNet
from dfkd_jax.models.lenet import LeNet5
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import weights, writers


def alexnet(width):
    """With `width` times two units in each layer."""
    return AlexNet(conv_features=(2 * width,) * 5, dense_features=(2 * width,) * 2)


def lenet(width):
    return LeNet5(conv_features=(2 * width,) * 2, dense_features=(4 * width,) * 2)


# A network `make(width)`, and the shape of its images.
NETWORKS = {
    "AlexNet": (alexnet, (32, 32, 3)),
    "LeNet-5": (lenet, (28, 28, 1)),
    "own": (lambda width: custom_nets.SmallCnn(width=width), (8, 8, 1)),
    "own, late": (lambda width: custom_nets.LateNorm(width=width), (8, 8, 1)),
    "own, nested": (lambda width: custom_nets.AllConvolutional(width=width), (8, 8, 1)),
}


# What takes long to compile.
LARGE = ("AlexNet", "LeNet-5")
SOME = [
    pytest.param(name, marks=pytest.mark.full) if name in LARGE else name
    for name in NETWORKS
]


def make(name, width, seed=0):
    """A network with something in each of its variables, images, and its logits."""
    build, shape = NETWORKS[name]
    module = build(width)
    rng = np.random.default_rng(seed)
    model = Linen(module)
    variables = weights.flatten(model.init(jax.random.key(seed), shape))
    variables = {
        path: leaf + rng.uniform(0.05, 0.2, leaf.shape).astype(np.float32)
        if leaf.ndim == 1
        else np.asarray(leaf)
        for path, leaf in variables.items()
    }
    images = rng.normal(size=(250, *shape)).astype(np.float32)
    return described.network(
        module, weights.unflatten(variables, source="It"), shape
    ), images


def narrow(name, width):
    return Linen(NETWORKS[name][0](width))


def pruned(teacher, student, images):
    blank = student.init(jax.random.key(1), images.shape[1:])
    return start.init_from_pruned_teacher(teacher, student, blank, images)


def logits(model, variables, images):
    return np.asarray(jax.jit(model.logits)(variables, images))


def distance(one, other):
    """As a share of the spread of `other` over the images."""
    return np.sqrt(np.square(one - other).mean() / other.var(axis=0).mean())


@pytest.mark.parametrize("name", SOME)
def test_a_student_as_wide_as_the_teacher_is_the_teacher(name):
    teacher, images = make(name, 4)
    found = pruned(teacher, teacher.model, images)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, teacher.variables)
    answers = logits(teacher.model, found, images)
    assert distance(answers, teacher.logits(images)) < 1e-2


@pytest.mark.parametrize("name", SOME)
def test_a_teacher_with_every_unit_twice_is_halved_without_loss(name):
    """But for local response normalization, which sees neighbors."""
    student, images = make(name, 4)
    teacher = NETWORKS[name][0](8)
    shapes = weights.flatten(Linen(teacher).shapes(images.shape[1:]))
    doubled = {}
    for path, leaf in weights.flatten(student.variables).items():
        wanted = shapes[path].shape
        for axis in range(leaf.ndim):
            if wanted[axis] == leaf.shape[axis]:
                continue
            # Places of a flattened map stay apart: units are the last part of inputs.
            leaf = np.repeat(leaf, 2, axis)
            if axis == leaf.ndim - 2:
                leaf = leaf / 2
        doubled[path] = leaf
    doubled = weights.unflatten(doubled, source="It")
    teacher = described.network(teacher, doubled, images.shape[1:])
    found = pruned(teacher, student.model, images)
    wanted = teacher.logits(images)
    assert distance(logits(student.model, found, images), wanted) < 0.1


@pytest.mark.parametrize("name", SOME)
def test_fitted_layers_are_nearer_than_cut_ones(name):
    """To what the teacher says, on images that they were not fitted on."""
    teacher, images = make(name, 8)
    student = narrow(name, 4)
    found = pruned(teacher, student, images[:200])
    theirs, own = (
        start.chain(model, images.shape[1:]) for model in (teacher.model, student)
    )
    flat = weights.flatten(teacher.variables)
    kept = start.choose_units(teacher, images[:200], theirs=theirs, own=own)
    cut = weights.unflatten(
        start.slice_variables(flat, kept, theirs=theirs, own=own), source="It"
    )
    new, answers = images[200:], teacher.logits(images[200:])
    errors = [
        np.square(logits(student, each, new) - answers).mean() for each in (found, cut)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_stand_ins_by_hand():
    """Two pairs of twins, of which one pair hardly matters, and a unit by itself."""
    features = np.random.default_rng(0).normal(size=(500, 3))
    features = features[:, [0, 0, 1, 1, 2]] * np.array([1, 2, 3, 1, 2])
    covariance = np.cov(features.T)
    chosen = set(start.select_channels(covariance, np.eye(5), number=2))
    assert len(chosen & {0, 1}) == len(chosen & {2, 3}) == 1
    costs = np.diag([1.0, 1.0, 1e-4, 1e-4, 1.0])
    assert 4 in start.select_channels(covariance, costs, number=2)
    chosen = set(start.select_channels(covariance, np.eye(5), number=3))
    assert len(chosen & {0, 1}) == len(chosen & {2, 3}) == len(chosen & {4}) == 1
    np.testing.assert_array_equal(
        start.select_channels(covariance, np.eye(5), number=5), np.arange(5)
    )
    still = start.select_channels(np.full((5, 5), -1e-9), np.eye(5), number=2)
    np.testing.assert_array_equal(still, [0, 1])  # Units that say the same always.


def test_images_are_looked_at_in_parts(monkeypatch):
    teacher, images = make("own", 8)
    student = narrow("own", 4)
    whole = pruned(teacher, student, images)
    monkeypatch.setattr(start, "AT_ONCE", 40)  # The last part is smaller.
    parts = pruned(teacher, student, images)
    for one, other in zip(*map(jax.tree.leaves, (parts, whole)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


class Grouped(nn.Module):
    width: int

    @nn.compact
    def __call__(self, images):
        hidden = nn.Conv(self.width, (3, 3), name="conv")(images)
        hidden = nn.Conv(self.width, (3, 3), feature_group_count=2, name="grouped")(
            nn.relu(hidden)
        )
        return nn.Dense(10, name="output")(hidden.mean((1, 2)))


class Bypassed(nn.Module):
    width: int

    @nn.compact
    def __call__(self, images):
        hidden = nn.Conv(self.width, (3, 3), name="conv_1")(images)
        hidden += nn.Conv(self.width, (3, 3), name="conv_2")(nn.relu(hidden))
        return nn.Dense(10, name="output")(hidden.mean((1, 2)))


def registered(name):
    return registry.create(name, num_classes=10, arguments={})


@pytest.mark.parametrize(
    ("teacher", "student", "shape", "reason"),
    [
        (registered("lenet5_half"), registered("lenet5"), (28, 28, 1), "is wider"),
        (registered("alexnet"), registered("resnet18"), (32, 32, 3), "are conv_1"),
        (Grouped(8), Grouped(4), (8, 8, 1), "'grouped' is a layer of a kind"),
        (Bypassed(8), Bypassed(4), (8, 8, 1), "goes round 'conv_2'"),
        (
            custom_nets.SmallCnn(width=8),
            custom_nets.SmallCnn(width=4, num_classes=9),
            (8, 8, 1),
            "the last one, is narrower",
        ),
        (
            custom_nets.SmallCnn(width=8),
            custom_nets.SmallCnn(width=4),
            (8, 8, 1),
            "",
        ),
    ],
)
def test_students_that_are_no_narrower_teachers(teacher, student, shape, reason):
    config = DistillationConfig(start="teacher")
    abstract = Linen(teacher).shapes(shape)
    networks = {
        "teacher": described.network(teacher, abstract, shape),
        "student": Linen(student),
    }
    loop.check_networks(DistillationConfig(), **networks)
    if not reason:
        return loop.check_networks(config, **networks)
    with pytest.raises(ConfigError, match="start='random'") as error:
        loop.check_networks(config, **networks)
    assert reason in str(error.value)


@pytest.mark.full
def test_a_start_is_fitted_in_float32_whatever_steps_compute_in(tmp_path):
    teacher, images = make("own", 8)

    class Source:
        def __len__(self):
            return len(images)

        def gather(self, indices):
            return images[indices], np.full((len(indices), 10), 0.1, np.float32)

    found = {}
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        found[dtype] = loop.distil(
            DistillationConfig(
                start="teacher",
                temperature=1.0,
                procedural=0,
                num_steps=1,
                batch_size=8,
                warmup_steps=0,
                learning_rate=1e-9,
            ),
            teacher=teacher,
            student=narrow("own", 4),
            source=Source(),
            compute_dtype=dtype,
            seed=0,
            workdir=tmp_path / dtype,
            stopwatch=writers.Stopwatch(tmp_path / dtype / "seconds.json"),
        )
    params = [each["params"] for each in found.values()]
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-6)
