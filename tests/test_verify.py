"""What `verify` compares with; whole runs are in `system/test_verify.py`."""

import types

import pytest

from dfkd_jax import verify
from dfkd_jax.data import held_out
from dfkd_jax.errors import DataUnavailableError


@pytest.mark.parametrize(
    ("results", "described", "sources", "dataset", "file"),
    [
        ({"dataset": "fashion_mnist"}, "mnist", {}, "fashion_mnist", ""),
        ({"dataset": "own.npz"}, "", {}, "", "own.npz"),
        ({}, "cifar10", {}, "cifar10", ""),
        ({}, "cifar10", {"data_dir": "x"}, "cifar10", ""),
        ({"dataset": "own.npz"}, "mnist", {"raw_dir": "x"}, "", "own.npz"),
        ({"dataset": "own.npz"}, "", {"dataset": "mnist"}, "mnist", ""),
        ({"dataset": "mnist"}, "", {"file": "moved.npz"}, "", "moved.npz"),
        ({}, "", {}, None, None),
    ],
)
def test_the_test_set_is_the_one_that_the_run_names(
    monkeypatch, results, described, sources, dataset, file
):
    asked = []

    def unavailable(settings):
        asked.append((settings.dataset, settings.file))
        raise DataUnavailableError("not here")

    monkeypatch.setattr(held_out, "preflight", unavailable)
    network = types.SimpleNamespace(
        description=types.SimpleNamespace(dataset=described)
    )
    results = results | {"student": {"test_accuracy": 0.5}}
    [found] = verify._accuracies(
        "student", network, None, results, verify.Sources(**sources)
    )
    assert found.verdict == verify.UNCHECKED
    assert asked == ([] if dataset is None else [(dataset, file)])
    if dataset is None:
        assert "names no test set" in found.detail
