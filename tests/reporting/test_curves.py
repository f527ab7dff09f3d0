import numpy as np

from dfkd_jax.reporting import curves
from dfkd_jax.runtime import writers


def write(path, stage, records):
    with writers.open_writer(path, stage=stage) as writer:
        for step, scalars in records:
            writer.write_scalars(step, scalars)


def test_curves_of_the_stages_there_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "distillation", [(10, {"loss": 3.0}), (20, {"loss": 2.0})])
    (curve,) = curves.read(path)
    assert (curve.stage, curve.metric) == ("distillation", "loss")
    np.testing.assert_array_equal(curve.steps, [10, 20])
    np.testing.assert_array_equal(curve.values, [3, 2])
    assert curves.read(tmp_path / "none") == []


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [(1, {"loss": 3.0}), (2, {"loss": float("nan")}), (3, {"other": 1.0})]
    write(path, "distillation", [*records, (4, {"loss": float("inf")})])
    with open(path, "ab") as file:
        file.write(b'{"stage": "distillation", "step": 5, "loss": "3"}\n')
    (curve,) = curves.read(path)
    np.testing.assert_array_equal(curve.steps, [1])


def test_damaged_lines_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "distillation", [(1, {"loss": 3.0})])
    with open(path, "ab") as file:
        file.write(b'12\n[]\nnull\n{"stage": "distillation"}\n\xff\xfe\0\n')
        file.write(b'{"stage": "distillation", "step": null, "loss": 1}\n{"sta\n')
    write(path, "distillation", [(2, {"loss": 2.0})])
    (curve,) = curves.read(path)
    np.testing.assert_array_equal(curve.steps, [1, 2])


def test_running_mean_by_hand(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = [0.0] * 20 + [1.0] * 20
    write(path, "distillation", [(k, {"loss": v}) for k, v in enumerate(values)])
    (curve,) = curves.read(path)
    steps, means = curve.smooth()
    # Forty values: means of two neighbors.
    assert list(steps) == list(range(1, 40))
    np.testing.assert_allclose(means, [0.0] * 19 + [0.5] + [1.0] * 19)
