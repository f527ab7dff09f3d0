"""One deliberate fault in each folder of the package: does the daily layer catch it?

    python tests/mutations.py
    python tests/mutations.py targets models

Each fault is put into a copy of the repository, and the tests of that folder are run
there until one fails. Prints a line a fault; status 1 where one was not caught. A few
minutes on two cores.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A line of the package that says something else.

    Attributes:
        file: Below `dfkd_jax`.
        right: What stands there, once.
        wrong: What is put in its place.
        tests: Some of the daily layer, below `tests`.
    """

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = {
    "targets": Fault(
        "targets/gaussian.py",
        '(sigma if scale == "variance" else sigma**2)',
        '(sigma**2 if scale == "variance" else sigma)',
        "targets",
    ),
    "synthesis": Fault(
        "synthesis/losses.py",
        "jax.nn.log_softmax(logits / temperature)",
        "jax.nn.log_softmax(logits)",
        "synthesis",
    ),
    "distillation": Fault(
        "distillation/losses.py",
        "-(temperature**2) * jnp.sum",
        "-jnp.sum",
        "distillation/test_losses.py",
    ),
    "baselines": Fault(
        "baselines/losses.py",
        "return jnp.sum(mean_probs * jnp.log10(safe))",
        "return -jnp.sum(mean_probs * jnp.log10(safe))",
        "baselines",
    ),
    "data": Fault(
        "data/datasets.py",
        '"validation": ("train", end_train, self.num_train)',
        '"validation": ("train", 0, self.num_train - end_train)',
        "data",
    ),
    "exporting": Fault(
        "exporting/networks.py",
        "trained.model.logits(variables, trained.normalize(pixels))",
        "trained.model.logits(variables, pixels)",
        "exporting",
    ),
    "models": Fault(
        "models/fast.py",
        "around.append((reach - low, reach - high + unseen))",
        "around.append((reach - low, reach - high))",
        "models/test_fast.py",
    ),
    "runtime": Fault(
        "runtime/rng.py",
        "jax.random.fold_in(key, zlib.crc32(name.encode()))",
        "jax.random.fold_in(key, 0)",
        "runtime",
    ),
    "reporting": Fault(
        "reporting/findings.py",
        "return float(entropy(labels.mean(0)) - entropy(labels).mean())",
        "return float(entropy(labels.mean(0)) + entropy(labels).mean())",
        "reporting/test_findings.py",
    ),
    "sources": Fault(
        "sources/shapes.py",
        "image = jnp.where(is_kept, image, image[:, ::-1])",
        "image = jnp.where(is_kept, image, image[::-1])",
        "sources",
    ),
    "sweeps": Fault(
        "sweeps/plan.py",
        'f"--config.seed={seed}"',
        '"--config.seed=0"',
        "sweeps",
    ),
    "teachers": Fault(
        "teachers/pytorch.py",
        "order.transpose(1, 2, 0).ravel()",
        "order.ravel()",
        "teachers",
    ),
    "methods": Fault(
        "methods/pilot.py",
        "if spread(draw(float(np.exp(middle)), keys)) < DECIDED:",
        "if spread(draw(float(np.exp(middle)), keys)) > DECIDED:",
        "methods",
    ),
}


def is_caught(fault: Fault) -> bool:
    """Whether a test fails on a copy of the repository that has the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "runs", ".venv*")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / "dfkd_jax" / fault.file
        text = path.read_text()
        if text.count(fault.right) != 1:
            sys.exit(f"{fault.file} does not say {fault.right!r} once: mend this list.")
        path.write_text(text.replace(fault.right, fault.wrong))
        done = subprocess.run(
            # In one process: several end an -x with another status.
            [sys.executable, "-m", "pytest", "-x", "-n0", f"tests/{fault.tests}"],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    # 1: tests were run and some failed. Anything else is no proof.
    return done.returncode == 1


def main() -> int:
    """Tries the faults of the folders that are named, or all."""
    missed = 0
    for name in sys.argv[1:] or FAULTS:
        begun = time.monotonic()
        caught = is_caught(FAULTS[name])
        missed += not caught
        verdict = "caught" if caught else "NOT CAUGHT"
        print(f"{name:13} {verdict:11} {time.monotonic() - begun:4.0f} s", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
