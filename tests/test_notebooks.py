"""Notebooks are thin, and clean in git. The gate executes them."""

import ast
import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_both():
    assert [path.stem for path in NOTEBOOKS] == [
        "bring_your_own_teacher",
        "quickstart_tpu",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_import_the_package_and_do_not_repeat_it(path):
    lines = [
        line
        for cell in code_cells(path)
        for line in "".join(cell["source"]).splitlines()
        if not line.startswith(("%", "!"))
    ]
    tree = ast.parse("\n".join(lines))
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert "dfkd_jax" in imported
    assert not any(name.startswith("dfkd_jax.") for name in imported)
