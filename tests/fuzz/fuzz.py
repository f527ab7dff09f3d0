"""Feeds the parsers with broken files until something other than an error comes out.

    python tests/fuzz/fuzz.py --inputs=100000 --output=results/faults/fuzz.json

One process a target, with Atheris (guided by coverage) where it is installed, else with
the mutations of `mutate.py`, blindly. Counts inputs, what was taken and refused, and
the memory that a target took. An input that a parser does not survive is written to the
current folder, and the exit status is 1.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import random
import resource
import subprocess
import sys
import time

SEED = 20_260
MOST_MEMORY = 512  # MiB by which a target may grow.


def megabytes() -> float:
    """The most memory that this process had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_blindly(name: str, inputs: int, seed: int) -> dict:
    """One target on mutated seeds."""
    import mutate
    import parsers

    target, make_seeds = parsers.TARGETS[name]
    seeds = make_seeds()
    if not seeds:
        return {"skipped": "PyTorch is not installed"}
    assert (
        all(parsers.call(target, data) for data in seeds[:1]) or name in ALWAYS_REFUSED
    )
    rng = random.Random(f"{seed} {name}")
    before, taken, longest, data = megabytes(), 0, 0.0, b""
    started = time.monotonic()
    try:
        for _ in range(inputs):
            data = mutate.mutated(seeds, rng)
            start = time.monotonic()
            taken += parsers.call(target, data)
            longest = max(longest, time.monotonic() - start)
    except BaseException:
        keep(name, data)
        raise
    grown = megabytes() - before
    assert grown < MOST_MEMORY, f"{name} grew by {grown:.0f} MiB"
    return {
        "engine": "mutations",
        "inputs": inputs,
        "taken": taken,
        "refused": inputs - taken,
        "longest_seconds": round(longest, 3),
        "memory_growth_mib": round(grown, 1),
        "seconds": round(time.monotonic() - started, 1),
    }


# What cannot be made here in the published form.
ALWAYS_REFUSED = ("original IDX files", "CIFAR-10 archive", "package")


def run_guided(name: str, inputs: int, seed: int) -> None:
    """One target under Atheris, which ends the process; counts go to a file before."""
    import atheris

    with atheris.instrument_imports(include=["dfkd_jax"]):
        import parsers
    target, make_seeds = parsers.TARGETS[name]
    corpus = parsers.folder() / "corpus"
    corpus.mkdir()
    for place, data in enumerate(make_seeds()):
        (corpus / str(place)).write_bytes(data)
    before, started = megabytes(), time.monotonic()
    counts = {
        "engine": f"atheris {importlib.metadata.version('atheris')}",
        "inputs": 0,
        "taken": 0,
    }

    def one(data):
        counts["inputs"] += 1
        counts["taken"] += parsers.call(target, data)
        if counts["inputs"] == inputs:  # Atheris ends the process itself.
            counts["refused"] = inputs - counts["taken"]
            counts["memory_growth_mib"] = round(megabytes() - before, 1)
            counts["seconds"] = round(time.monotonic() - started, 1)
            print(json.dumps(counts), flush=True)

    options = [f"-runs={inputs}", f"-seed={seed}", "-rss_limit_mb=4096", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, "-max_len=65536", str(corpus)], one)
    atheris.Fuzz()


def keep(name: str, data: bytes) -> None:
    """Writes the input that a parser did not survive."""
    path = pathlib.Path(f"crash-{name.replace(' ', '-').replace('/', '-')}")
    path.write_bytes(data)
    print(f"{name}: the input is kept as {path}", file=sys.stderr)


def main() -> int:
    """Runs all targets, each in a process of its own; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", default="", help="One target.")
    parser.add_argument("--output", default="")
    parser.add_argument(
        "--engine", choices=["auto", "atheris", "mutations"], default="auto"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    engine = arguments.engine
    if engine == "auto":
        found = importlib.util.find_spec("atheris")
        engine = "atheris" if found else "mutations"
    if arguments.child:
        if engine == "atheris":
            run_guided(arguments.only, arguments.inputs, arguments.seed)
        counts = run_blindly(arguments.only, arguments.inputs, arguments.seed)
        print(json.dumps(counts))
        return 0

    import parsers

    from dfkd_jax.runtime import files, workdir

    pathlib.Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    results, failed = {}, False
    for name in [arguments.only] if arguments.only else parsers.TARGETS:
        command = [sys.executable, __file__, "--child", f"--only={name}"]
        command += [f"--inputs={arguments.inputs}", f"--seed={arguments.seed}"]
        done = subprocess.run(
            [*command, f"--engine={engine}"],
            capture_output=True,
            text=True,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        failed |= done.returncode != 0 or not lines
        results[name] = (
            json.loads(lines[-1]) if lines else {"failed": done.stderr[-2_000:]}
        )
        print(f"{name}: {results[name]}", flush=True)
        if done.returncode:
            print(done.stderr[-4_000:], file=sys.stderr)
    if arguments.output and not failed:
        found = {
            "command": f"python tests/fuzz/fuzz.py --inputs={arguments.inputs} "
            f"--output={arguments.output}",
            "seed": arguments.seed,
            "targets": results,
            "versions": workdir.versions(),
        }
        files.write_json(pathlib.Path(arguments.output), found)
    return int(failed)


if __name__ == "__main__":
    root = pathlib.Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(pathlib.Path(__file__).parent)]
    sys.exit(main())
