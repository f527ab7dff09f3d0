import jax
import numpy as np
import pytest

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import loop
from dfkd_jax.errors import ConfigError
from dfkd_jax.models import network, registry

SHAPE = (28, 28, 1)


def make(name):
    return registry.create(name, num_classes=10, arguments={})


def check(layer, student):
    loop.check_feature_layer(
        DistillationConfig(feature_layer=layer),
        teacher=make("lenet5"),
        student=make(student),
        image_shape=SHAPE,
    )


@pytest.mark.parametrize("layer", ["", "dense_1", "dense_2", "output"])
def test_a_layer_that_both_have_alike(layer):
    check(layer, "lenet5_half")


def test_a_layer_of_another_width_is_refused():
    with pytest.raises(ConfigError, match=r"\(120,\).*\(60,\)"):
        check("dense_1", "lenet5_half_dafl")


def test_a_layer_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"dense_3.*no layer of the teacher"):
        check("dense_3", "lenet5_half")


def test_a_student_inherits_what_has_the_same_name_and_shape():
    teacher, student = (
        network.init(make(name), jax.random.key(number), SHAPE)
        for number, name in enumerate(("lenet5", "lenet5_half"))
    )
    found = loop.inherit(student, teacher)["params"]
    for layer in ("dense_2", "output"):
        jax.tree.map(
            np.testing.assert_array_equal, found[layer], teacher["params"][layer]
        )
    for layer in ("conv_1", "conv_2", "dense_1"):
        np.testing.assert_array_equal(
            found[layer]["kernel"], student["params"][layer]["kernel"]
        )
