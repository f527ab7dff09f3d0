"""The laboratory that the tests of whole runs share."""

import shutil

import laboratory
import prepared_set
import pytest

from dfkd_jax.data import prepare, tfds


@pytest.fixture(scope="session")
def lab(tmp_path_factory, request):
    """Commands find no data, no program that fetches any, and no network."""
    return laboratory.open_lab(
        tmp_path_factory.mktemp("lab"), request.config.cache.mkdir("commands")
    )


@pytest.fixture(scope="session")
def toys(lab, tmp_path_factory):
    """The same with a teacher of two layers: for how runs go."""
    return laboratory.toy_lab(lab, tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def finished_workdir(lab, tmp_path_factory):
    """A run of LeNet-5 that was not interrupted; do not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    lab.finish(workdir)
    return workdir


@pytest.fixture(scope="session")
def finished_toy(toys, tmp_path_factory):
    """A run of the teacher of two layers; do not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "toy"
    toys.finish(workdir)
    return workdir


@pytest.fixture
def workdir_copy(finished_workdir, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished_workdir, tmp_path / "run", symlinks=True)


@pytest.fixture
def toy_copy(finished_toy, tmp_path):
    """A copy of the finished run of the toy, to be changed."""
    return shutil.copytree(finished_toy, tmp_path / "run", symlinks=True)


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory):
    """A data folder with a set that passes for MNIST; skips without its readers."""
    _skip_without_readers()
    folder = tmp_path_factory.mktemp("tfds")
    prepared_set.write(folder)
    return folder


@pytest.fixture(scope="session")
def prepared_training_data(tmp_path_factory):
    """The same with training images."""
    _skip_without_readers()
    folder = tmp_path_factory.mktemp("tfds")
    prepared_set.write(folder, train=True)
    return folder


def _skip_without_readers():
    if missing := prepare.missing_packages(tfds.READING_PACKAGES["array_record"]):
        pytest.skip(f"{', '.join(missing)} not installed")
