"""A description from a file: whole, or named for what cannot be."""

import dataclasses
import json

import pytest

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import descriptions

FIELDS = {
    "network": "lenet5",
    "num_classes": 10,
    "image_shape": [28, 28, 1],
    "mean": [0.1307],
    "std": [0.3081],
    "dataset": "mnist",
    "arguments": {"width": 3},
}


def test_comes_back_as_it_was_written():
    found = descriptions.describe(FIELDS, source="it")
    assert found.image_shape == (28, 28, 1)
    assert json.loads(json.dumps(found.to_json())) == FIELDS
    chosen = dataclasses.replace(found, output="1")
    assert descriptions.describe(chosen.to_json(), source="it") == chosen


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"network": 5}, "names must be texts"),
        ({"dataset": None}, "names must be texts"),
        ({"arguments": [1]}, "arguments must be an object"),
        ({"num_classes": 0}, "0 classes"),
        ({"num_classes": 10.0}, "10.0 classes"),
        ({"num_classes": True}, "True classes"),
        ({"image_shape": [28, 28]}, r"images of shape \(28, 28\)"),
        ({"image_shape": [28, 0, 1]}, r"images of shape \(28, 0, 1\)"),
        ({"image_shape": [2**20, 2**20, 1]}, "images of shape"),
        ({"image_shape": 28}, "not iterable"),
        ({"mean": [0.1, 0.2]}, "mean and std must be 1 numbers each"),
        ({"std": []}, "mean and std must be 1 numbers each"),
        ({"mean": [float("nan")]}, "must be finite numbers"),
        ({"mean": ["dark"]}, "must be finite numbers"),
        ({"std": [0]}, "std must be above 0"),
        ({"color": "blue"}, "color"),
    ],
)
def test_what_cannot_be_is_named(changes, problem):
    with pytest.raises(CheckpointError, match=f"it: its description.*{problem}"):
        descriptions.describe(FIELDS | changes, source="it")


@pytest.mark.parametrize("fields", [None, 3, "text", ["a"], {}])
def test_other_values_are_no_descriptions(fields):
    with pytest.raises(CheckpointError, match="its description is damaged"):
        descriptions.describe(fields, source="it")
