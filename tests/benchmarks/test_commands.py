"""Every measurement runs at its smallest size; its times mean nothing then."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dfkd_jax.reporting import figures

ROOT = pathlib.Path(__file__).parents[2]
# A module that cannot be imported is what a missing one looks like.
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules['torch'] = None; name = sys.argv.pop(1); "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def run(name, folder, *flags, torch=True):
    """The JSON that the command writes, and what it says on standard error."""
    output = folder / f"{name}.json"
    start = ["-m"] if torch else ["-c", WITHOUT_TORCH]
    flags = ["--quick", *flags, f"--output={output}"]
    done = subprocess.run(
        [sys.executable, *start, f"benchmarks.{name}", *flags],
        cwd=ROOT,
        env=os.environ | {figures.SWITCH: "off"},  # They take seconds.
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["benchmark"] == name
    assert found["facts"]["machine"]["backend"] == "cpu"
    assert found["facts"]["versions"]["jax"]
    assert f"benchmarks.{name}" in found["facts"]["command"]
    return found, done.stderr


@pytest.mark.parametrize(
    "name", ["synthesis", pytest.param("distillation", marks=pytest.mark.full)]
)
def test_steps_without_torch(tmp_path, name):
    found, stderr = run(name, tmp_path, "--networks=lenet5", torch=False)
    assert "PyTorch is not here" in stderr
    for result in found["networks"].values():
        assert {row["rival"] for row in result["rows"]} == {"dfkd_jax"}
    assert found["ratios"] == {}


@pytest.mark.full
@pytest.mark.parametrize("name", ["synthesis", "distillation"])
def test_steps_beside_torch(tmp_path, name):
    pytest.importorskip("torch", reason='needs the extra "bench"')
    found, _ = run(name, tmp_path, "--networks=lenet5")
    for result in found["networks"].values():
        assert {row["rival"] for row in result["rows"]} == {
            "dfkd_jax",
            "PyTorch eager",
        }
        # That both do the same work is checked by the command as well.
        assert result["same_work"]["loss"] < 1e-4
        assert result["same_work"]["gradient"] < 1e-4
    assert found["ratios"].keys() >= {
        f"{name}: PyTorch eager at its best batch / dfkd_jax"
        for name in found["networks"]
    }


@pytest.mark.full
def test_scaling_over_devices(tmp_path):
    found, _ = run("scaling", tmp_path, "--parts=devices")
    assert [(row["step"], row["devices"]) for row in found["devices"]] == [
        ("synthesis", 1),
        ("synthesis", 2),
        ("distillation", 1),
        ("distillation", 2),
    ]
    assert all(row["images_per_second"]["median"] > 0 for row in found["devices"])


@pytest.mark.full
def test_stages_add_up(tmp_path):
    found, _ = run("stages", tmp_path)
    cold = found["cold"]
    parts = [value for name, value in cold.items() if name != "wall"]
    np.testing.assert_allclose(sum(parts), cold["wall"])
    assert cold["synthesis"] > 0
    assert cold["distillation"] > 0
    # The second run compiles less: it reads the cache of the first.
    assert found["warm"]["compile"]["median"] < cold["compile"]


@pytest.mark.full
def test_gpu_goes_on_where_it_was(tmp_path):
    output = f"--output={tmp_path}/gpu.json"

    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", "--quick", output, *flags],
            cwd=ROOT,
            env=os.environ | {figures.SWITCH: "off"},
            capture_output=True,
            text=True,
        )

    early = run("--minutes=0")
    assert early.returncode == 1
    assert "Left: tests, mnist, synthesis-lenet5, distillation-lenet5" in early.stderr
    done = run()
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert len(record) == 6
    assert {part["ended"] for part in record.values()} == {"well"}
    student = json.loads((tmp_path / "gpu/run/results.json").read_text())
    assert student["expected"]
    record["mnist"]["ended"] = "out of time"
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    again = run()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("well after") == 1


@pytest.mark.parametrize(
    "name",
    [
        "synthesis",
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in ("distillation", "stages", "scaling", "cost", "gpu")
        ),
    ],
)
def test_help_shows_a_command_and_its_duration(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"python -m benchmarks.{name}\n" in done.stdout
    assert "on two cores" in done.stdout
