"""What a run prints at the end."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dfkd_jax.runtime import progress


def print_summary(results: dict[str, Any]) -> None:
    """A short table of `results.json`."""
    teacher, student = results["teacher"], results["student"]
    split = results.get("split", "test")
    accuracies = [network[f"{split}_accuracy"] for network in (teacher, student)]
    gap = accuracies[0] - accuracies[1]
    ratio = teacher["parameters"] / student["parameters"]
    low, high = student["evaluation"]["accuracy_interval_95"]
    table = Table(title=f"{results['experiment']}, seed {results['seed']}")
    table.add_column("")
    table.add_column("network")
    table.add_column("parameters", justify="right")
    table.add_column(f"{split} accuracy", justify="right")
    table.add_row(
        "teacher",
        teacher["network"],
        f"{teacher['parameters']:,}",
        f"{accuracies[0]:.2%}",
    )
    table.add_row(
        "student",
        student["network"],
        f"{student['parameters']:,}",
        f"{accuracies[1]:.2%}",
        style="bold",
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if not results["data_free"]:
        progress.say(f"NOT data-free: the student learned from {results['real_data']}.")
    seconds = results["seconds"]
    agreement = student["evaluation"]["agreement_with_teacher"]
    progress.say(
        f"{ratio:.2f} times smaller, {100 * gap:.2f} points below the teacher "
        f"(95 % interval of the student {low:.2%} to {high:.2%}), "
        f"agrees with it on {agreement:.2%} of the {split} set"
    )
    say_expected(results)
    stages = ("prepare", "synthesis", "distillation", "evaluation")
    progress.say(
        "time: "
        + ", ".join(
            f"{stage} {progress.duration(seconds[stage])}"
            for stage in stages
            if stage in seconds
        )
    )
    for warning in results.get("warnings", ()):
        progress.warn(warning)


def say_expected(results: Mapping[str, Any]) -> None:
    """One line of what a student is worth as far as that is told without data."""
    if expected := results.get("expected"):
        progress.say(
            "Expected to agree with the teacher on real data: "
            + in_percent(expected)
            + assumption(expected)
        )


def assumption(expected: Mapping[str, Any]) -> str:
    """What an estimate takes for granted, as in ", if the teacher …", or nothing."""
    if not (accuracy := expected.get("assumed_accuracy")):
        return ""
    return (
        f", if the teacher is right on {100 * accuracy:.0f} % of them (tell how often "
        "it is by data.teacher_accuracy)"
    )


def in_percent(expected: Mapping[str, Any]) -> str:
    """As in "97 % (94 to 99)"."""
    share, low, high = (
        f"{100 * expected[name]:.0f}" for name in ("agreement", "low", "high")
    )
    return f"{share} % ({low} to {high})"
