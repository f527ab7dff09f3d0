"""The report of a run and a comparison of runs, looked at in Chromium.

Small pictures of both pages lie in `screenshots`. With DFKD_JAX_SCREENSHOTS=write,

    python -m pytest -m full tests/reporting/test_screenshots.py

writes them anew, after a page was changed on purpose: look at them before a commit.
"""

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil

import browser
import laboratory
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dfkd_jax.data import datasets
from dfkd_jax.runtime import files

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import matplotlib

from dfkd_jax.reporting import pages

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(browser.find() is None, reason="needs Chromium or Chrome"),
]

WRITES = os.environ.get("DFKD_JAX_SCREENSHOTS") == "write"
HERE = pathlib.Path(__file__).parent
FAULTS = (HERE / "page_faults.js").read_text()
FACTOR = 8  # Pixels of the page to one of a picture.
PATCH = 8  # Pixels of a picture to a patch.
TOLERANCE = 6.0  # Mean absolute difference of any patch, of 255.
HEIGHTS = 0.03  # Share by which the height of a section may differ.

EXPECTED = {"agreement": 0.72, "low": 0.43, "high": 1.0}
EXPECTED |= {"is_known": True, "is_poor": True}
COMMAND = (
    "python -m dfkd_jax.main --config=configs/mnist.py:smoke "
    "--workdir=runs/mnist_smoke/seed0 --config.cpu_devices=2 "
    "--config.synthesis.num_images=40 --config.distillation.num_steps=20"
)
# The same letters everywhere: matplotlib brings them along.
LETTERS = (
    ("words", "100 500", "DejaVuSans.ttf"),
    ("words", "501 900", "DejaVuSans-Bold.ttf"),
    ("code", "400", "DejaVuSansMono.ttf"),
)
STEADY = """
async (letters) => {
  for (const [name, weight, data] of letters) {
    const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
    document.fonts.add(await new FontFace(name, bytes, { weight }).load());
  }
  const style = new CSSStyleSheet();
  style.replaceSync(`
    body { font-family: words; }
    pre, code, .settings td { font-family: code; }
    /* What is in images and on maps is another processor's rounding, too. */
    img { filter: contrast(0); }
    .map ~ * { visibility: hidden; }
  `);
  document.adoptedStyleSheets = [style];
}
"""
SECTIONS = """
[...document.querySelectorAll("header, section, footer")].map((each) => {
  const box = each.getBoundingClientRect();
  return [each.id || each.localName, box.top + scrollY, box.bottom + scrollY];
})
"""


@dataclasses.dataclass(frozen=True)
class View:
    """A window.

    Attributes:
        width: In pixels.
        dark: Whether the user prefers dark pages.
    """

    width: int
    dark: bool

    def __str__(self) -> str:
        return f"{self.width}-{'dark' if self.dark else 'light'}"


VIEWS = [View(width, dark) for width in (420, 1100, 1400) for dark in (False, True)]
every_view = pytest.mark.parametrize("view", VIEWS, ids=str)
every_page = pytest.mark.parametrize("page", ["report", "comparison"])


# -- Pages -----------------------------------------------------------------------------


def settle(folder, evaluations):
    """Replaces in results what another machine would find: times and roundings."""
    results = files.read_object(folder / "results.json")
    for role, evaluation in evaluations.items():
        results[role]["evaluation"] = evaluation
    stages = ("prepare", "synthesis", "distillation", "evaluation")
    results |= {
        "seconds": dict(zip(stages, (5.0, 60.0, 90.0, 8.0), strict=True)),
        "pilot": {"temperature": 2.27, "sigma": 2.37},
        "expected": EXPECTED,
        "command": COMMAND,
        "date": "2026-01-02T03:04:05+00:00",
        "source": {"commit": 40 * "c"},
    }
    files.write_json(folder / "results.json", results, sealed=True)


