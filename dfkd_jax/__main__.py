"""One command for all: `dfkd distill …`, or `python -m dfkd_jax distill …`."""

import runpy
import sys

from dfkd_jax.errors import ConfigError, did_you_mean

# Module and purpose of each; `dfkd NAME --help` has the rest.
COMMANDS = {
    "distill": ("main", "a student from a teacher's weights alone"),
    "train-teacher": ("main", "a teacher of your own, from real data"),
    "evaluate": ("evaluate", "accuracy, calibration, agreement with the teacher"),
    "inspect": ("inspect", "the layers of a teacher, and which can be modeled"),
    "report": ("report", "the page of a run, or one that compares several"),
    "export": ("export", "ONNX, StableHLO, safetensors; pseudo samples"),
    "sweep": ("sweep", "many settings and seeds, and a table"),
    "verify": ("verify", "recomputes what a run claims"),
    "neighbors": ("neighbors", "how near pseudo samples come to real images"),
    "prepare": ("data.prepare", "data sets, ahead of their first use"),
}
EXAMPLE = "dfkd distill --config=configs/mnist.py"


def main() -> None:
    """Runs the command that the first argument names, as `python -m` would."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "-help", "help"):
        print(usage())
        return
    if name not in COMMANDS:
        close = did_you_mean(name, COMMANDS)
        error = ConfigError(f"{name!r} is no command: see dfkd --help.{close}")
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    sys.argv = [sys.argv[0], *words]
    runpy.run_module(
        f"dfkd_jax.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True
    )


def usage() -> str:
    """What `dfkd --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dfkd COMMAND …        (or python -m dfkd_jax COMMAND …)",
            "",
            *lines,
            "",
            f"for example: {EXAMPLE}",
            "dfkd COMMAND --help says what a command takes.",
        ]
    )


if __name__ == "__main__":
    main()
