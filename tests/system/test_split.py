"""What evaluation reads: the test set, or the validation part."""

import json
import re

import numpy as np
import pytest
import toy


@pytest.fixture(scope="module")
def labeled_images(tmp_path_factory):
    """Fifty images with labels, in place of a data set."""
    return toy.write_test_set(tmp_path_factory.mktemp("images") / "own.npz")


def test_validation_accuracy_is_never_called_test_accuracy(
    toys, toy_copy, labeled_images, tmp_path
):
    def evaluate(data__file=labeled_images, **changes):
        command = toys.start(
            toy_copy, data__dataset="", data__file=data__file, **changes
        )
        assert command.wait() == 0, command.stderr
        results = json.loads((toy_copy / "results.json").read_text())
        return command.stdout, results

    told, results = evaluate(data__split="validation")
    assert results["split"] == "validation"
    share = results["student"]["validation_accuracy"]
    assert share == results["student"]["evaluation"]["accuracy"]
    assert results["student"]["test_accuracy"] is None
    assert results["teacher"]["test_accuracy"] is None
    assert "Evaluation on the validation set" in told
    assert "validation accuracy" in told
    assert not re.search("test (accuracy|set)", told)
    page = toy_copy / "report.html"
    if page.exists():
        assert "Student, validation accuracy" in page.read_text()
        assert "test accuracy" not in page.read_text().lower()

    # Once more: nothing is to be done, the figures are those of before.
    told, again = evaluate(data__split="validation")
    assert "Evaluation on" not in told
    assert again == results

    # Of other images they are other figures.
    with np.load(labeled_images) as arrays:
        images = arrays["images"]
    np.savez(tmp_path / "other.npz", images=images, labels=np.zeros(50, int))
    told, other = evaluate(data__split="validation", data__file=tmp_path / "other.npz")
    assert "Evaluation on the validation set" in told
    assert other["dataset"] == str(tmp_path / "other.npz")
    assert other["test_set_sha256"] != results["test_set_sha256"]

    # The same student on the test set.
    told, tested = evaluate()
    assert tested["split"] == "test"
    assert tested["student"]["test_accuracy"] == share
    assert "validation_accuracy" not in tested["student"]
    assert tested["student"]["sha256"] == results["student"]["sha256"]


def test_figures_of_one_split_stay_until_those_of_the_other_are_had(
    toys, toy_copy, labeled_images
):
    command = toys.start(
        toy_copy,
        data__dataset="",
        data__file=labeled_images,
        data__split="validation",
    )
    assert command.wait() == 0, command.stderr
    before = (toy_copy / "results.json").read_text()
    toys.finish(toy_copy)  # No test set is named.
    assert (toy_copy / "results.json").read_text() == before
