import contextlib
import itertools
import json

import numpy as np
import pytest

from dfkd_jax import verify
from dfkd_jax.errors import CheckpointError, DfkdError
from dfkd_jax.reporting import pages, run_files
from dfkd_jax.runtime import files


def test_a_finished_run(maker):
    run = run_files.read(maker.make())
    assert (run.name, run.seed) == ("toy", 0)
    assert run.sample.num_made == run.sample.num_wanted == 100
    assert run.sample.labels.shape == (100, 10)
    assert run.sample.pixels.shape == (100, 8, 8, 1)
    assert run.sample.pixels.min() >= 0 and run.sample.pixels.max() <= 1
    assert run.evaluation("student")["accuracy"] == 0.9
    assert run.class_names == tuple("0123456789")
    assert run.damaged == ()
    assert run.data_free


@pytest.mark.parametrize("kind", ["dafl", "dfad", "real_data", "metadata"])
def test_runs_of_other_methods(maker, kind):
    run = run_files.read(maker.make(kind=kind, results=False))
    assert (run.distribution, run.feature_layer) == ("", "")
    assert run.network("student") == "lenet5_half"


def test_what_was_read_is_known_before_the_run_is_finished(maker):
    origin = {"data_free": False, "real_data": "200 training images of toys"}
    run = run_files.read(maker.make(kind="real_data", origin=origin, results=False))
    assert not run.data_free
    assert run.real_data == "200 training images of toys"


def test_pixels_have_their_own_labels(maker):
    """Image i is all of one gray that its label's first entry tells."""
    soft = np.full((100, 10), 0.05)
    soft[:, 0] = np.linspace(0, 1, 100)
    images = np.broadcast_to(
        (soft[:, 0, None, None, None] - 0.5) / 0.25, (100, 8, 8, 1)
    )
    run = run_files.read(maker.make(soft=soft, images=images))
    np.testing.assert_allclose(
        run.sample.pixels[:, 0, 0, 0], run.sample.pixel_labels[:, 0], atol=1e-6
    )


def test_of_a_large_set_a_part_spread_over_the_shards(maker, monkeypatch):
    monkeypatch.setattr(run_files, "MAX_SHARDS", 2)
    monkeypatch.setattr(run_files, "MAX_LABELS", 10)
    monkeypatch.setattr(run_files, "MAX_IMAGES", 4)
    soft = np.zeros((100, 10))
    soft[:, 0] = np.arange(100)
    run = run_files.read(maker.make(soft=soft))
    assert run.sample.num_made == 100
    assert list(run.sample.labels[:, 0]) == [0, 6, 12, 18, 24, 75, 81, 87, 93, 99]
    assert list(run.sample.pixel_labels[:, 0]) == [0, 24, 75, 99]


def test_large_images_are_fewer(maker, monkeypatch):
    monkeypatch.setattr(run_files, "MAX_BYTES", 8 * 8 * 4 * 20)
    run = run_files.read(maker.make())
    assert len(run.sample.pixels) == 20


def test_unfinished_runs(maker):
    run = run_files.read(maker.make(finished_shards=2, student=False, results=False))
    assert run.sample.num_made == 50
    assert not run.has_student
    assert run.results == {}
    assert run.evaluation("student") == {}
    assert run.seconds == {"prepare": 2.0, "synthesis": 60.0, "distillation": 120.0}
    assert run.class_names == tuple("0123456789")


