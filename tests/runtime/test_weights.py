import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import weights

DESCRIPTION = weights.Description(
    network="lenet5",
    num_classes=3,
    image_shape=(4, 4, 1),
    mean=(0.1,),
    std=(0.3,),
    dataset="mnist",
)


def make_variables():
    random = np.random.default_rng(0)
    shapes = {"conv": (2, 2, 1, 3), "dense": (5, 3)}
    return {
        "params": {
            layer: {
                "kernel": random.normal(size=shape).astype(np.float32),
                "bias": random.normal(size=shape[-1]).astype(np.float32),
            }
            for layer, shape in shapes.items()
        }
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "teacher.safetensors"
    weights.save(path, make_variables(), DESCRIPTION)
    return path


def test_round_trip_is_exact(path):
    variables, description = weights.load(path)
    assert description == DESCRIPTION
    assert weights.digest(variables) == weights.digest(make_variables())
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"],
        make_variables()["params"]["conv"]["kernel"],
    )


def test_arrays_that_are_views_or_on_devices_are_saved_in_order(path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights.save(path, {"params": {"a": kernel.T, "b": jnp.array(kernel)}}, DESCRIPTION)
    params = weights.load(path)[0]["params"]
    np.testing.assert_array_equal(params["a"], kernel.T)
    np.testing.assert_array_equal(params["b"], kernel)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_tensor_is_refused_by_name(path, value):
    variables = make_variables()
    variables["params"]["dense"]["bias"][1] = value
    weights.save(path, variables, DESCRIPTION)
    with pytest.raises(CheckpointError, match="tensor params/dense/bias holds NaN"):
        weights.load(path)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        weights.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="not there"):
        weights.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not written by dfkd_jax"),
        ({"format": "pt"}, "not written by dfkd_jax"),
        ({weights.FORMAT: ""}, "its description is damaged"),
        ({weights.FORMAT: "{"}, "its description is damaged"),
        ({weights.FORMAT: "{}"}, "its description is damaged"),
        (
            {
                weights.FORMAT: json.dumps(
                    dataclasses.asdict(DESCRIPTION) | {"color": 1}
                )
            },
            "its description is damaged",
        ),
    ],
)
def test_foreign_file_is_refused(path, metadata, message):
    save_file({"a": np.zeros(2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        weights.load(path)


def test_shapes_that_differ_are_listed_by_name():
    found, wanted = make_variables(), make_variables()
    weights.check_shapes(found, wanted, source="f", network="n")

    del found["params"]["conv"]["bias"]
    found["params"]["extra"] = {"bias": np.zeros(1)}
    found["params"]["dense"]["kernel"] = np.zeros((3, 5))
    with pytest.raises(CheckpointError) as error:
        weights.check_shapes(found, wanted, source="file", network="lenet5")
    for part in (
        "file does not fit the network 'lenet5'",
        "params/conv/bias is missing",
        "params/extra/bias is not part of it",
        "params/dense/kernel is (3, 5) instead of (5, 3)",
    ):
        assert part in str(error.value)

    with pytest.raises(CheckpointError, match="and 3 more"):
        weights.check_shapes(
            {"params": {str(i): np.zeros(1) for i in range(3)}},
            wanted,
            source="file",
            network="lenet5",
        )


def test_count():
    assert weights.count(make_variables()) == 12 + 3 + 15 + 3


def change_one_bit(variables):
    kernel = variables["params"]["conv"]["kernel"]
    kernel.view(np.uint8).reshape(-1)[7] ^= 1


def rename(variables):
    params = variables["params"]
    params["dense_1"] = params.pop("dense")


def reshape(variables):
    params = variables["params"]["dense"]
    params["kernel"] = params["kernel"].reshape(3, 5)


def retype(variables):
    params = variables["params"]["dense"]
    params["bias"] = params["bias"].view(np.int32)


@pytest.mark.parametrize("change", [change_one_bit, rename, reshape, retype])
def test_digest_changes_with_whatever_changes(change):
    variables = make_variables()
    change(variables)
    assert weights.digest(variables) != weights.digest(make_variables())


def test_digest_ignores_the_order_of_layers():
    params = make_variables()["params"]
    turned = {"params": dict(reversed(params.items()))}
    assert weights.digest(turned) == weights.digest(make_variables())