def rename(folder, *, seed=0, teacher="mnist_lenet5"):
    """Another seed and teacher for a run that is finished."""
    identity = files.read_object(folder / "run.json")
    identity["config"]["seed"] = seed
    identity["config"]["teacher"]["weights"] = teacher
    identity["teacher_sha256"] = hashlib.sha256(teacher.encode()).hexdigest()
    files.write_json(folder / "run.json", identity, sealed=True)


def write_pages(runs, evaluations, folder):
    """Both pages, by name: a run that is evaluated, its like, and one that is not."""
    for name, made in (("seed0", "lenet"), ("seed5", "lenet"), ("toy", "toy")):
        shutil.copytree(runs[made], folder / name)
        settle(folder / name, evaluations if made == "lenet" else {})
    rename(folder / "seed0")
    rename(folder / "seed5", seed=5)
    rename(folder / "toy", teacher="toy.safetensors")
    found = {name: folder / f"{name}.html" for name in ("report", "comparison")}
    with contextlib.chdir(folder):  # Pages say where runs are.
        pages.write(pathlib.Path("seed0"), found["report"])
        compared = map(pathlib.Path, ("seed0", "seed5", "toy"))
        pages.write_comparison(list(compared), found["comparison"])
    return found


@pytest.fixture(scope="module")
def written(evaluations, tmp_path_factory, request):
    """Both pages of the runs that tests/system has, too."""
    shared = laboratory.shared_folder(tmp_path_factory)
    lab = laboratory.open_warm_lab(
        tmp_path_factory.mktemp("lab"),
        shared=shared,
        warm=request.config.cache.mkdir("commands"),
    )
    runs = laboratory.usual_runs(lab, shared)
    return write_pages(runs, evaluations, tmp_path_factory.mktemp("pages"))


# -- Pictures --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.running(browser.find(), tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def open_page(tab, path, view):
    """Opens a page; letters and images are what they are on every machine."""
    tab.open(path, width=view.width, dark=view.dark)
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    letters = [
        (name, weight, base64.b64encode((folder / file).read_bytes()).decode())
        for name, weight, file in LETTERS
    ]
    tab.evaluate(f"({STEADY})({json.dumps(letters)})")


def take(tab):
    """Small gray pictures of the sections of the page that is open, by name."""
    boxes = tab.evaluate(SECTIONS)
    with Image.open(io.BytesIO(tab.screenshot())) as whole:
        gray = whole.convert("L")
    return {
        name: gray.crop((0, round(top), gray.width, round(bottom))).reduce(FACTOR)
        for name, top, bottom in boxes
    }


def save(pictures, path):
    """One file: the sections below each other, and what they are called."""
    heights = {name: picture.height for name, picture in pictures.items()}
    width = next(iter(pictures.values())).width
    whole = Image.new("L", (width, sum(heights.values())))
    top = 0
    for picture in pictures.values():
        whole.paste(picture, (0, top))
        top += picture.height
    about = PngImagePlugin.PngInfo()
    about.add_text("sections", json.dumps(heights))
    whole.save(path, pnginfo=about, optimize=True)


def load(path):
    """What `save` has written."""
    pictures, top = {}, 0
    with Image.open(path) as whole:
        heights = json.loads(whole.text["sections"])
        gray = whole.convert("L")
    for name, height in heights.items():
        pictures[name] = gray.crop((0, top, gray.width, top + height))
        top += height
    return pictures


def differences(found, expected):
    """What differs by more than is tolerated, as texts."""
    if list(found) != list(expected):
        return [f"sections {list(found)}, not {list(expected)}"]
    texts = []
    for name, reference in expected.items():
        rows = found[name].height - reference.height
        if abs(rows) > 1 + HEIGHTS * reference.height:
            texts.append(f"{name}: {rows / reference.height:+.0%} in height")
        elif (most := difference(found[name], reference)) > TOLERANCE:
            texts.append(f"{name}: a patch differs by {most:.1f} of 255")
    return texts


