"""`python -m dfkd_jax.export`, and what its documentation says about the files."""

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys

import command_runner
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import TINY, read_transfer_set

from dfkd_jax.exporting import to_onnx
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import weights
from dfkd_jax.teachers import weights as teachers

REPOSITORY = command_runner.REPOSITORY
TEACHER = "mnist_lenet5"
# Keeps this package and what it is built on from being imported.
BLOCK = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"
HAS_ONNX = not any(importlib.util.find_spec(name) is None for name in to_onnx.PACKAGES)
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the onnx extra is missing")


def blocks(page, *, language="python"):
    """Fenced blocks of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block_with(page, phrase):
    [found] = [block for block in blocks(page) if phrase in block]
    return found


def run_alone(folder, code, blocked=("dfkd_jax",)):
    """Runs `code` in `folder` in a process that has none of the `blocked` packages."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=tuple(blocked)) + code],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(lab, finished_workdir, tmp_path_factory):
    """Every format of the finished run, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("exported")
    names = {
        "safetensors": "network.safetensors",
        "stablehlo": "network.stablehlo",
        "npz": "transfer_set.npz",
        "tfds": "transfer_set",
    }
    names |= {"onnx": "network.onnx"} if HAS_ONNX else {}
    commands = {
        name: lab.runner.start(
            "export",
            f"--checkpoint={finished_workdir}",
            f"--format={name}",
            f"--output={folder / names[name]}",
        )
        for name in names
    }
    for name, command in commands.items():
        assert command.wait() == 0, name + command.stderr
        assert "Read back and compared" in command.stdout
        assert str(folder / names[name]) in command.stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names.values(), "network.stablehlo.json"]
    )
    return folder


def student_logits(workdir):
    """Of three black images, as the pages ask exported networks for."""
    variables, description = weights.load(workdir / "student.safetensors")
    module = registry.create(description.network, num_classes=10)
    black = (0 - description.mean[0]) / description.std[0]
    logits = jax.jit(Linen(module).logits)
    return np.asarray(logits(variables, jnp.full((3, 28, 28, 1), black, jnp.float32)))


@pytest.mark.parametrize(
    ("phrase", "blocked"),
    [
        ("jax.export", ("dfkd_jax", "flax")),
        pytest.param("onnxruntime", ("dfkd_jax", "flax", "jax"), marks=needs_onnx),
    ],
)
def test_networks_load_without_this_package_as_documented(
    exported, finished_workdir, phrase, blocked
):
    code = block_with("docs/export.md", phrase)
    printed = run_alone(
        exported, code + "\nprint(np.asarray(logits).tolist())", blocked
    )
    np.testing.assert_allclose(
        json.loads(printed), student_logits(finished_workdir), atol=1e-4
    )


def test_safetensors_load_without_this_package_as_documented(
    exported, finished_workdir
):
    code = block_with("docs/export.md", "safe_open")
    show = "\nprint(json.dumps([mean, std, kernel.tolist(), description['network']]))"
    mean, std, kernel, network = json.loads(run_alone(exported, code + show))
    variables, description = weights.load(finished_workdir / "student.safetensors")
    assert (mean, std) == (list(description.mean), list(description.std))
    assert network == "lenet5_half"
    np.testing.assert_array_equal(kernel, variables["params"]["dense_1"]["kernel"])


@pytest.fixture(scope="module")
def pixels(finished_workdir):
    """What the exported transfer set has to hold."""
    images, labels = read_transfer_set(finished_workdir)
    assert len(images) == TINY["synthesis.num_images"]
    return images * np.float32(0.3081) + np.float32(0.1307), labels


def test_tfds_loads_without_tensorflow_as_documented(exported, pixels):
    code = block_with("docs/export.md", "builder_from_directory")
    show = (
        "\nimport sys\nassert 'tensorflow' not in sys.modules"
        "\nprint([len(examples), image.tolist(), label.tolist()])"
    )
    printed = run_alone(exported, code + show)
    length, image, label = json.loads(printed)
    assert length == len(pixels[0])
    np.testing.assert_array_equal(np.float32(image), pixels[0][0])
    np.testing.assert_array_equal(np.float32(label), pixels[1][0])


def five_lines(phrase):
    code = block_with("docs/commands.md", phrase)
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) <= 5
    # Smaller batches, as the set is.
    return code.replace("100", "16")


def test_jax_loader_of_the_readme(exported, pixels, monkeypatch):
    monkeypatch.chdir(exported)
    names = {}
    exec(five_lines("jax.numpy"), names)
    np.testing.assert_array_equal(names["images"], pixels[0])
    images, labels = names["batch"]
    rows = names["rows"]
    assert images.shape == (len(rows), 28, 28, 1)
    np.testing.assert_array_equal(labels, pixels[1][rows])


def test_pytorch_loader_of_the_readme(exported, pixels, monkeypatch):
    pytest.importorskip("torch")
    code = five_lines("DataLoader")
    show = (
        "\nbatches = list(loader)"
        "\nassert {x.shape[1:] for x, _ in batches} == {(1, 28, 28)}"
        "\nprint([sum(len(x) for x, _ in batches), images[3, 0].tolist()])"
    )
    length, image = json.loads(run_alone(exported, code + show, ("dfkd_jax", "jax")))
    assert length == len(pixels[0])
    np.testing.assert_array_equal(np.float32(image), pixels[0][3, :, :, 0])


@pytest.mark.parametrize("page", ["docs/export.md"])
def test_commands_of_the_page_parse(lab, page):
    lines = [
        line
        for block in blocks(page, language="bash")
        for line in block.splitlines()
        if "dfkd_jax.export" in line
    ]
    assert len(lines) == 5
    for line in lines:
        arguments = shlex.split(line)[3:]
        command = lab.runner.call(_parse, arguments)
        assert command.wait() == 0, command.stderr


def _parse(arguments):
    import runpy

    from absl import flags

    from dfkd_jax import command_line

    export = importlib.import_module("dfkd_jax.export")

    def parse_only(main):
        command_line._parse(sys.argv)
        assert flags.FLAGS.format in export.FORMATS
        assert flags.FLAGS.checkpoint and flags.FLAGS.output

    sys.modules.pop("dfkd_jax.export")
    command_line.run = parse_only
    sys.argv = ["export", *arguments]
    runpy.run_module("dfkd_jax.export", run_name="__main__", alter_sys=True)


def test_evaluate_reads_an_exported_file(lab, exported, prepared_data):
    command = lab.runner.start(
        "evaluate",
        f"--checkpoint={exported / 'network.safetensors'}",
        f"--data_dir={prepared_data}",
    )
    assert command.wait() == 0, command.stderr
    assert "accuracy" in command.stdout


def test_teacher_of_a_run_and_orbax_checkpoints(lab, workdir_copy, tmp_path):
    (workdir_copy / "student.safetensors").unlink()
    arguments = {
        "teacher": [f"--checkpoint={workdir_copy}", "--which=teacher"],
        "student": [f"--checkpoint={workdir_copy / 'student'}"],
    }
    commands = {
        name: lab.runner.start(
            "export", *given, "--format=safetensors", f"--output={tmp_path / name}"
        )
        for name, given in arguments.items()
    }
    assert [command.wait() for command in commands.values()] == [0, 0]
    teacher = weights.load(tmp_path / "teacher")[0]
    shipped = weights.load(teachers.find(TEACHER))[0]
    assert weights.digest(teacher) == weights.digest(shipped)
    assert weights.load(tmp_path / "student")[1].network == "lenet5_half"


def test_nothing_is_replaced_without_being_asked(lab, finished_workdir, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")

    def start(format_name, name, *more):
        return lab.runner.start(
            "export",
            f"--checkpoint={finished_workdir}",
            f"--format={format_name}",
            f"--output={tmp_path / name}",
            *more,
        )

    refused = [
        (start("npz", "file"), "--overwrite"),
        (start("safetensors", "file"), "--overwrite"),
        (start("npz", "folder", "--overwrite"), "not exported as npz"),
        (start("tfds", "folder", "--overwrite"), "not exported as tfds"),
        (start("tfds", "file", "--overwrite"), "not exported as tfds"),
    ]
    found = lab.errors(*[command for command, _ in refused])
    for (status, line), (_, phrase) in zip(found, refused, strict=True):
        assert status == 1
        assert phrase in line
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "precious"

    assert start("safetensors", "file", "--overwrite").wait() == 0
    assert weights.load(tmp_path / "file")[1].network == "lenet5_half"


@pytest.mark.parametrize(
    ("arguments", "status", "phrases"),
    [
        ({"checkpoint": None}, 2, ["--checkpoint=runs/mnist/seed0"]),
        ({"format": None}, 2, ["--format=onnx"]),
        ({"output": None}, 2, ["--output=student.onnx"]),
        ({"format": "stabelhlo"}, 2, ["stabelhlo", 'Did you mean "stablehlo"?']),
        ({"which": "pupil"}, 2, ["--which=pupil", "student, teacher"]),
        ({"which": "teacher"}, 2, ["--which=teacher", "work directory"]),
        ({"format": "npz", "which": "student"}, 2, ["--format=npz", "--which"]),
        ({"checkpoint": "mnist_lenet"}, 1, ["mnist_lenet", '"mnist_lenet5"']),
        ({"format": "npz"}, 1, [TEACHER, "no work directory"]),
        ({"output": "/dev/null/x"}, 1, ["Cannot write", "--output"]),
    ],
)
def test_errors(lab, tmp_path, arguments, status, phrases):
    given = {
        "checkpoint": TEACHER,
        "format": "safetensors",
        "output": tmp_path / "out",
    } | arguments
    given = [f"--{key}={value}" for key, value in given.items() if value is not None]
    [(found, line)] = lab.errors(lab.runner.start("export", *given))
    assert found == status, line
    for phrase in phrases:
        assert phrase in line
    assert not list(tmp_path.iterdir())


def test_unfinished_transfer_set(lab, workdir_copy, tmp_path):
    index = workdir_copy / "transfer_set" / "shards.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:3]))
    command = lab.runner.start(
        "export",
        f"--checkpoint={workdir_copy}",
        "--format=npz",
        f"--output={tmp_path / 'out.npz'}",
    )
    [(status, line)] = lab.errors(command)
    assert status == 1
    assert "30 of 40 images are made" in line


def test_missing_extra_names_the_command_that_mends_it(lab, tmp_path):
    [(status, line)] = lab.errors(lab.runner.call(_export_without_onnx, tmp_path))
    assert status == 1
    assert "jax2onnx" in line
    assert 'pip install ".[onnx]"' in line


def _export_without_onnx(folder):
    """In a process of its own, where the packages seem not to be installed."""
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *args: (
        None if name in to_onnx.PACKAGES else find_spec(name, *args)
    )
    command_runner.run_module(
        "export",
        [f"--checkpoint={TEACHER}", "--format=onnx", f"--output={folder / 'x.onnx'}"],
    )
