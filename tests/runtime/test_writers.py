import numpy as np
import pytest

from dfkd_jax.runtime import writers


def write(path, records, *, stage="distillation"):
    with writers.open_writer(path, stage=stage) as writer:
        for step, loss in records:
            writer.write_scalars(step, {"loss": loss})


def test_records_of_a_stage_by_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [(1, 0.5), (2, np.float32(0.25))])
    write(path, [(1, 9.0)], stage="synthesis")
    assert writers.read_scalars(path, stage="distillation") == {
        1: {"loss": 0.5},
        2: {"loss": 0.25},
    }
    assert writers.read_scalars(path, stage="synthesis") == {1: {"loss": 9.0}}
    assert writers.read_scalars(path, stage="other") == {}


def test_of_repeated_steps_the_last_counts(tmp_path):
    """As after a run that went on from a checkpoint before its last records."""
    path = tmp_path / "metrics.jsonl"
    write(path, [(100, 3.0), (200, 2.0)])
    write(path, [(200, 2.5), (300, 1.0)])
    found = writers.read_scalars(path, stage="distillation")
    assert list(found) == [100, 200, 300]
    assert found[200] == {"loss": 2.5}


def test_unfinished_line_is_passed_over_and_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [(1, 3.0), (2, 2.0)])
    path.write_bytes(path.read_bytes()[:-8])
    assert list(writers.read_scalars(path, stage="distillation")) == [1]
    write(path, [(2, 2.5), (3, 1.0)])
    found = writers.read_scalars(path, stage="distillation")
    assert found == {1: {"loss": 3.0}, 2: {"loss": 2.5}, 3: {"loss": 1.0}}


def test_records_are_on_file_before_the_writer_is_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with writers.open_writer(path, stage="s") as writer:
        writer.write_scalars(1, {"loss": 1.0})
        assert list(writers.read_scalars(path, stage="s")) == [1]


def test_no_file_no_records(tmp_path):
    assert writers.read_scalars(tmp_path / "none", stage="s") == {}


def test_stopwatch_sums_over_restarts(tmp_path):
    path = tmp_path / "seconds.json"
    for seconds in (1.5, 2.0):
        writers.Stopwatch(path).add("synthesis", seconds)
    stopwatch = writers.Stopwatch(path)
    stopwatch.add("distillation", 10.0)
    assert stopwatch.seconds == {"synthesis": 3.5, "distillation": 10.0}
    assert writers.Stopwatch(path).seconds == stopwatch.seconds


@pytest.mark.parametrize("content", ["", '{"synthesis": 1.'])
def test_stopwatch_starts_anew_from_a_damaged_file(tmp_path, content):
    path = tmp_path / "seconds.json"
    path.write_text(content)
    writers.Stopwatch(path).add("synthesis", 1.0)
    assert writers.Stopwatch(path).seconds == {"synthesis": 1.0}
