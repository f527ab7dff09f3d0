"""Tables and figures from results files: what they say, and what is refused."""

import json
import pathlib
import types
from typing import Any

import pytest

from dfkd_jax.errors import (
    CheckpointError,
    ConfigError,
    MissingPackageError,
    ResultsError,
)
from dfkd_jax.reporting import figures
from dfkd_jax.runtime import files
from docs.pages import __main__ as reporting
from docs.pages import documents, result_figures, result_tables, results_files

PUBLISHED = {
    "tasks": {"toys": "Toys, LeNet-5 → half"},
    "methods": {"default": "this recipe", "zskd": "ZSKD", "kd": "standard KD"},
    "sources": {"nayak": {"text": "Nayak et al. 2019", "url": "https://example.org"}},
    "numbers": [
        {
            "task": "toys",
            "method": "zskd",
            "accuracy": 98.77,
            "source": "nayak",
            "note": "another student",
        }
    ],
}
MACHINE = {
    "backend": "cpu",
    "device_kind": "cpu",
    "num_devices": 2,
    "cpu": "Abacus",
    "cpu_cores": 2,
}
VERSIONS = {"python": "3.11.7", "jax": "0.10.2", "dfkd_jax": "0.1.0"}


def result(seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """`results.json` of a run, as far as a table looks."""
    return {
        "experiment": "toys",
        "seed": seed,
        "data_free": True,
        "dataset": "toys",
        "teacher": {
            "network": "lenet5",
            "weights": "toys_lenet5",
            "sha256": "a" * 64,
            "parameters": 61_706,
            "test_accuracy": 0.99,
        },
        "student": {
            "network": "lenet5_half",
            "sha256": "b" * 64,
            "parameters": 35_820,
            "test_accuracy": accuracy,
        },
        "transfer_set_sha256": f"set {seed}",
        "seconds": {"synthesis": 60.0, "distillation": 60.0, "evaluation": 6.0},
        "command": "python -m dfkd_jax.main --config=configs/toys.py:zskd "
        f"--config.seed={seed} --workdir=somewhere --config.targets.sigma=2",
        "machine": MACHINE,
        "versions": VERSIONS,
        "config": {"name": "toys", "seed": seed, "targets": {"sigma": 2.0}},
    } | changes


def sweep_row(settings, accuracies, **more):
    mean = sum(accuracies) / len(accuracies)
    return {
        "name": "-".join(settings),
        "settings": settings,
        "mean": mean,
        "std": 0.01 if len(accuracies) > 1 else None,
        "runs": [
            {
                "seed": seed,
                "accuracy": accuracy,
                "teacher": {
                    "network": "lenet5",
                    "weights": "toys_lenet5",
                    "sha256": "a" * 64,
                    "accuracy": 0.99,
                },
                "seconds": {"synthesis": 30.0, "distillation": 60.0},
            }
            for seed, accuracy in enumerate(accuracies)
        ],
    } | more


def sweep(varied, rows):
    return {
        "format": "dfkd_jax-sweep-1",
        "sweep": "toy",
        "config": "configs/toys.py",
        "fixed": {},
        "varied": varied,
        "seeds": [0, 1, 2],
        "split": "validation",
        "num_examples": 5_000,
        "rows": rows,
        "machine": MACHINE,
        "versions": VERSIONS,
        "command": "python -m dfkd_jax.sweep",
    }


SIGMA = sweep(
    ["targets.sigma"],
    [
        sweep_row({"targets.sigma": 0.5}, [0.90, 0.92, 0.94]),
        sweep_row({"targets.sigma": 20.0}, [0.95]),
    ],
)
STUDY = {
    "format": "dfkd_jax-label-study-1",
    "teacher": {"weights": "toys_lenet5", "sha256": "a" * 64},
    "seed": 0,
    "distributions": {
        "gaussian": {
            "title": "multivariate normal",
            "num_draws": 10_000,
            "drawn_for_another_class": None,
            "top_probability": 0.91,
            "entropy": 0.25,
            "class_shares": [0.4, 0.6],
        },
        "dirichlet": {
            "title": "Dirichlet (ZSKD)",
            "num_draws": 10_000,
            "drawn_for_another_class": 0.284,
            "top_probability": 0.7,
            "entropy": 0.5,
            "class_shares": [0.5, 0.5],
        },
    },
    "pseudo_samples": [
        {
            "name": "toys",
            "distribution": "gaussian",
            "seed": seed,
            "num_images": 400,
            "teacher_answers_otherwise": share,
        }
        for seed, share in enumerate((0.01, 0.02, 0.03))
    ],
    "map": {
        name: {"places": "0 0 999 999 500 1", "classes": "0 1 0"}
        for name in ("gaussian", "dirichlet")
    },
    "command": "python -m docs.pages.label_study",
    "machine": MACHINE,
    "versions": VERSIONS,
}


class Project:
    """A folder with results and documents, as a repository has them."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        (root / "docs").mkdir()
        self.results = root / "results"
        self.write("published.json", PUBLISHED)

    def write(self, name, content):
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)

    def runs(self, method, accuracies, task="toys", **changes):
        for seed, accuracy in enumerate(accuracies):
            self.write(
                f"{task}/{method}/seed{seed}.json", result(seed, accuracy, **changes)
            )

    def change(self, name, function):
        path = self.results / name
        content = json.loads(path.read_text())
        function(content)
        path.write_text(json.dumps(content))

    def document(self, *names, path="README.md"):
        text = "".join(f"<!-- {name} -->\nstale\n<!-- end -->\n" for name in names)
        (self.root / path).write_text(f"# Title\n\n{text}\nThe end.\n")

    def text(self, path="README.md"):
        return (self.root / path).read_text()

    def update(self, runs=()):
        reporting.update(self.results, runs=list(runs), check=False)

    def check(self):
        reporting.update(self.results, runs=[], check=True)

    def read(self):
        return results_files.read(self.results)

    def table(self, name):
        return result_tables.table(name, self.read(), document=self.root / "README.md")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def cells(table):
    """Rows of a Markdown table by their first cell, then by heading."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


# Tables ---------------------------------------------------------------------------


def test_methods_beside_each_other(project):
    project.runs("default", (0.98, 0.985, 0.99))
    project.runs("zskd", (0.97, 0.97, 0.97))
    project.runs(
        "kd", (0.991, 0.991, 0.991), data_free=False, real_data="55,000 images"
    )
    rows = cells(project.table("methods/toys"))
    assert list(rows) == ["this recipe", "ZSKD", "standard KD"]
    ours, zskd, standard = rows.values()
    assert ours["test accuracy, %"] == "98.50 ± 0.50"
    assert ours["data-free"] == "yes"
    assert ours["student (parameters)"] == "lenet5_half (35,820)"
    assert ours["gap to standard KD"] == "0.60"
    assert ours["published, %"] == "–"
    assert ours["whole run"] == "2.1 min"
    assert zskd["published, %"] == (
        "98.77 ([Nayak et al. 2019](https://example.org), another student)"
    )
    assert zskd["`python -m dfkd_jax.main` with"] == (
        "`--config=configs/toys.py:zskd --config.targets.sigma=2`"
    )
    assert standard["data-free"] == "**no**: 55,000 images"
    assert standard["gap to standard KD"] == "–"
    assert "seeds 0, 1, 2; teacher `toys_lenet5`, 99.00 %; Abacus, 2 cores; JAX " in (
        project.table("methods/toys")
    )


def test_columns_without_a_value_are_left_out(project):
    project.runs("default", (0.98, 0.985, 0.99))
    table = project.table("methods/toys")
    assert "gap to standard KD" not in table
    assert "published" not in table


def test_the_gap_is_to_standard_distillation_of_the_same_student(project):
    smaller = result(0, 0.97)["student"] | {
        "network": "lenet5_half_dafl",
        "parameters": 15_738,
    }
    project.runs("default", (0.98, 0.98, 0.98))
    project.runs("kd", (0.99, 0.99, 0.99))
    for seed in range(3):
        project.write(f"toys/half_b/seed{seed}.json", result(seed, 0, student=smaller))
    rows = cells(project.table("methods/toys"))
    assert rows["half b"]["gap to standard KD"] == "–"
    assert rows["this recipe"]["gap to standard KD"] == "1.00"


def test_a_row_says_how_many_seeds_if_not_three(project):
    project.runs("default", (0.98,))
    project.runs("zskd", (0.96, 0.98))
    rows = cells(project.table("methods/toys"))
    assert rows["this recipe"]["test accuracy, %"] == "98.00 (1 seed)"
    assert rows["ZSKD"]["test accuracy, %"] == "97.00 ± 1.41 (2 seeds)"


def test_one_seed_has_no_deviation(project):
    project.runs("default", (0.98,))
    assert "\n\nSeed 0; teacher" in project.table("methods/toys")
    project.runs("default", (0.98, 0.98, 0.98))
    note = "\n\nMean ± standard deviation over seeds 0, 1, 2; teacher"
    assert note in project.table("methods/toys")


def test_headline(project):
    project.runs("default", (0.98, 0.985, 0.99))
    project.runs("zskd", (0.1, 0.1, 0.1))
    project.runs("kd", (0.989, 0.989, 0.989))
    [row] = cells(project.table("main")).values()
    assert row == {
        "data, teacher → student": "Toys, LeNet-5 → half",
        "teacher": "99.00 %",
        "student": "98.50 ± 0.50 %",
        "student *with* the data": "98.90 ± 0.00 %",
        "whole run": "2.1 min",
        "files": "[results](results/toys/default)",
    }


def test_what_was_not_measured_is_not_in_a_table(project):
    for name in ("main", "methods/toys", "sweeps/sigma", "soft_labels/toys"):
        assert project.table(name) == result_tables.NOTHING


def test_sweep_over_one_setting(project):
    project.write("sweeps/sigma.json", SIGMA)
    rows = cells(project.table("sweeps/sigma"))
    assert rows["0.5"]["validation accuracy, %"] == "92.00 ± 2.00"
    assert rows["0.5"]["gap to the teacher"] == "7.00"
    assert rows["0.5"]["whole run"] == "1.5 min"
    assert rows["20"]["validation accuracy, %"] == "95.00 (1 seed)"
    assert "test" not in project.table("sweeps/sigma")


def test_sweep_over_cases_and_runs_that_failed(project):
    rows = [
        sweep_row({}, [0.9] * 3),
        sweep_row({"synthesis.l2": 0.0}, [0.8] * 3),
        sweep_row({"targets.sigma": 9.0}, [0.8] * 3)
        | {"runs": [], "mean": None}
        | {"failed": {"0": "no", "1": "no", "2": "no"}},
    ]
    project.write("sweeps/x.json", sweep(["synthesis.l2", "targets.sigma"], rows))
    table = project.table("sweeps/x")
    assert list(cells(table)) == ["nothing changed", "synthesis.l2=0"]
    assert "3 runs failed" in table


def test_soft_labels(project):
    project.write("soft_labels/toys.json", STUDY)
    table = project.table("soft_labels/toys")
    key = "of another class than drawn for, %"
    first = cells(table.split("\n\n")[0])
    assert first["multivariate normal"][key] == "–: none is drawn"
    assert first["Dirichlet (ZSKD)"][key] == "28.4"
    second = cells(table.split("\n\n")[1])
    [row] = second.values()
    assert "2.00 ± 1.00" in row.values()


# What is refused ------------------------------------------------------------------


def refused(project, *parts):
    with pytest.raises(ResultsError) as error:
        project.read()
    for part in parts:
        assert part in str(error.value)


def test_rows_of_another_teacher_are_refused(project):
    project.runs("default", (0.98, 0.98, 0.98))
    teacher = result(0, 0)["teacher"] | {"sha256": "c" * 64}
    project.runs("zskd", (0.98, 0.98, 0.98), teacher=teacher)
    refused(project, "zskd/seed0.json has another teacher", "cccc", "aaaa")


def test_tasks_may_have_different_teachers(project):
    project.runs("default", (0.98,))
    teacher = result(0, 0)["teacher"] | {"sha256": "c" * 64}
    project.runs("default", (0.98,), task="others", teacher=teacher)
    assert set(project.read().tasks) == {"toys", "others"}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"config": {"name": "toys", "targets": {"sigma": 3.0}}},
            "config.targets.sigma (2, 3)",
        ),
        ({"versions": VERSIONS | {"jax": "0.12.0"}}, "versions.jax (0.10.2, 0.12.0)"),
        ({"data_free": False}, "data_free"),
    ],
)
def test_seeds_of_a_row_are_alike(project, changes, part):
    project.runs("default", (0.98,))
    project.write("toys/default/seed1.json", result(1, 0.98, **changes))
    refused(project, "seeds 0 and 1 differ", part)


