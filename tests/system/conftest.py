"""The laboratory that the tests of whole runs share."""

import shutil

import laboratory
import prepared_set
import pytest


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of all processes of this test session."""
    return laboratory.shared_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def lab(shared, tmp_path_factory, request):
    """Commands find no data, no program that fetches any, and no network."""
    return laboratory.open_warm_lab(
        tmp_path_factory.mktemp("lab"),
        shared=shared,
        warm=request.config.cache.mkdir("commands"),
    )


@pytest.fixture(scope="session")
def toys(lab, shared):
    """The same with a teacher of two layers: for how runs go."""
    return laboratory.toy_lab(lab, shared)


@pytest.fixture(scope="session")
def finished_workdir(lab, shared, tmp_path_factory):
    """A run of LeNet-5 that was not interrupted; do not change it."""
    made = laboratory.usual_runs(lab, shared)["lenet"]
    return shutil.copytree(made, tmp_path_factory.mktemp("lenet") / "run")


@pytest.fixture(scope="session")
def finished_toy(lab, shared, tmp_path_factory):
    """A run of the teacher of two layers; do not change it."""
    made = laboratory.usual_runs(lab, shared)["toy"]
    return shutil.copytree(made, tmp_path_factory.mktemp("toy") / "run")


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
    """A data folder with a set that passes for MNIST."""
    folder = tmp_path_factory.mktemp("tfds")
    prepared_set.write(folder)
    return folder


@pytest.fixture(scope="session")
def prepared_training_data(tmp_path_factory):
    """The same with training images."""
    folder = tmp_path_factory.mktemp("tfds")
    prepared_set.write(folder, train=True)
    return folder
