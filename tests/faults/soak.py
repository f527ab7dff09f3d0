"""Starts a small run, kills or stops it, and starts it again, for as long as is said.

    python tests/faults/soak.py --minutes=30 --output=results/faults/soak.json

Every student must have the digest of one clean run; else the exit status is 1.
"""

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def soak(minutes: float, seed: int, folder: pathlib.Path) -> dict:
    """Counts of what was done; raises AssertionError for another digest."""
    import laboratory
    from faults import wait_for_handler
    from stages import Synthesis

    from dfkd_jax.runtime import files, parallel, workdir

    (folder / "lab").mkdir()
    stage = Synthesis(laboratory.open_lab(folder / "lab"), folder / "stage")
    clean = stage.undisturbed()
    longest = 1.1 * stage.seconds
    rng = random.Random(seed)
    counts = {"runs": 0, "starts": 0, **dict.fromkeys((s.name for s in SIGNALS), 0)}
    started = time.monotonic()
    while time.monotonic() - started < 60 * minutes:
        run = folder / "run"
        shutil.copytree(stage.before(), run)
        status = None
        while status != stage.done:
            command = stage.start(run)
            counts["starts"] += 1
            number = rng.choice(SIGNALS)
            if number != signal.SIGKILL:
                wait_for_handler(command)
            time.sleep(rng.uniform(0, longest))
            if command.running:
                with contextlib.suppress(ProcessLookupError):  # It ended just now.
                    os.kill(command.pid, number)
                    counts[number.name] += 1
            status = command.wait()
            assert "Traceback" not in command.stderr, command.stderr
        assert stage.result(run) == clean, "another digest than that of a clean run"
        counts["runs"] += 1
        shutil.rmtree(run)
        left = minutes - (time.monotonic() - started) / 60
        print(f"{counts}, equal digests; {max(0, left):.1f} min left", flush=True)
    return {
        **counts,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "digest": files.digest(clean),
        "machine": parallel.describe(),
        "versions": workdir.versions(),
    }


def main() -> int:
    """Soaks and writes the counts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="")
    arguments = parser.parse_args()
    from dfkd_jax.runtime import files

    pathlib.Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = soak(arguments.minutes, arguments.seed, pathlib.Path(folder))
        except AssertionError as error:
            print(f"ERROR: {error}", file=sys.stderr)
            return 1
    found["command"] = "python tests/faults/soak.py " + " ".join(sys.argv[1:])
    if arguments.output:
        files.write_json(pathlib.Path(arguments.output), found)
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests" / name) for name in ("faults", "system")]
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
