import html.parser
import pathlib
import re
import sys

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("sklearn")

from dfkd_jax.errors import CheckpointError
from dfkd_jax.reporting import comparison_page, pages, report_page, run_files
from dfkd_jax.runtime import writers

EVIL = "</style></script><script>alert(1)</script>\"'&"
VOID = {"meta", "br", "img", "col", "link", "input", "hr"}
LOADING = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")
STYLE = pathlib.Path(pages.__file__).parent / "templates" / "style.css"


class Page(html.parser.HTMLParser):
    """Parses a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.loaded, self.ids, self.links = [], [], [], [], []
        self.images, self.charts, self.tags = [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        self.tags.add(name)
        assert not [key for key in values if key.startswith("on")]
        self.loaded += [values[key] for key in LOADING if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if name == "img":
            self.images.append(values["alt"])
        if name == "svg":
            self.charts.append(values["aria-label"])
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert name not in VOID
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split()).replace("\xa0", " ")


def test_what_is_told_without_data(maker):
    told = {"agreement": 0.97, "low": 0.94, "high": 0.99}
    told |= {"is_known": True, "is_poor": False}
    found = {"expected": told, "pilot": {"temperature": 5.26, "sigma": 0.004}}
    folder = maker.make(drawn=True, changes=found)
    with writers.open_writer(folder / "metrics.jsonl", stage="synthesis") as writer:
        writer.write_scalars(100, {"cross_entropy": 1.5})
    text = report(folder).text
    assert "Expected agreement 97 % (94 to 99)" in text
    assert "Measured on the teacher τ 5.26, σ 0.004" in text
    assert "Labels reached within" in text


def report(folder):
    pages.write(folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def compare(folders, path):
    pages.write_comparison(folders, path)
    return Page(path.read_text(encoding="utf-8"))


def test_a_report_has_everything(maker):
    origin = {"date": "2026-01-02T03:04:05+00:00", "source": {"commit": 40 * "c"}}
    origin["changed_from_default"] = {"synthesis.images_per_device": 100}
    page = report(maker.make(drawn=True, changes=origin))
    for expected in (
        "2026-01-02, commit cccccccccc",
        # What is set, and the default; the seed is no other than that.
        "setting value default synthesis.images_per_device 25 100 All settings",
        "toy, seed 0",
        "90.00 %",
        "95 % interval 87.98 % to 91.71 %; 900 of 1,000 images.",
        "Teacher 95.00 %",
        "Gap 5.00",
        "Agreement with teacher 93.00 %",
        "Parameters 35,820 teacher 61,706",
        "Compression 1.72 ×",
        "Wall time 3 min 06 s",
        "python -m dfkd_jax.main --config=toy.py",
        "1,000 real test images of toys",
        "Evaluation was this run’s only access to real data",
        "3 taken for 4 (10, 10.0 %)",
        "expected calibration error 3.00 % 8.00 %",
        "images_per_device 25",
        "Feature layer dense_2",
        "backend cpu",
        "jax 0.10.2",
        "f" * 64,
        "e" * 64,
        "d" * 64,
    ):
        assert expected in page.text
    assert "warning" not in page.text
    assert len(page.images) == 10 + 60  # Below the result, and by class.
    assert page.text.index("more of them") < page.text.index("Wilson")
    assert page.images[0].startswith("Pseudo sample, likeliest class 0 (0.")
    kinds = " ".join(page.charts)
    for chart in (
        "Test accuracy with 95 % intervals",
        "Share of pseudo samples by likeliest class",
        "Entropy of the soft labels",
        "Map of 120 soft labels of Multivariate normal, 10 of 10 classes",
        "Map of 120 soft labels of Dirichlet (ZSKD)",
        "cross-entropy of synthesis, first batch",
        "distillation loss of distillation",
        "Calibration of the student",
    ):
        assert chart in kinds
    assert len([c for c in page.charts if c.startswith("Soft label: ")]) == 60


def test_rows_of_the_table_by_class(maker):
    run = run_files.read(maker.make())
    rows = report_page.context(run)["classes"]["first"]
    assert len(rows) == 10
    assert rows[3] == {
        "name": "3",
        "count": 100,
        "student": pytest.approx(0.9),
        "teacher": pytest.approx(0.95),
        "gap": pytest.approx(0.05),
        "precision": pytest.approx(0.9),
    }


def test_pages_load_nothing_and_run_nothing(maker, tmp_path):
    folders = [maker.make(drawn=True), maker.make("other", settings={"seed": 1})]
    for page in (report(folders[0]), compare(folders, tmp_path / "comparison.html")):
        assert page.loaded
        for target in page.loaded:
            assert target.startswith(("data:image/png;base64,", "#"))
        for target in page.loaded:
            assert not target.startswith("#") or target[1:] in page.ids
        assert len(page.ids) == len(set(page.ids))
        assert not page.tags & {"script", "link", "iframe", "object", "base", "form"}
    style = STYLE.read_text()
    assert "url(" not in style and "@import" not in style and "http" not in style
    text = (tmp_path / "comparison.html").read_text()
    assert "default-src 'none'" in text
    assert "http:" not in text and "https:" not in text


def test_nothing_untrusted_gets_through(maker, tmp_path):
    """Names and settings come from files that anyone may have written."""
    folder = maker.make(
        f"a{EVIL.replace('/', '_')}",
        settings={"teacher": {"weights": EVIL}},
        class_names=[f"{EVIL}{k}" for k in range(10)],
        drawn=True,
        changes={
            "experiment": EVIL,
            "dataset": EVIL,
            "command": EVIL,
            "machine": {EVIL: EVIL},
            "versions": {EVIL: EVIL},
            "seconds": {EVIL: 1.0, "evaluation": 2.0},
        },
    )
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"toy"', '"<script>alert(2)</script>"'))
    other = maker.make("other")
    for page, text in (
        (report(folder), (folder / "report.html").read_text()),
        (
            compare([folder, other], tmp_path / "comparison.html"),
            (tmp_path / "comparison.html").read_text(),
        ),
    ):
        assert "script" not in page.tags
        assert "<script" not in text
        assert text.count("</style>") == 1
        assert "<script>alert(2)</script>" in page.text
        assert EVIL.split("<script")[0] in page.text


def test_the_same_files_make_the_same_page(maker):
    folder = maker.make(drawn=True)
    report(folder)
    first = (folder / "report.html").read_bytes()
    report(folder)
    assert (folder / "report.html").read_bytes() == first


def test_warnings_are_at_the_top(maker):
    page = report(maker.make(accuracy=0.1, changes={"data_free": False}))
    words = page.text
    assert "2 warnings Not data-free." in words
    assert words.index("hardly better than chance") < words.index("Student, test")
    # What is only true of data-free runs is not said.
    assert "means: all that the student learned" not in words
    assert "only access to real data" not in words


@pytest.mark.parametrize("kind", ["dafl", "dfad", "real_data", "metadata"])
def test_pages_of_other_methods(maker, kind):
    reads = kind in ("real_data", "metadata")
    what = {"data_free": False, "real_data": "55,000 training images of toys"}
    origin = what if reads else {"data_free": True}
    page = report(maker.make(kind=kind, origin=origin, changes=origin))
    assert ("NOT data-free: a baseline on real data" in page.text) == reads
    assert ("learned from real data (55,000 training images" in page.text) == reads
    assert ("only access to real data" in page.text) != reads
    assert "Feature layer dense_2" in page.text


@pytest.mark.parametrize(
    ("changes", "there", "missing"),
    [
        (
            {"accuracy": None},
            ["not evaluated", "No real data was read", "Pseudo samples", "35,820"],
            ["Confusion", "Calibration", "95 % interval"],
        ),
        (
            {"finished_shards": 2, "student": False, "results": False},
            ["2 warnings", "50 of 100", "Class balance", "Loss curves", "All settings"],
            ["Confusion", "Map of soft labels", "Compression"],
        ),
        (
            {"finished_shards": 0, "student": False, "results": False},
            ["0 of 100", "Loss curves", "All settings"],
            ["Class balance", "Pseudo samples What"],
        ),
    ],
)
def test_partial_runs(maker, changes, there, missing):
    page = report(maker.make(**changes))
    for words in there:
        assert words in page.text
    for words in missing:
        assert words not in page.text


def test_a_run_that_has_only_begun(maker):
    folder = maker.make(student=False, results=False)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.name != "run.json":
            path.unlink()
    page = report(folder)
    assert "0 of 100" in page.text
    assert "All settings" in page.text


def test_results_of_earlier_versions_have_no_reliability(maker):
    folder = maker.make()
    path = folder / "results.json"
    results = run_files.files.read_json(path)
    for role in ("teacher", "student"):
        del results[role]["evaluation"]["reliability"]
    run_files.files.write_json(path, results)
    page = report(folder)
    assert "expected calibration error" in page.text
    assert "Calibration of the student" not in " ".join(page.charts)


def test_color_images_of_many_classes_stay_small(maker):
    """A hundred classes, images of 128 pixels: noise, the worst there is for PNG."""
    folder = maker.make(image_shape=(128, 128, 3), classes=100, accuracy=0.8)
    page = report(folder)
    assert (folder / "report.html").stat().st_size < 3_000_000
    assert "24 of 100 classes" in page.text
    assert "All 100 classes" in page.text
    assert "Confusion matrix: true class by row" in " ".join(page.images)
    assert "The most and the least frequent classes." in page.text


def test_two_seeds_and_another_experiment(maker, tmp_path):
    folders = [
        maker.make("a", accuracy=0.9),
        maker.make("b", accuracy=0.92, settings={"seed": 1, "cpu_devices": 1}),
        maker.make("c", accuracy=0.5, settings={"targets": {"sigma": 2.5}}),
        maker.make("d", accuracy=None, settings={"targets": {"sigma": 2.5}, "seed": 7}),
    ]
    page = compare(folders, tmp_path / "comparison.html")
    assert "4 runs of 2 experiments" in page.text
    # Sample standard deviation: 2 / √2.
    assert (
        "A toy 2 (seeds 0, 1) 91.00 ± 1.41 % 95.00 % 4.00 ± 1.41 93.00 ± 0.00 %"
        in page.text
    )
    assert "B toy 2 (seeds 0, 7) 50.00 % 95.00 % 45.00 93.00 %" in page.text
    assert "targets.sigma A 1.5 B 2.5" in page.text
    assert "1 experiment has warnings B, toy: Not evaluated (1 of 2 runs)." in page.text
    assert f"B {folders[3]} 7 not evaluated – – 3 min 02 s" in page.text
    assert any("Accuracy of the students: A  toy 91.00%" in c for c in page.charts)
    curves = [chart for chart in page.charts if "4 runs" in chart]
    assert len(curves) == 2
    assert len(page.images) == 2 * 10 * 3


def test_only_what_differs_is_listed(maker):
    folders = [
        maker.make("a"),
        maker.make("b", settings={"seed": 3, "targets": {"sigma": 2.5}}),
    ]
    runs = [run_files.read(folder) for folder in folders]
    assert comparison_page.context(runs)["differences"] == {
        "targets.sigma": [(["A"], "1.5"), (["B"], "2.5")]
    }


def test_another_teacher_is_another_experiment(maker):
    folders = [maker.make("a"), maker.make("b", settings={"seed": 1})]
    path = folders[1] / "run.json"
    path.write_text(path.read_text().replace("f" * 64, "0" * 64))
    groups = comparison_page.group([run_files.read(folder) for folder in folders])
    assert [len(found) for found in groups] == [1, 1]


def test_many_experiments(maker, tmp_path):
    folders = [
        maker.make(f"run{k}", settings={"targets": {"sigma": 1.0 + k}})
        for k in range(14)
    ]
    page = compare(folders, tmp_path / "comparison.html")
    assert "14 runs of 14 experiments" in page.text
    assert "2 more experiments are left out here" in page.text
    assert len(page.images) == 12 * 10 * 3


def test_keys_of_experiments():
    keys = [comparison_page._letters(k) for k in (0, 25, 26, 51, 52)]
    assert keys == ["A", "Z", "AA", "AZ", "BA"]


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(CheckpointError, match="is no work directory"):
        pages.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_jinja_one_warning_and_no_page(maker, monkeypatch, capsys):
    folder = maker.make()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    pages._has_jinja2.cache_clear()
    try:
        pages.write(folder)
        pages.write_comparison([folder, folder], folder / "comparison.html")
    finally:
        pages._has_jinja2.cache_clear()
    assert not list(folder.glob("*.html"))
    errors = capsys.readouterr().err
    assert errors.count("WARNING") == 1
    assert 'pip install ".[plots]"' in errors


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], "–"), ([0.5], "50.00 %"), ([0.9, 0.92, 0.94], "92.00 ± 2.00 %")],
)
def test_spread_by_hand(values, expected):
    assert pages.spread(values).replace("\xa0", " ") == expected


# -- Colors ---------------------------------------------------------------------------


def colors(mode):
    """The variables of style.css: `:root` first, then what dark mode changes."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)[:2]
    found = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    if mode == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#\w{6});", dark))
    return found


