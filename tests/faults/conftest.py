"""The stages that the matrix disturbs."""

import laboratory
import pytest


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Commands find no data, no program that fetches any, and no network."""
    return laboratory.open_lab(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def stages(lab, tmp_path_factory):
    """The stages by name; their folders are made when they are asked for."""
    from stages import STAGES

    root = tmp_path_factory.mktemp("stages")
    return {name: make(lab, root / make.__name__) for name, make in STAGES.items()}