def test_validation_accuracy_is_in_no_table_of_methods(project):
    project.runs("default", (0.98,), split="validation")
    refused(project, "seed0.json is of the validation part")


def test_runs_without_evaluation_are_refused(project):
    project.runs("default", (None,))
    refused(project, "has no test accuracy")


def test_a_file_of_another_seed_is_refused(project):
    project.write("toys/default/seed1.json", result(2, 0.98))
    refused(project, "seed1.json is of seed 2")


def test_files_of_another_kind_are_refused(project):
    project.write("toys/default/seed0.json", {"seed": 0})
    refused(project, "is no results.json")


@pytest.mark.parametrize("name", ["sweeps/x.json", "soft_labels/x.json"])
def test_sweeps_and_studies_of_another_kind_are_refused(project, name):
    project.write(name, {"rows": []})
    refused(project, name.split("/")[1])


def test_a_sweep_of_several_teachers_or_versions_is_refused(project):
    mixed = json.loads(json.dumps(SIGMA))
    mixed["rows"][1]["runs"][0]["teacher"]["sha256"] = "c" * 64
    project.write("sweeps/sigma.json", mixed)
    refused(project, "different teachers")
    project.write("sweeps/sigma.json", SIGMA | {"versions": [VERSIONS, {}]})
    refused(project, "different versions")


