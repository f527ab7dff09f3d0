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


def python_of(cell):
    """A cell's lines less those of the notebook itself."""
    lines = "".join(cell["source"]).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == [
        "bring_your_own_teacher",
        "pytorch_model_from_the_web",
        "quickstart_tpu",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_where_the_package_comes_from(path, tmp_path, monkeypatch):
    """The clone, or what is said; or one sentence."""
    install = python_of(code_cells(path)[0])
    monkeypatch.delenv("DFKD_JAX_SOURCE", raising=False)
    monkeypatch.chdir(FOLDER)
    found = {}
    exec(install, found)
    assert found["SOURCE"] == FOLDER.parent.as_uri()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="put the repository into SOURCE"):
        exec(install, {})
    monkeypatch.setenv("DFKD_JAX_SOURCE", "git+https://host/repository")
    exec(install, found)
    assert found["SOURCE"] == "git+https://host/repository"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_import_the_package_and_do_not_repeat_it(path):
    tree = ast.parse("\n".join(map(python_of, code_cells(path))))
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert "dfkd_jax" in imported
    assert not any(name.startswith("dfkd_jax.") for name in imported)
