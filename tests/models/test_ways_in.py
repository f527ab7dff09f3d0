"""Networks of every framework as teachers, a row each: from live to a student."""

import dataclasses

import jax
import numpy as np
import pytest
import same_nets
from flax import linen as nn
from flax import nnx

from dfkd_jax import (
    distill,
    from_equinox,
    from_keras,
    from_linen,
    from_nnx,
    from_torch,
)
from dfkd_jax.distillation import start

pytestmark = pytest.mark.full
IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
ABOUT = {"image_shape": (16, 16, 3), "mean": 0.5, "std": 0.25}


@pytest.fixture(autouse=True)
def others_broadcast_as_they_like(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):
        yield


def needed(*names):
    for name in names:
        pytest.importorskip(name)


def linen(plan):
    module = same_nets.Linen(plan)
    start = jax.jit(lambda key: module.init(key, IMAGES))
    variables = same_nets.off(start(jax.random.key(0)))
    return from_linen(module, variables, **ABOUT), module.apply(variables, IMAGES)


def flax_nnx(plan):
    module = same_nets.Nnx(plan, nnx.Rngs(0))
    for kind in (nnx.Param, nnx.BatchStat):
        nnx.update(module, same_nets.off(nnx.state(module, kind)))
    network = from_nnx(module, **ABOUT)
    module.eval()
    return network, module(IMAGES)


def equinox(plan):
    needed("equinox")
    import equinox as eqx

    make = eqx.nn.make_with_state(same_nets.Equinox)
    module, state = make(plan, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jax.numpy.ones_like(leaf), state)
    module, state = same_nets.off((module, state))
    still = eqx.nn.inference_mode(module)
    call = jax.vmap(still, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    logits, _ = call(IMAGES.transpose(0, 3, 1, 2), state)
    return from_equinox(module, state, **ABOUT), logits


def keras(plan):
    needed("keras")
    model = same_nets.keras_net(plan)
    for weight in model.weights:
        weight.assign(same_nets.off(np.asarray(weight.value)))
    return from_keras(model, **ABOUT), model(IMAGES)


def _pytorch(module):
    import torch

    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor))
        images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
        network = from_torch(module, **ABOUT)
        return network, module.eval()(images).numpy()


def pytorch(plan):
    needed("torch", "torchax")
    return _pytorch(same_nets.torch_net(plan))


def of_timm(name):
    needed("torch", "torchax", "timm")
    import timm

    return _pytorch(timm.create_model(name, num_classes=10))


FRAMEWORKS = [linen, flax_nnx, equinox, keras, pytorch]
ROWS = [
    pytest.param(make, name, id=f"{make.__name__}, {name}")
    for make in FRAMEWORKS
    for name in same_nets.NETWORKS
]
ROWS += [pytest.param(of_timm, "test_resnet", id="timm, test_resnet")]


class Small(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(8)(images.reshape(images.shape[0], -1)))
        return nn.Dense(10)(hidden)


@pytest.mark.parametrize(("make", "name"), ROWS)
def test_from_a_live_network_to_a_student(make, name):
    if make is of_timm:
        teacher, expected = make(name)
    else:
        plan, shape = same_nets.plan(same_nets.NETWORKS[name], same_nets.SHAPE)
        assert shape == (10,)
        teacher, expected = make(plan)
    expected = np.asarray(expected)
    allowed = 1e-5 * np.abs(expected).max()

    images = jax.numpy.asarray(IMAGES)
    np.testing.assert_allclose(
        jax.jit(teacher.logits)(images), expected, atol=allowed, rtol=0
    )

    layers = teacher.layers()
    kernels = [layer for layer in layers.values() if layer.kernel_layer == layer.name]
    if make is not of_timm:
        assert len(kernels) == _products(plan)
    assert all(layer.calls == 1 for layer in kernels)
    for layer in layers.values():
        if not layer.is_cut:
            continue
        features, logits = jax.jit(
            lambda images, name=layer.name: teacher.features_and_logits(
                images, layer=name
            )
        )(images)
        assert features.shape == (len(images), *layer.output_shape)
        again = jax.jit(lambda f, name=layer.name: teacher.head(f, layer=name))(
            features
        )
        np.testing.assert_allclose(again, logits, atol=allowed, rtol=0)

    student = distill(
        teacher,
        Small(),
        progress=False,
        synthesis={"num_images": 8, "num_steps": 2},
        distillation={"num_steps": 2, "batch_size": 8},
    )
    pixels = np.random.default_rng(1).random((3, 16, 16, 3), np.float32)
    assert student.predict_proba(pixels).shape == (3, 10)
    np.testing.assert_allclose(student.predict_proba(pixels).sum(1), 1, rtol=1e-5)


def _products(plan):
    """How many layers have a kernel."""
    return sum(
        sum(map(_products, options))
        if name == "residual"
        else name in ("conv", "dense")
        for name, options in plan
    )


def _chain(width):
    return [
        *[same_nets.conv(4 * width), "batch norm", "relu", ("pool", "max", 2)],
        *[same_nets.conv(6 * width, 3, 1, 0), "batch norm", "relu"],
        *[("pool", "average", 2), "flatten", ("dense", 8 * width), "relu"],
        ("dense", 10),
    ]


@pytest.mark.parametrize(
    ("make", "make_student"),
    [(make, linen) for make in FRAMEWORKS]
    + [(pytorch, make) for make in (flax_nnx, equinox, keras)],
)
def test_a_start_as_a_part_of_a_teacher_in_another_framework(make, make_student):
    """As wide, it says what the teacher says; narrower, what any framework's says."""
    images = np.random.default_rng(0).normal(size=(300, 16, 16, 3))
    images = images.astype(np.float32)
    wide, narrow = (
        same_nets.plan(_chain(width), same_nets.SHAPE)[0] for width in (2, 1)
    )

    def start_of(teacher, make, plan):
        student, _ = make(plan)
        assert not start.obstacle(teacher=teacher, student=student.model)
        found = start.init_from_pruned_teacher(
            teacher, student.model, student.variables, images
        )
        return dataclasses.replace(student, variables=found)

    def distance(one, other):
        one, other = (jax.jit(network.logits)(images) for network in (one, other))
        return np.sqrt(np.square(one - other).mean() / other.var(axis=0).mean())

    teacher, _ = make(wide)
    same = start_of(teacher, linen, wide)
    assert distance(same, teacher) < 1e-2
    assert distance(start_of(teacher, make_student, wide), teacher) < 1e-2
    expected = start_of(same, linen, narrow)
    assert distance(start_of(teacher, make_student, narrow), expected) < 5e-2
    assert distance(expected, teacher) > 0.1