def test_nothing_but_its_identity(maker):
    folder = maker.make(results=False)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.name != "run.json":
            path.unlink()
        elif path.is_dir():
            path.rmdir()
    run = run_files.read(folder)
    assert run.sample is None
    assert run.curves == ()
    assert run.drawn == {}


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other shape", "nan", "pickle"])
def test_damaged_shards_are_left_out(maker, kind, damage):
    folder = maker.make()
    path = folder / "transfer_set" / f"{kind}-00001.npy"
    array = np.load(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other shape":
        np.save(path, array[:, :3])
    elif damage == "nan":
        np.save(path, np.full_like(array, np.nan))
    else:
        np.save(path, np.array([{}] * len(array)), allow_pickle=True)
    run = run_files.read(folder)
    assert run.damaged == ("transfer_set/images-00001.npy or its labels",)
    assert len(run.sample.labels) == len(run.sample.pixels) == 75


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "other classes"])
def test_damaged_drawn_labels_are_left_out(maker, damage):
    folder = maker.make(drawn=True)
    path = folder / "soft_labels.npz"
    assert len(run_files.read(folder).drawn) == 2
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "text":
        path.write_text("soft")
    elif damage == "pickle":
        np.savez(path, gaussian=np.array([{}]))
    else:
        np.savez(path, gaussian=np.ones((5, 3)))
    run = run_files.read(folder)
    assert run.drawn == {}
    assert run.damaged == ("soft_labels.npz",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no work directory"),
        ("{", "is damaged"),
        (json.dumps({"config": {"name": "t"}}), "teacher training"),
    ],
)
def test_folders_of_no_run(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        run_files.read(tmp_path)


NEIGHBOURS = {
    "dataset": "toys",
    "num_training_images": 55_000,
    "quantiles": [0.0, 0.5, 1.0],
    "pseudo_samples": [0.1, 0.2, 0.3],
    "held_out_images": [0.01, 0.1, 0.2],
    "num_nearer_than_near": 12,
    "num_equal": 0,
}


def test_distances_to_real_images(maker):
    folder = maker.make()
    assert run_files.read(folder).neighbors == {}
    files.write_json(folder / "neighbors.json", NEIGHBOURS, sealed=True)
    assert run_files.read(folder).neighbors == NEIGHBOURS


@pytest.mark.parametrize(
    "changes",
    [{"num_equal": None}, {"quantiles": [0.0]}, {"pseudo_samples": ["x", 1, 2]}],
)
def test_damaged_distances(maker, changes):
    folder = maker.make()
    files.write_json(folder / "neighbors.json", NEIGHBOURS | changes)
    run = run_files.read(folder)
    assert run.neighbors == {}
    assert run.damaged == ("neighbors.json",)


@pytest.mark.parametrize(
    "changes",
    [
        {"description": None},
        {"description": {"num_classes": 10}},
        {"description": []},
        {"config": {"student": {}}, "description": {}},
    ],
)
def test_records_of_strangers(maker, changes):
    """What is missing or of another type is an error that names the file."""
    folder = maker.make()
    identity = files.read_object(folder / "run.json")
    files.write_json(folder / "run.json", identity | changes)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        run_files.read(folder)


MAX_PLACES = 4  # A page takes a while.


def _places(value, path=()):
    """Every place of a JSON value; of a list, the first element stands for all."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in items:
        if isinstance(item, dict | list):
            yield from _places(item, (*path, key))
        else:
            yield (*path, key)


def _with(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = _with(value[path[0]], path[1:], new)
    return changed


@pytest.mark.parametrize("name", ["run.json", "results.json", "seconds.json"])
def test_any_value_of_any_record_may_be_wrong(maker, name):
    """Reports and `verify` say so in their own words, or do without it."""
    pytest.importorskip("jinja2", reason="the extra plots")
    folder = maker.make()
    path = folder / name
    before = files.read_object(path)
    hostile = itertools.cycle(["x", None, [], {}, -1, True, 1e300, [["x"]], {"x": "x"}])
    places = [place for place in _places(before) if "config" not in place[:-1]]
    for place in places[:: max(1, len(places) // MAX_PLACES)]:
        path.write_text(json.dumps(_with(before, place, next(hostile))))
        with contextlib.suppress(DfkdError):
            pages.write(folder)
        with contextlib.suppress(DfkdError):
            list(verify.check(folder, verify.Sources()))
