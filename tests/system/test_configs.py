"""Every config file and variant is valid, says how it is run, and is installed."""

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys

import command_runner
import pytest
import tiny_runs
from tiny_runs import fingerprint

from dfkd_jax import api, config, config_files
from dfkd_jax.errors import ConfigError
from dfkd_jax.models import registry
from dfkd_jax.reporting import figures

REPOSITORY = command_runner.REPOSITORY
FILES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "configs").rglob("*.py")
    if path.name != "__init__.py" and path.parent.name != "zoo"
)
ZOO = "configs/zoo/zoo.py"
TEACHERS = runpy.run_path(str(REPOSITORY / ZOO))["TEACHERS"]


def _variants(file):
    """Of a config file: none, or its `VARIANTS`."""
    return runpy.run_path(str(REPOSITORY / file)).get("VARIANTS", (None,))


IDLE = {"distillation.optimizer": "adamw", "distillation.momentum": "0.5"}
CASES = [(file, variant) for file in FILES for variant in _variants(file)]


def _config(file, variant):
    name = str(REPOSITORY / file) + (f":{variant}" if variant else "")
    return config_files.read_settings(name)


def test_there_are_configs():
    assert {"configs/mnist.py", "configs/teachers/mnist.py"} <= set(FILES)
    assert ("configs/mnist.py", "smoke") in CASES


@pytest.mark.parametrize(("file", "variant"), CASES)
def test_config_is_valid(file, variant):
    settings = _config(file, variant)
    is_teacher = file.startswith("configs/teachers/")
    assert isinstance(settings, config.TeacherTrainingConfig) == is_teacher
    if not is_teacher:
        for asked in (settings.teacher, settings.student):
            registry.create(asked.name, arguments=asked.arguments)


@pytest.mark.parametrize("variant", TEACHERS)
def test_the_zoo_has_one_recipe(variant):
    settings = _config(ZOO, variant)
    own = config.ExperimentConfig(name="own")
    for group in ("targets", "synthesis", "distillation"):
        assert getattr(settings, group) == getattr(own, group)
    for asked in (settings.teacher, settings.student):
        registry.create(asked.name, arguments=asked.arguments)


def test_half_of_the_zoo_is_judged_on():
    parts = [teacher.part for teacher in TEACHERS.values()]
    assert sorted(set(parts)) == ["chosen", "judged"]
    assert abs(parts.count("chosen") - parts.count("judged")) <= 2


@pytest.mark.parametrize("file", FILES)
def test_a_copy_of_a_config_is_as_good(file, tmp_path):
    """Somewhere else, alone: whatever it starts from, and no refusal for its place."""
    copy = shutil.copy(REPOSITORY / file, tmp_path / "my.py")
    for variant in _variants(file):
        name = f"{copy}:{variant}" if variant else str(copy)
        found = config_files.read_settings(name)
        assert found == _config(file, variant)
        # What the command line sets must have an effect, as with the shipped file.
        with pytest.raises(ConfigError, match=r"no effect|not a setting"):
            config_files.read_settings(name, IDLE)


def test_a_copy_starts_from_what_lies_beside_it(tmp_path):
    for name in ("mnist.py", "fashion_mnist.py"):
        text = (REPOSITORY / "configs" / name).read_text()
        text = text.replace("init_scale = 1.0", "init_scale = 0.7")
        (tmp_path / name).write_text(text)
    found = config_files.read_settings(f"{tmp_path / 'fashion_mnist.py'}:noise")
    assert found.synthesis.init_scale == 0.7


def test_names_are_unique():
    """They name the default work directories."""
    names = [_config(file, variant).name for file, variant in CASES]
    assert len(set(names)) == len(names), sorted(names)


@pytest.mark.parametrize("file", FILES)
def test_file_opens_with_its_command(file):
    docstring = runpy.run_path(str(REPOSITORY / file))["__doc__"]
    commands = re.findall(r"python -m dfkd_jax\.main --config=(\S+)", docstring)
    assert commands, f"{file} does not say how it is run"
    assert {command.split(":")[0] for command in commands} == {file}
    for command in commands:
        variant = command.partition(":")[2]
        assert not variant or (file, variant) in CASES


@pytest.mark.parametrize("file", [file for file, variant in CASES if variant])
def test_unknown_variant_is_refused(file):
    with pytest.raises(config.ConfigError, match="no variant 'nonsense'"):
        _config(file, "nonsense")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as a wheel brings it, in a folder of its own."""
    for needed in ("setuptools", "wheel", "pip"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    root = tmp_path_factory.mktemp("wheel")
    source, target = root / "source", root / "target"
    source.mkdir()
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    for name in ("dfkd_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index"]
    for command in (
        ["wheel", *options, "--no-build-isolation", "-w", root, source],
        ["install", *options, "--target", target, "dfkd_jax", "-f", root],
    ):
        done = subprocess.run([*pip, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return target


def test_installed_copy_finds_its_configs_and_teacher(lab, installed, tmp_path):
    program = """
import dfkd_jax, runpy, sys
from dfkd_jax import config_files
from dfkd_jax.teachers import weights
folder = config_files.config_folder()
print(dfkd_jax.__file__, folder, *weights.shipped().values(), sep="\\n")
print(*sorted(f"configs/{path.relative_to(folder)}" for path in folder.rglob("*.py")))
"""
    environment = lab.runner.environment | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    *paths, configs = done.stdout.splitlines()
    assert all(path.startswith(str(installed)) for path in paths)
    assert any(path.endswith("mnist_lenet5.safetensors") for path in paths)
    names = {name for name in configs.split() if not name.endswith("__init__.py")}
    assert names == set(FILES)
    modules = {
        path.relative_to(REPOSITORY) for path in (REPOSITORY / "dfkd_jax").rglob("*.py")
    }
    assert {path for path in modules if not (installed / path).is_file()} == set()


@pytest.mark.full
def test_installed_copy_makes_a_student_from_any_folder(
    lab, installed, finished_workdir, tmp_path
):
    arguments = lab.arguments(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "dfkd_jax.main", *arguments],
        capture_output=True,
        text=True,
        env=lab.runner.environment | {"PYTHONPATH": str(installed)},
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(finished_workdir)


def test_python_makes_what_the_command_makes(lab, finished_workdir, tmp_path):
    arguments = (tmp_path / "run", lab.empty)
    without_pictures = {figures.SWITCH: "off"}
    command = lab.runner.call(tiny_runs.run_from_python, *arguments, **without_pictures)
    assert command.wait() == 0, command.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(finished_workdir)
    student = fingerprint(finished_workdir)["student"]
    assert command.stdout.splitlines()[-1] == f"lenet5_half {student}"


def test_python_trains_no_teacher(tmp_path):
    with pytest.raises(config.ConfigError, match=r"use `python -m dfkd_jax\.main`"):
        api.run("configs/teachers/mnist.py", workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