def test_no_results(tmp_path):
    with pytest.raises(ResultsError, match="no such folder"):
        results_files.read(tmp_path / "results")


# Documents ------------------------------------------------------------------------


def test_blocks_are_made_anew_and_the_rest_is_kept(project):
    project.runs("default", (0.98, 0.985, 0.99))
    project.document("table: main", "table: sweeps/none", "figure: sweeps/none")
    project.update()
    text = project.text()
    assert text.startswith("# Title\n\n<!-- table: main -->\n| data, teacher")
    assert text.endswith("<!-- end -->\n\nThe end.\n")
    assert "stale" not in text
    assert f"<!-- table: sweeps/none -->\n{result_tables.NOTHING}\n<!-- end -->" in text
    assert "<!-- figure: sweeps/none -->\n<!-- end -->" in text
    project.check()


def test_links_start_from_the_document(project):
    project.runs("default", (0.98, 0.985, 0.99))
    project.document("table: main", path="docs/page.md")
    project.update()
    assert "[results](../results/toys/default)" in project.text("docs/page.md")


def test_check_finds_a_number_that_was_changed(project):
    project.runs("default", (0.98, 0.985, 0.99))
    project.document("table: main", "table: methods/toys")
    with pytest.raises(ResultsError, match=r"README\.md: table main"):
        project.check()
    project.update()
    project.check()
    before = project.text()

    (project.root / "README.md").write_text(before.replace("98.50", "98.90", 1))
    with pytest.raises(ResultsError) as error:
        project.check()
    assert "README.md: table main" in str(error.value)
    assert "methods/toys" not in str(error.value)
    assert "98.90" in project.text()  # Nothing is written.

    (project.root / "README.md").write_text(before)
    name = "toys/default/seed1.json"
    project.change(name, lambda run: run["student"].update(test_accuracy=0.9))
    with pytest.raises(ResultsError) as error:
        project.check()
    assert "README.md: table main; README.md: table methods/toys" in str(error.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<!-- table: main -->\n", "not closed"),
        (
            "<!-- table: main -->\n<!-- table: main -->\n<!-- end -->\n",
            "not closed",
        ),
        ("<!-- table: mian -->\n<!-- end -->\n", "no table 'mian'"),
        ("<!-- figure: main -->\n<!-- end -->\n", "no figure 'main'"),
    ],
)
def test_markers_that_are_wrong(project, text, part):
    (project.root / "README.md").write_text(text)
    with pytest.raises(ResultsError, match=part):
        project.update()