def linear(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )


def luminance(rgb):
    return float(rgb @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    """WCAG 2.2, of two luminances."""
    low, high = sorted([first, second])
    return (high + 0.05) / (low + 0.05)


# Ottosson's Oklab (2020), in which `color-mix` mixes.
TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)


def mix(first, second, share):
    """Linear RGB of a mixture; Oklab is a linear map of the cones' cube roots."""
    cones = [np.cbrt(TO_CONE @ linear(color)) for color in (first, second)]
    return np.linalg.solve(TO_CONE, (share * cones[0] + (1 - share) * cones[1]) ** 3)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "background"),
    [
        ("ink", "paper"),
        ("ink", "raised"),
        ("ink", "warn-paper"),
        ("muted", "paper"),
        ("muted", "raised"),
        ("accent", "paper"),
        ("second", "paper"),
        ("warn-ink", "warn-paper"),
    ],
)
def test_text_can_be_read(mode, text, background):
    found = colors(mode)
    values = (luminance(linear(found[name])) for name in (text, background))
    assert contrast(*values) >= 4.5


@pytest.mark.parametrize("kind", ["hit", "error"])
def test_numbers_in_colored_cells_can_be_read(kind):
    """At every strength, in both modes: the text is black or white as it must be."""
    name = {"hit": "accent", "error": "second"}[kind]
    for strength in range(101):
        for mode, other_from, usual, other in (
            ("light", report_page.WHITE_IN_LIGHT[kind], 0.0, 1.0),
            ("dark", report_page.BLACK_IN_DARK[kind], 1.0, 0.0),
        ):
            found = colors(mode)
            cell = luminance(mix(found[name], found["raised"], strength / 100))
            text = other if strength >= other_from else usual
            assert contrast(cell, text) >= 4.5, (mode, strength)
