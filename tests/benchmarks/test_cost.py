"""The arithmetic of docs/cost.md, by hand and against what was measured."""

import dataclasses
import json

import pytest
from flax import linen as nn

from benchmarks import cost, measure
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen

# Whose share of the peak the page assumes.
LARGE = ("alexnet", "alexnet_wang", "resnet34")


class Small(nn.Module):
    """A convolution of 3×3 on 8×8, a dense layer."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.Conv(4, (3, 3), name="conv")(images)
        return nn.Dense(5, name="dense")(hidden.reshape(hidden.shape[0], -1))


CONV, DENSE = 8 * 8 * 9 * 2 * 4, 8 * 8 * 4 * 5


def test_operations_by_hand():
    counts, parameters = cost.counted(Linen(Small()), (8, 8, 2))
    assert counts == (CONV, DENSE)
    assert parameters == 9 * 2 * 4 + 4 + 8 * 8 * 4 * 5 + 5
    assert measure.synthesis_operations(counts) == 4 * (CONV + DENSE)
    assert measure.training_operations(counts) == 4 * CONV + 6 * DENSE
    teacher = [10, 20, 30]
    assert measure.distillation_operations(teacher, counts) == 2 * 60 + (
        4 * CONV + 6 * DENSE
    )


def test_operations_of_known_networks():
    """Pooling after a convolution saves none; pooling alone has none."""
    counts, _ = cost.counted(Linen(registry.create("lenet5")), (28, 28, 1))
    convolutions = (28 * 28 * 25 * 6, 10 * 10 * 25 * 6 * 16)
    assert counts == (*convolutions, 400 * 120, 120 * 84, 84 * 10)
    # A stem and four alike in the first stage; five of the same cost in each later one,
    # but for half of the first, and a shortcut of a ninth of that.
    one = 32 * 32 * 9 * 64 * 64
    later = 3 * one + one // 2 + one // 2 // 9
    expected = 32 * 32 * 9 * 3 * 64 + 4 * one + 3 * later + 512 * 10
    assert sum(cost.network("resnet18")[0]) == expected == 555_422_720


@pytest.mark.parametrize("name", ["lenet5", *LARGE])
def test_operations_are_those_of_the_measurements(name):
    shape = (28, 28, 1) if name == "lenet5" else cost.SHAPE
    counts, _ = cost.counted(Linen(registry.create(name)), shape)
    found = cost.measured()[name]["operations_per_image_and_step"]
    assert measure.synthesis_operations(counts) == found


@pytest.mark.parametrize("name", LARGE)
def test_calculated_steps_are_near_what_was_measured(name):
    """What docs/cost.md says of them: within a factor of 1.5."""
    found = cost.measured()[name]
    calculated = found["operations_per_image_and_step"] / (
        cost.CPU_SHARE * found["matmul_operations_per_second"]
    )
    took = min(
        row["seconds_per_image_and_step"]["median"]
        for row in found["rows"]
        if row["rival"] == "dfkd_jax"
    )
    assert 1 / 1.5 < took / calculated < 1.5


def test_shares_of_distillation_are_those_that_were_measured():
    path = cost.MEASURED.with_name("distillation-cpu.json")
    networks = json.loads(path.read_text())["networks"]
    shares = [
        max(row["share_of_peak"] for row in found["rows"] if row["rival"] == "dfkd_jax")
        for name, found in networks.items()
        if not name.startswith(("lenet5", "cnn"))
    ]
    alexnet, resnet = (f"{100 * share:.0f}" for share in shares)
    text = " ".join(cost.PAGE.read_text(encoding="utf-8").split())
    assert f"{alexnet} % of the peak with AlexNet and {resnet} % with ResNets" in text


def test_operations_of_a_run_by_hand():
    runs = cost.runs()
    teacher = sum(cost.network("alexnet")[0])
    student, first = cost.network("alexnet_half")[0], cost.network("alexnet_half")[0][0]
    found = cost.operations(runs["cifar10_alexnet_paper"])
    assert found["synthesis"] == 40_000 * 1_500 * 4 * teacher
    # Labels are stored: the teacher is not asked.
    learning = 2 * (3 * sum(student) - first)
    assert found["distillation"] == 15_600 * 512 * learning
    fresh = cost.operations(runs["cifar10_alexnet_kd"])
    assert fresh == {"distillation": 40_000 * 128 * (2 * teacher + learning)}
    training = cost.operations(runs["teacher_cifar10_alexnet"])["training"]
    first = cost.network("alexnet")[0][0]
    assert training == 20 * 351 * 128 * 2 * (3 * teacher - first)


def test_operations_grow_with_images_and_steps():
    config = cost.runs()["cifar10_resnet"]
    twice = dataclasses.replace(
        config,
        synthesis=dataclasses.replace(
            config.synthesis, num_images=2 * config.synthesis.num_images
        ),
    )
    before, after = cost.operations(config), cost.operations(twice)
    assert after["synthesis"] == 2 * before["synthesis"]
    assert after["distillation"] == before["distillation"]


def test_the_page_is_what_the_command_writes():
    text = cost.PAGE.read_text(encoding="utf-8")
    assert cost.filled(text) == text
    for name in cost.TABLES:
        assert f"<!-- cost: {name} -->" in text
    assert cost.filled("no marker") == "no marker"