def test_documents_are_the_readme_and_those_of_docs(project):
    for path in ("README.md", "docs/b.md", "docs/a.md", "CHANGELOG.md"):
        project.document(path=path)
    found = documents.paths(project.root)
    names = [path.relative_to(project.root).as_posix() for path in found]
    assert names == ["README.md", "docs/a.md", "docs/b.md"]


# Figures --------------------------------------------------------------------------


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib")


def test_figures_know_the_results_that_they_show(project, plots):
    two_settings = sweep(
        ["targets.sigma", "synthesis.l2"],
        [
            sweep_row({"targets.sigma": float(a), "synthesis.l2": b}, [0.9, 0.91])
            for a in (1, 2)
            for b in (0.0, 0.1)
        ],
    )
    cases = sweep(
        ["synthesis.l2"],
        [sweep_row({}, [0.9]), sweep_row({"synthesis.l2": 0.0}, [0.8])],
    )
    project.write("sweeps/sigma.json", SIGMA)
    project.write("sweeps/two.json", two_settings)
    project.write("sweeps/cases.json", cases)
    project.write("soft_labels/toys.json", STUDY)
    names = {
        "sweeps/sigma": "sweep_sigma",
        "sweeps/two": "sweep_two",
        "sweeps/cases": "sweep_cases",
        "soft_labels/toys": "soft_labels_toys",
        "label_mismatch/toys": "label_mismatch_toys",
    }
    project.document(*(f"figure: {name}" for name in names), path="docs/page.md")
    project.update()
    project.check()
    folder = project.root / "docs" / "figures"
    assert {path.stem for path in folder.glob("*.png")} == set(names.values())
    for file in names.values():
        assert f"](figures/{file}.png)" in project.text("docs/page.md")

    project.change(
        "sweeps/sigma.json",
        lambda found: found["rows"][0]["runs"][0].update(accuracy=0.5),
    )
    with pytest.raises(ResultsError) as error:
        project.check()
    assert "docs/figures/sweep_sigma.png shows other results" in str(error.value)
    assert "sweep_two" not in str(error.value)

    (project.results / "sweeps" / "sigma.json").unlink()
    with pytest.raises(ResultsError, match=r"sweep_sigma\.png has no results"):
        project.check()


