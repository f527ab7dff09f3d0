"""Where every second of a run goes, from the command to its last line.

    python -m benchmarks.stages
    python -m benchmarks.stages --config=configs/mnist.py:smoke --runs=5

Runs the command as a process in a temporary folder: once with an empty compilation
cache, then `--runs` times with the cache that this left. `start` is the interpreter and
the imports, measured by themselves; `compile` is tracing, compiling and reading the
cache, taken off the stages; `rest` is what lies between them: pictures, results, exit.
The data set has to be there, or is fetched in the first run.

About 10 minutes a run on two cores with the default config, one cold and one warm run.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import measure
from dfkd_jax.runtime import files, progress

STAGES = ("prepare", "synthesis", "distillation", "evaluation")
IMPORTS = "import dfkd_jax.main, dfkd_jax.pipeline, dfkd_jax.methods.soft_targets"
QUICK = (
    "--config.synthesis.num_images=200",
    "--config.synthesis.num_steps=20",
    "--config.distillation.num_steps=60",
)


def main() -> None:
    parser = measure.parser("stages", __doc__)
    parser.add_argument("--config", default="configs/mnist.py")
    parser.add_argument("--runs", type=int, default=1, help="with the warm cache")
    parser.add_argument(
        "settings", nargs="*", help="flags for main, after --: -- --config.seed=1"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.config = "configs/mnist.py:smoke"
        arguments.settings = [*QUICK, *arguments.settings]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (cold, compiled_cold), *warm = (
            run(
                [f"--config={arguments.config}", *arguments.settings],
                root / f"run{index}",
                cache=root / "cache",
            )
            for index in range(1 + arguments.runs)
        )
        results = files.read_json(root / "run0" / "results.json")
    summary = {
        name: measure.spread([found[name] for found, _ in warm]) for name in cold
    }
    share = measure.spread(
        [
            (found["synthesis"] + found["distillation"]) / found["wall"]
            for found, _ in warm
        ]
    )
    wall = summary["wall"]["median"]
    measure.table(
        f"Seconds of {arguments.config}",
        ("", "cold cache", "warm cache", "% of warm"),
        [
            (name, cold[name], found["median"], 100 * found["median"] / wall)
            for name, found in summary.items()
        ],
    )
    progress.say(
        f"  Synthesis and distillation: {100 * share['median']:.1f} % when warm"
    )
    measure.report(
        "stages",
        arguments,
        {
            "facts": measure.facts(results["machine"]),
            "config": arguments.config,
            "settings": arguments.settings,
            "cold": cold,
            "warm": summary,
            "compiled_cold": compiled_cold,
            "compiled_warm": warm[0][1],
        },
        results["machine"]["backend"],
        ratios={"steps of synthesis and distillation / wall time, warm": share},
    )


def run(flags: list[str], workdir: pathlib.Path, *, cache: pathlib.Path) -> Any:
    """Seconds of one run by what they went to, and of what was compiled."""
    environment = os.environ | {"XDG_CACHE_HOME": str(with_data(cache))}
    start = elapsed([sys.executable, "-c", IMPORTS], environment)
    wall, notes = observe(
        "dfkd_jax.main", [*flags, f"--workdir={workdir}"], environment
    )
    seconds = files.read_json(workdir / "seconds.json")
    compiling = notes["compile_in"]
    stages = {name: seconds.get(name, 0.0) for name in STAGES}
    found = {"wall": wall, "start": start}
    for name, total in stages.items():
        found[name] = total - compiling.get(name, 0.0)
    found["compile"] = notes["compile"]
    found["rest"] = wall - sum(list(found.values())[1:])
    return found, notes["compiled"]


def with_data(cache: pathlib.Path) -> pathlib.Path:
    """`cache` with the user's prepared data sets in it, but nothing compiled."""
    data = cache / "dfkd_jax" / "tfds"
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        there = pathlib.Path(home) / "dfkd_jax" / "tfds"
        if there.exists():
            data.symlink_to(there)
    return cache


def observe(
    module: str, flags: list[str], environment: dict[str, str]
) -> tuple[float, dict[str, float]]:
    """Seconds of a command, and its notes (see `benchmarks.observed`)."""
    with tempfile.TemporaryDirectory() as folder:
        notes = pathlib.Path(folder) / "notes.json"
        command = [sys.executable, "-m", "benchmarks.observed", notes, module, *flags]
        seconds = elapsed([str(part) for part in command], environment)
        return seconds, json.loads(notes.read_text())


def elapsed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds until `command` is done; what it prints is shown if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    # 3: there is no test set to evaluate on; everything else is measured.
    if done.returncode not in (0, 3):
        progress.warn(" ".join(command))
        sys.exit(done.stdout + done.stderr)
    return seconds


if __name__ == "__main__":
    main()
