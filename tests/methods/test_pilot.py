"""What a teacher gets where a setting is left to it."""

import dataclasses

import custom_nets
import described
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkd_jax.config import DistillationConfig, SynthesisConfig, TargetsConfig
from dfkd_jax.errors import ConfigError
from dfkd_jax.methods import pilot, soft_targets
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import files, rng

SHAPE = (8, 8, 1)


def teacher(scale=1.0):
    """A toy whose logits are `scale` times as large."""
    variables = Linen(custom_nets.Toy()).init(jax.random.key(0), SHAPE)
    params = dict(variables["params"])
    last = list(params)[-1]
    params[last] = jax.tree.map(lambda leaf: scale * leaf, params[last])
    return described.network(custom_nets.Toy(), {"params": params}, SHAPE)


@dataclasses.dataclass
class Task:
    """As much of a task as is looked at."""

    config: object
    teacher: object
    workdir: object


@dataclasses.dataclass
class Config:
    """Of a method with all three groups."""

    targets: TargetsConfig
    synthesis: SynthesisConfig
    distillation: DistillationConfig


def config(sigma=0.0, temperature=0.0, batch_norm=0.0):
    return Config(
        targets=TargetsConfig(sigma=sigma),
        synthesis=SynthesisConfig(temperature=temperature, batch_norm=batch_norm),
        distillation=DistillationConfig(temperature=temperature),
    )


def test_spread_by_hand():
    # Deviations from the mean: ±1, ±3.
    assert pilot.spread(np.float32([[4, 6], [0, 6]])) == pytest.approx(5**0.5)


def test_unit_grows_with_the_logits():
    assert pilot.unit(teacher(30.0)) == pytest.approx(30 * pilot.unit(teacher()), 0.02)


@pytest.mark.parametrize("scale", [0.2, 20.0])
@pytest.mark.parametrize("kind", ["variance", "std"])
def test_sigma_makes_labels_as_decided_for_any_teacher(scale, kind):
    found = teacher(scale)
    targets = TargetsConfig(sigma=0.0, scale=kind, candidates=1)
    layer = soft_targets.find_feature_layer(targets, found)
    draw = soft_targets.make_targets(targets, found, layer)
    keys = rng.per_example(jax.random.key(3), jnp.arange(500))
    spread = pilot.spread(np.log(np.asarray(draw(keys)) + 1e-30))
    assert spread == pytest.approx(pilot.DECIDED, rel=0.1)


def test_zeros_are_measured_once_and_the_rest_is_left(tmp_path):
    task = Task(config(), teacher(), tmp_path)
    settled, metadata = pilot.settle(task, find_sigma=lambda: 0.5)
    unit = pilot.unit(task.teacher)
    assert metadata == {"pilot": {"temperature": unit, "sigma": 0.5}}
    assert settled.config.targets.sigma == 0.5
    assert settled.config.synthesis.temperature == unit
    assert settled.config.distillation.temperature == unit

    kept = tmp_path / "pilot.json"
    changed = files.read_object(kept) | {"temperature": 7.0}
    files.write_json(kept, changed, sealed=True)
    again, _ = pilot.settle(task, find_sigma=lambda: 0.1)
    assert again.config.synthesis.temperature == 7.0
    assert again.config.targets.sigma == 0.5

    given, metadata = pilot.settle(Task(config(2.0, 3.0), teacher(), tmp_path))
    assert given.config == config(2.0, 3.0) and not metadata


def test_methods_without_targets_have_their_temperature(tmp_path):
    task = Task(
        dataclasses.make_dataclass("Alone", ["distillation"])(
            DistillationConfig(temperature=0.0)
        ),
        teacher(),
        tmp_path,
    )
    settled, _ = pilot.settle(task)
    assert settled.config.distillation.temperature == pilot.unit(task.teacher)


def test_a_temperature_that_nothing_looks_at_is_not_measured(tmp_path):
    idle = dataclasses.replace(
        config(sigma=1.0),
        synthesis=SynthesisConfig(num_steps=0, init="normal", batch_norm=0.0),
        distillation=DistillationConfig(loss="l1"),
    )
    settled, metadata = pilot.settle(Task(idle, teacher(), tmp_path))
    assert settled.config == idle and not metadata
    assert not (tmp_path / "pilot.json").exists()


def test_a_prior_of_batch_norms_for_teachers_that_have_some(tmp_path):
    module = custom_nets.SmallCnn(width=2)
    variables = Linen(module).init(jax.random.key(0), SHAPE)
    normed = described.network(module, variables, SHAPE)
    default = SynthesisConfig().batch_norm
    for network, expected in ((teacher(), 0.0), (normed, default)):
        task = Task(config(2.0, 3.0, default), network, tmp_path)
        soft_targets.check_priors(task.config.synthesis, network)
        settled, _ = pilot.settle(task)
        assert settled.config.synthesis.batch_norm == expected
    assert expected > 0
    asked = SynthesisConfig(batch_norm=3.0)
    soft_targets.check_priors(asked, normed)
    with pytest.raises(ConfigError, match="no BatchNorm of images"):
        soft_targets.check_priors(asked, teacher())