def test_curves_have_error_bars_and_a_fitting_axis(project, plots, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path, **_: drawn.append(figure))
    result_figures.draw_sweep(pathlib.Path("x.png"), SIGMA, SIGMA["rows"])
    [axis] = drawn[0].axes
    assert axis.get_xscale() == "log"
    assert axis.get_xlabel() == "targets.sigma"
    assert axis.get_ylabel() == "validation accuracy of the student, %"
    [container] = axis.containers
    line, _, [bars] = container.lines
    assert list(line.get_xdata()) == [0.5, 20.0]
    assert list(line.get_ydata()) == pytest.approx([92.0, 95.0])
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((91.0, 93.0))
    figures.pyplot().close(drawn[0])


def test_pseudo_samples_of_the_runs_in_the_table(project, maker, plots, tmp_path):
    folder = maker.make("toys_run", results=True)
    sha256 = json.loads((folder / "results.json").read_text())["transfer_set_sha256"]
    project.runs("default", (0.98,), transfer_set_sha256=sha256)
    project.runs("zskd", (0.98,), transfer_set_sha256="not at hand")
    project.document("figure: samples/toys")
    project.update()
    assert "samples_toys" not in project.text()  # There is nothing to show.
    project.update(runs=[folder.parent])
    assert "](docs/figures/samples_toys.png)" in project.text()
    project.check()  # Without the runs.
    project.update()
    assert "](docs/figures/samples_toys.png)" in project.text()
    project.change(
        "toys/default/seed0.json",
        lambda run: run.update(transfer_set_sha256="of another run"),
    )
    with pytest.raises(ResultsError, match=r"samples_toys\.png shows other results"):
        project.check()


