"""The numbers of README.md and docs/ are those of the committed results files."""

import json
import pathlib
import re

import pytest

from docs.pages import __main__ as reporting
from docs.pages import documents, results_files

ROOT = pathlib.Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
DATA = (ROOT / "docs/data.md").read_text()
SPEED = (ROOT / "docs/performance.md").read_text()
RESULTS = results_files.read(ROOT / "results")
ROWS = [row for rows in RESULTS.tasks.values() for row in rows]


def test_documents_and_figures_are_what_the_results_say():
    reporting.update(ROOT / "results", runs=[], check=True)


def test_there_is_a_headline():
    assert "<!-- table: main -->" in README
    assert "mnist" in RESULTS.tasks
    assert RESULTS.tasks["mnist"][0].method == results_files.HEADLINE


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.task}/{row.method}" for row in ROWS])
def test_results_are_complete(row):
    for run in row.runs:
        assert set(run["seconds"]) >= {"distillation", "evaluation"}
        if run["data_free"] is not True:
            assert run["real_data"]
    if row.method == results_files.HEADLINE:
        assert [run["seed"] for run in row.runs] == [0, 1, 2]


def test_published_numbers_have_sources_and_known_tasks():
    published = RESULTS.published
    for number in published["numbers"]:
        assert number["source"] in published["sources"]
        assert number["task"] in published["tasks"]
        assert number["method"] in published["methods"]
        assert 0 < number["accuracy"] < 100


def test_every_sweep_of_the_page_has_its_table_and_figure():
    text = (ROOT / "docs" / "ablations.md").read_text()
    names = re.findall(r"dfkd_jax\.sweep .*--workdir=sweeps/(\w+)", text)
    assert len(names) > 5
    for name in names:
        assert f"<!-- table: sweeps/{name} -->" in text
        assert f"<!-- figure: sweeps/{name} -->" in text
    assert set(RESULTS.sweeps) <= set(names)


def test_every_result_is_shown_somewhere():
    text = "".join(path.read_text() for path in documents.paths(ROOT))
    for task in RESULTS.tasks:
        assert f"<!-- table: methods/{task} -->" in text


def test_shipped_teachers_are_those_of_their_manifests():
    folder = ROOT / "dfkd_jax" / "teachers" / "pretrained"
    for manifest in folder.glob("*.json"):
        content = json.loads(manifest.read_text())
        (row,) = [
            line
            for line in DATA.splitlines()
            if line.startswith("|") and f"`{manifest.stem}`" in line
        ]
        assert f"{100 * content['test_accuracy']:.2f}" in row
        assert f"{content['parameters']:,}" in row


NETWORKS = {
    "LeNet-5": "lenet5",
    "a user's CNN": "cnn",
    "a user's wide CNN": "cnn_wide",
    "AlexNet (ZSKD)": "alexnet",
    "AlexNet (Wang)": "alexnet_wang",
    "ResNet-34": "resnet34",
    "LeNet-5 → half": "lenet5 to lenet5_half",
    "a user's CNN → the same": "cnn to cnn, without augmentation",
    "a user's wide CNN → the same": "cnn_wide to cnn_wide, without augmentation",
    "AlexNet (ZSKD) → half": "alexnet to alexnet_half, without augmentation",
    "ResNet-34 → ResNet-18": "resnet34 to resnet18, without augmentation",
}


@pytest.mark.parametrize("step", ["synthesis", "distillation"])
def test_speed_is_that_of_the_benchmarks(step):
    results = ROOT / "benchmarks" / "results" / f"{step}-cpu.json"
    found = json.loads(results.read_text())
    assert not found["quick"]
    rows = [
        line.split("|")[2:-1] for line in SPEED.splitlines() if f"| {step} |" in line
    ]
    assert len(rows) > 2
    for cells in rows:
        name, ours, theirs, ratio = (cell.strip() for cell in cells)
        network = NETWORKS[name]
        for rival, shown in {"dfkd_jax": ours, "PyTorch eager": theirs}.items():
            medians = [
                next(value for key, value in row.items() if key.startswith("seconds"))
                for row in found["networks"][network]["rows"]
                if row["rival"] == rival
            ]
            best = 1e6 * min(value["median"] for value in medians)
            assert shown == (f"{best:.1f}" if best < 100 else f"{best:,.0f}")
        best = found["ratios"][f"{network}: PyTorch eager at its best batch / dfkd_jax"]
        assert ratio == f"{best['median']:.2f}"


def test_share_of_steps_is_that_of_the_benchmark():
    results = ROOT / "benchmarks" / "results" / "stages-cpu.json"
    found = json.loads(results.read_text())
    (share,) = found["ratios"].values()
    assert f"{100 * share['median']:.1f} % of a second run are steps" in SPEED
    assert not found["quick"]


def test_scaling_is_that_of_the_benchmark():
    results = ROOT / "benchmarks" / "results" / "scaling-cpu.json"
    found = json.loads(results.read_text())
    text = (ROOT / "docs" / "scaling.md").read_text()
    rows = re.findall(r"^\| (\d) \| × ([\d.]+) \| × ([\d.]+)", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["2", "4", "8"]
    for devices, *shown in rows:
        for step, ratio in zip(("synthesis", "distillation"), shown, strict=True):
            median = found["ratios"][f"{step}: rate of {devices} devices / 1"]["median"]
            assert ratio == f"{median:.2f}"
    for key in ("synthesis_bytes", "whole_job_bytes"):
        growth = found["ratios"][f"{key} of 200,000 images / 10,000"]["median"] - 1
        assert f"by {100 * growth:.1f} %" in text
    assert not found["quick"]