def difference(found, reference):
    """The largest mean absolute difference of a patch of two pictures, of 255."""
    arrays = (found.resize(reference.size), reference)
    first, second = (np.asarray(each, float) for each in arrays)
    rows, columns = (-(-size // PATCH) for size in first.shape)
    edges = [
        (0, n * PATCH - m) for n, m in zip((rows, columns), first.shape, strict=True)
    ]
    patches = np.pad(np.abs(first - second), edges).reshape(rows, PATCH, columns, PATCH)
    return float(patches.mean((1, 3)).max())


@every_view
@every_page
def test_pages_look_as_they_did(tab, written, tmp_path, page, view):
    path = HERE / "screenshots" / f"{page}-{view}.png"
    open_page(tab, written[page], view)
    found = take(tab)
    if WRITES:
        save(found, path)
        pytest.skip(f"{path.name} is written")
    (tmp_path / "whole.png").write_bytes(tab.screenshot())
    assert differences(found, load(path)) == [], f"see {tmp_path / 'whole.png'}"


BREAKAGES = {
    "no style": "document.querySelector('style').remove()",
    "no strip of images": "document.querySelector('.columns').remove()",
    "no images": "document.querySelectorAll('img').forEach((each) => each.remove())",
    "a chart less": "document.querySelector('svg.chart').style.visibility = 'hidden'",
    "no lines": "document.querySelectorAll('.line').forEach((each) => each.remove())",
    "a table less": "document.querySelector('table').remove()",
    "a section less": "document.querySelector('section').remove()",
    "a plain warning": "document.querySelector('.warnings').style.background = 'none'",
    "large letters": "document.body.style.fontSize = '1.15rem'",
    "one column": "document.querySelectorAll('.grid2').forEach((each) => "
    "(each.style.display = 'block'))",
}


@pytest.mark.parametrize("name", BREAKAGES)
@every_page
def test_what_breaks_is_seen(tab, written, page, name):
    view = View(1100 if name == "one column" else 420, dark=False)
    open_page(tab, written[page], view)
    before = take(tab)
    assert differences(before, before) == []
    tab.evaluate(BREAKAGES[name])
    assert differences(take(tab), before) != []


# -- What can be told without a picture ------------------------------------------------


@every_view
@every_page
def test_all_can_be_seen_and_read(tab, written, page, view):
    open_page(tab, written[page], view)
    assert tab.evaluate("document.images.length") > 10
    assert tab.evaluate(FAULTS) == []


def test_long_names_and_many_experiments(tab, maker, tmp_path):
    """Names of Fashion-MNIST and of experiments, and a hundred classes in color."""
    named = maker.make(
        "named",
        class_names=datasets.spec("fashion_mnist").class_names,
        image_shape=(28, 28, 1),
        drawn=True,
        accuracy=0.3,
    )
    pages.write(named, tmp_path / "named.html")
    hundred = maker.make("hundred", classes=100, image_shape=(32, 32, 3), accuracy=0.8)
    pages.write(hundred, tmp_path / "hundred.html")
    others = [
        maker.make(
            f"run{k}",
            settings={
                "name": "the_name_of_an_experiment",
                "targets": {"sigma": 1.0 + k},
            },
        )
        for k in range(13)
    ]
    pages.write_comparison([named, *others], tmp_path / "many.html")
    for page in ("named", "hundred", "many"):
        for view in VIEWS:
            open_page(tab, tmp_path / f"{page}.html", view)
            assert tab.evaluate(FAULTS) == [], (page, view)


H1 = "document.querySelector('h1')"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("document.querySelector('table').style.width = '500px'", "wider than"),
        (f"{H1}.style.cssText = 'white-space: nowrap; width: 9rem'", "cut off: h1"),
        (f"{H1}.style.cssText = 'height: 1rem; overflow: hidden'", "cut off: h1"),
        (f"{H1}.style.color = '#888'", "hard to read: h1"),
        ("document.querySelector('svg text').setAttribute('x', -20)", "out of its"),
        ("document.images[3].src = ''", "not loaded: Pseudo sample"),
    ],
)
@every_page
def test_faults_are_found(tab, written, page, change, fault):
    open_page(tab, written[page], View(420, dark=False))
    tab.evaluate(change)
    assert any(fault in each for each in tab.evaluate(FAULTS))
