"""Reports of runs as users make them."""

import json
import re
import shutil

import pytest

from dfkd_jax.reporting import settings
from dfkd_jax.runtime import files

pytest.importorskip("jinja2")


def text_of(path):
    words = re.sub("<style>.*?</style>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)
    return " ".join(words.replace("\xa0", " ").split())


def test_a_run_leaves_a_report(finished_workdir):
    text = text_of(finished_workdir / "report.html")
    assert "mnist_smoke, seed 0" in text
    assert "Not evaluated. The student is made" in text
    assert "No real data was read" in text
    assert "% nothing yet" in text
    assert "40 pseudo samples" in text
    assert (finished_workdir / "soft_labels.npz").is_file()
    results = json.loads((finished_workdir / "results.json").read_text())
    config = settings.flatten(results["config"])
    changed = results["changed_from_default"]
    assert changed["synthesis.num_images"] == 12_800
    assert not [name for name, default in changed.items() if config[name] == default]


def test_the_command_makes_it_again(lab, workdir_copy):
    page = workdir_copy / "report.html"
    before = page.read_bytes()
    page.unlink()
    command = lab.runner.start("report", workdir_copy)
    assert command.wait() == 0, command.stderr
    assert str(page) in command.stdout
    assert page.read_bytes() == before


def test_when_only_the_small_files_were_kept(lab, workdir_copy, tmp_path):
    shutil.rmtree(workdir_copy / "transfer_set")
    shutil.rmtree(workdir_copy / "student")
    page = tmp_path / "page.html"
    command = lab.runner.start("report", workdir_copy, f"--output={page}")
    assert command.wait() == 0, command.stderr
    assert "agreement with teacher" in text_of(page)


def test_evaluated_afterwards(lab, workdir_copy, prepared_data):
    """All images of this test set are alike: the student is right by chance."""
    command = lab.start(workdir_copy, data__dir=prepared_data)
    assert command.wait() == 0, command.stderr
    text = text_of(workdir_copy / "report.html")
    assert "Not evaluated" not in text
    assert "Student hardly better than chance" in text
    assert "Classes that the student never answers" in text
    results = json.loads((workdir_copy / "results.json").read_text())
    accuracy = results["student"]["test_accuracy"]
    assert f"{100 * accuracy:.2f} % 95 % interval" in text
    assert "10,000 real test images of mnist" in text


def test_comparison(lab, finished_workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished_workdir, other, symlinks=True)
    identity = files.read_object(other / "run.json")
    identity["config"]["seed"] = 5
    files.write_json(other / "run.json", identity, sealed=True)
    page = tmp_path / "comparison.html"
    command = lab.runner.start("report", finished_workdir, other, f"--output={page}")
    assert command.wait() == 0, command.stderr
    assert "2 runs of 1 experiment" in text_of(page)
    assert not (other / "comparison.html").exists()


def test_errors(lab, tmp_path, finished_workdir):
    (status, line), (other_status, other), (_, unwritable) = lab.errors(
        lab.runner.start("report"),
        lab.runner.start("report", tmp_path),
        lab.runner.start("report", finished_workdir, f"--output={tmp_path}/no/r.html"),
    )
    assert (status, other_status) == (2, 1)
    assert "Name a work directory" in line
    assert f"{tmp_path} is no work directory" in other
    assert "Cannot write" in unwritable
