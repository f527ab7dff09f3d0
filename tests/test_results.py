"""The README's numbers are those of the committed results files."""

import json
import pathlib
import statistics

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXPERIMENTS = sorted(
    path.name for path in (ROOT / "results").iterdir() if path.name != "benchmarks"
)
CONTRACT = (
    "experiment",
    "seed",
    "data_free",
    "teacher",
    "student",
    "seconds",
    "num_pseudo_samples",
    "machine",
    "versions",
    "command",
)


def load(experiment):
    files = sorted((ROOT / "results" / experiment).glob("seed*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_results_are_complete_and_of_one_teacher(experiment):
    results = load(experiment)
    assert [result["seed"] for result in results] == list(range(len(results)))
    assert len(results) >= 3
    assert len({result["teacher"]["sha256"] for result in results}) == 1
    for result in results:
        assert not [key for key in CONTRACT if key not in result]
        assert result["experiment"] == experiment
        assert result["data_free"] is True
        assert set(result["seconds"]) >= {
            "prepare",
            "synthesis",
            "distillation",
            "evaluation",
        }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_readme_quotes_them(experiment):
    results = load(experiment)
    accuracies = [100 * result["student"]["test_accuracy"] for result in results]
    mean, std = statistics.mean(accuracies), statistics.stdev(accuracies)
    (row,) = [
        line
        for line in README.splitlines()
        if line.startswith("|") and f"results/{experiment})" in line
    ]
    teacher = 100 * results[0]["teacher"]["test_accuracy"]
    assert f"{teacher:.2f}" in row
    assert f"{mean:.2f} ± {std:.2f}" in row
    minutes = statistics.mean(sum(r["seconds"].values()) for r in results) / 60
    assert f"{minutes:.1f} min" in row


def test_shipped_teachers_are_those_of_their_manifests():
    folder = ROOT / "dfkd_jax" / "teachers" / "pretrained"
    for manifest in folder.glob("*.json"):
        content = json.loads(manifest.read_text())
        (row,) = [
            line
            for line in README.splitlines()
            if line.startswith("|") and f"`{manifest.stem}`" in line
        ]
        assert f"{100 * content['test_accuracy']:.2f}" in row
        assert f"{content['parameters']:,}" in row
