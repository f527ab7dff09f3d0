import types

import described
import numpy as np
import pytest
from flax import linen as nn

from dfkd_jax.baselines.real_data import metadata, source
from dfkd_jax.errors import CheckpointError


class Teacher(nn.Module):
    @nn.compact
    def __call__(self, images):
        features = nn.Conv(3, (2, 2), padding="VALID", name="conv")(images)
        flat = nn.relu(features).reshape(len(images), -1)
        return nn.Dense(2, name="output")(nn.Dense(4, name="dense")(flat))


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2_300, 4, 3, 1)).astype(np.uint8)
    described_as = described.description((4, 3, 1), num_classes=2)
    return source.RealImages(pixels, np.zeros(2_300, int), described_as)


@pytest.fixture(scope="module")
def variables(images):
    import jax

    return Teacher().init(jax.random.key(0), images.gather(np.arange(1))[0])


@pytest.mark.parametrize(("layer", "places"), [("dense", 1), ("conv", 6)])
def test_statistics_are_those_of_all_outputs(images, variables, layer, places):
    """Over three batches, the last one not full; a convolution's places count each."""
    mean, covariance = metadata.statistics(
        described.network(Teacher(), variables, (4, 3, 1)), images, layer=layer
    )

    everything, _ = images.gather(np.arange(len(images)))
    _, state = Teacher().apply(variables, everything, capture_intermediates=True)
    outputs = np.asarray(state["intermediates"][layer]["__call__"][0], np.float64)
    outputs = outputs.reshape(-1, outputs.shape[-1])
    assert len(outputs) == 2_300 * places
    np.testing.assert_allclose(mean, outputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(outputs.T, ddof=0), rtol=1e-3)


def recorded(images, variables, workdir, monkeypatch):
    """What `make_student` starts from, with `images` in the place of MNIST."""
    asked = []

    def load(data, **kwargs):
        asked.append(data)
        return images

    monkeypatch.setattr(source, "load", load)
    task = types.SimpleNamespace(
        workdir=workdir,
        config=types.SimpleNamespace(data="data", seed=0),
        teacher=described.network(Teacher(), variables, (4, 3, 1)),
    )
    layer = types.SimpleNamespace(name="dense")
    return metadata._recorded(task, layer), len(asked)


def test_statistics_are_recorded_once(images, variables, tmp_path, monkeypatch, capsys):
    first, count = recorded(images, variables, tmp_path, monkeypatch)
    assert count == 1
    said = "Recording dense on 2,300 REAL training images"
    assert capsys.readouterr().out.splitlines() == [said]
    expected = metadata.statistics(
        described.network(Teacher(), variables, (4, 3, 1)), images, layer="dense"
    )
    again, count = recorded(images, variables, tmp_path, monkeypatch)
    assert count == 0
    for found in (first, again):
        for mine, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.npz"]


@pytest.mark.parametrize("damage", [lambda c: c[:-40], lambda c: b"", lambda c: b"{}"])
def test_damaged_statistics_are_named(images, variables, tmp_path, monkeypatch, damage):
    recorded(images, variables, tmp_path, monkeypatch)
    path = tmp_path / "statistics.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{path} is damaged.*delete it"):
        recorded(images, variables, tmp_path, monkeypatch)


def test_statistics_of_another_kind_are_damaged(
    images, variables, tmp_path, monkeypatch
):
    np.savez(tmp_path / "statistics.npz", mean=np.zeros(4))
    with pytest.raises(CheckpointError, match="covariance"):
        recorded(images, variables, tmp_path, monkeypatch)
