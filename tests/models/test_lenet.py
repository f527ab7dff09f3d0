import jax
import jax.numpy as jnp
import pytest

from dfkd_jax.models import registry
from dfkd_jax.runtime import weights

SHAPE = (1, 28, 28, 1)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(SHAPE))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet5", 61_706), ("lenet5_half", 35_820), ("lenet5_half_dafl", 15_738)],
)
def test_parameter_counts_of_the_papers(name, parameters):
    assert weights.count(shapes(registry.create(name))) == parameters


def test_the_number_of_classes_is_passed_on():
    network = registry.create("lenet5_half", num_classes=7)
    assert shapes(network)["params"]["output"]["bias"].shape == (7,)