def test_shared_pseudo_samples_are_shown_once(project, maker, plots, tmp_path):
    folder = maker.make("toys_run", results=True)
    sha256 = json.loads((folder / "results.json").read_text())["transfer_set_sha256"]
    for method in ("default", "half_b"):
        project.runs(method, (0.98,), transfer_set_sha256=sha256)
    project.document("figure: samples/toys")
    project.update(runs=[folder.parent])
    path = next(tmp_path.glob("**/samples_toys.png"))
    assert json.loads(result_figures.source_of(path)) == {"default": sha256}


def test_without_matplotlib_there_is_one_clear_error(project, monkeypatch):
    monkeypatch.setattr(figures, "pyplot", lambda: None)
    project.runs("default", (0.98, 0.985, 0.99))
    project.document("table: main")
    project.update()  # There is nothing to draw.
    project.write("sweeps/sigma.json", SIGMA)
    with pytest.raises(MissingPackageError, match=r'pip install "\.\[plots\]"'):
        project.update()


# The command ----------------------------------------------------------------------


@pytest.fixture
def command(project, monkeypatch):
    """`main` with the folder of results and flags, in this process."""

    def run(*arguments, runs=(), check=False):
        given = types.SimpleNamespace(runs=[str(path) for path in runs], check=check)
        monkeypatch.setattr(reporting, "FLAGS", given)
        return reporting.main(["reporting", *arguments])

    return run


def test_the_command_updates_and_then_finds_all_as_it_should_be(
    project, command, capsys
):
    project.runs("default", (0.98, 0.985, 0.99))
    project.document("table: main")
    folder = str(project.results)
    with pytest.raises(ResultsError, match=f"python -m docs.pages {folder}"):
        command(folder, check=True)
    assert "stale" in project.text()
    assert command(folder) == 0
    assert "README.md: table main" in capsys.readouterr().out
    assert "98.50" in project.text()
    assert command(folder, check=True) == 0
    assert capsys.readouterr().out == ""


def test_the_command_wants_one_folder_of_results_and_folders_of_runs(project, command):
    for arguments in ((), ("a", "b")):
        with pytest.raises(ConfigError, match="Name the folder of results"):
            command(*arguments)
    with pytest.raises(ConfigError, match=r"--runs=.*none: no such folder"):
        command(str(project.results), runs=[project.root / "none"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seconds", "x"),
        ("seconds.synthesis", None),
        ("student", []),
        ("student.test_accuracy", "high"),
        ("student.evaluation.per_class", "x"),
        ("teacher.sha256", 3),
        ("seed", True),
        ("versions", "new"),
        ("config", 7),
    ],
)
def test_a_wrong_value_in_a_committed_file(tmp_path, path, value):
    repository = pathlib.Path(__file__).parents[3]
    source = repository / "results" / "mnist" / "default" / "seed0.json"
    content = json.loads(source.read_text())
    content.pop(files.CHECKSUM)
    *groups, key = path.split(".")
    place = content
    for group in groups:
        place = place[group]
    place[key] = value
    target = tmp_path / "results" / "mnist" / "default" / "seed0.json"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"seed0\.json is not as .* {path} is"):
        results_files.read(tmp_path / "results")
