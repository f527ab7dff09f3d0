"""All that is to be known of a GPU, in the order of its worth, within ten minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --data_dir=~/tensorflow_datasets

Unit tests that need no data; the MNIST job, teacher to student; synthesis and
distillation steps of LeNet-5, a user's network, AlexNet and ResNet-34 beside eager and
compiled PyTorch, with their share of the peak. Each part is a command with a log of its
own. Started again, it goes on with the parts that are left, and says which they are.

About 10 minutes on one H100; with --quick 2 on two cores. Without PyTorch its rows are
left out.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import time

from benchmarks import measure
from dfkd_jax.runtime import files, progress

NETWORKS = ("lenet5", "cnn_wide", "alexnet", "resnet34")
TESTS = ("models", "synthesis", "distillation", "targets", "sources")


def main() -> None:
    parser = measure.parser("gpu", __doc__)
    parser.add_argument(
        "--data_dir",
        help="prepared MNIST for the student's accuracy; without, it is not evaluated",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="no part is started, and none goes on, beyond these; default: %(default)s",
    )
    arguments = parser.parse_args()
    output = arguments.output or pathlib.Path("benchmarks/results/gpu.json")
    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    record = json.loads(output.read_text()) if output.exists() else {}
    parts = commands(folder, quick=arguments.quick, data_dir=arguments.data_dir)
    end = time.monotonic() + 60 * arguments.minutes
    for name, command in parts.items():
        if is_done(record.get(name)) or (left := end - time.monotonic()) < 1:
            continue
        progress.say(f"{name}: {shlex.join(command)}")
        record[name] = run(command, folder / f"{name}.log", seconds=left)
        files.write_json(output, record)
        progress.say(f"  {record[name]['ended']} after {record[name]['seconds']:.0f} s")
    missing = [name for name in parts if not is_done(record.get(name))]
    if missing:
        sys.exit(
            f"Left: {', '.join(missing)}. Logs are in {folder}; the same command goes "
            "on with them."
        )
    progress.say(f"All parts are done: {output}")


def is_done(part: dict | None) -> bool:
    """Whether a part ended well."""
    return part is not None and part["ended"] == "well"


def commands(
    folder: pathlib.Path, *, quick: bool, data_dir: str | None
) -> dict[str, list[str]]:
    """Parts by name, in the order of their worth."""
    python = [sys.executable, "-m"]
    tests = [f"tests/{name}" for name in (TESTS[1:2] if quick else TESTS)]
    mnist = ["--config=configs/mnist.py" + ":smoke" * quick, f"--workdir={folder}/run"]
    mnist += [f"--config.data.dir={data_dir}" if data_dir else "--config.data.dataset="]
    found = {
        "tests": [*python, "pytest", "-q", "-n0", *tests],
        "mnist": [*python, "dfkd_jax.main", *mnist],
    }
    for network in NETWORKS[:2] if quick else NETWORKS:
        for step in ("synthesis", "distillation"):
            flags = [f"--networks={network}", *["--quick"] * quick]
            if step == "synthesis":
                flags.append(f"--compile={network}")
            flags.append(f"--output={folder}/{step}-{network}.json")
            found[f"{step}-{network}"] = [*python, f"benchmarks.{step}", *flags]
    return found


def run(command: list[str], log: pathlib.Path, *, seconds: float) -> dict[str, object]:
    """Command, seconds, and how it ended: "well", or in which way not."""
    begun = time.monotonic()
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, timeout=seconds
            )
            ended = "well" if done.returncode == 0 else f"status {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = "out of time"
    return {
        "command": shlex.join(["python", *command[1:]]),
        "seconds": time.monotonic() - begun,
        "ended": ended,
    }


if __name__ == "__main__":
    main()
