"""Records with a wrong value somewhere: refused by name, or of no consequence."""

import copy
import json
import math

import pytest

from dfkd_jax import evaluation
from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import records

RESULTS = {
    "experiment": "mnist",
    "seed": 0,
    "data_free": True,
    "teacher": {"network": "lenet5", "sha256": "f", "test_accuracy": 0.9},
    "student": {
        "parameters": 3,
        "test_accuracy": None,
        "evaluation": {
            "accuracy": 0.5,
            "accuracy_interval_95": [0.4, 0.6],
            "per_class": [{"class": "0", "count": 2, "recall": None}],
            "confusion": [[1, 1], [0, 2]],
        },
    },
    "seconds": {"prepare": 1.0, "synthesis": 2},
    "machine": {"cpu_cores": 2},
    "fingerprints": {"teacher": [[0.5, -1], [2.0, 3.0]], "student": []},
    "config": {"seed": 0, "teacher": {"mean": [0.5]}, "targets": {"mean": "auto"}},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seconds", "x"),
        ("seconds", [1]),
        ("seconds.prepare", "x"),
        ("seconds.prepare", None),
        ("seconds.prepare", math.nan),
        ("seconds.prepare", 10**400),
        ("seconds.prepare", True),
        ("seed", 1.0),
        ("seed", True),
        ("experiment", None),
        ("data_free", 1),
        ("teacher", "lenet5"),
        ("teacher.sha256", 7),
        ("teacher.test_accuracy", "high"),
        ("student.evaluation", []),
        ("student.evaluation.accuracy", math.inf),
        ("student.evaluation.accuracy_interval_95", [0.1, "x"]),
        ("student.evaluation.per_class", {}),
        ("student.evaluation.per_class", ["x"]),
        ("student.evaluation.confusion", [[1], 2]),
        ("machine", "fast"),
        ("fingerprints", [[1.0]]),
        ("fingerprints.teacher", [1.0]),
        ("fingerprints.student", {}),
        ("config", "mnist"),
        ("config.teacher", []),
        ("config.seed", "0"),
    ],
)
def test_a_wrong_value_is_named(path, value):
    changed = copy.deepcopy(RESULTS)
    *groups, key = path.split(".")
    place = changed
    for group in groups:
        place = place[group]
    place[key] = value
    with pytest.raises(CheckpointError) as error:
        records.check(changed, source="results.json")
    assert f"results.json is not as dfkd_jax writes it: {path} is" in str(error.value)
    assert len(str(error.value)) < 300


def test_what_is_right_is_taken(tmp_path):
    records.check(RESULTS, source="it")
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps({"prepare": 1}))
    assert records.read(path) == {"prepare": 1}
    path.write_text(json.dumps({"prepare": "1"}))
    with pytest.raises(CheckpointError, match="prepare is '1'"):
        records.read(path)


@pytest.mark.parametrize("value", [{"a": {}}, {"teacher": {}}])
def test_what_is_missing_is_no_wrong_value(value):
    records.check(value, source="it")
    with (
        pytest.raises(CheckpointError, match=r"it is not as .* \(KeyError: 'seed'\)"),
        records.as_written("it"),
    ):
        value["seed"]


def test_a_deep_nest():
    value = current = {}
    for _ in range(5_000):
        current["a"] = {}
        current = current["a"]
    with pytest.raises(CheckpointError, match="nested too deep"):
        records.check(value, source="it")


@pytest.mark.parametrize("config", ["x", {"teacher": "x"}, {"teacher": {}}, {}])
def test_a_run_whose_teacher_cannot_be_read(tmp_path, config):
    """`evaluate` and `export` look it up."""
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    with pytest.raises(CheckpointError):
        evaluation.load_teacher(tmp_path, module="", flag="--teacher_module")
