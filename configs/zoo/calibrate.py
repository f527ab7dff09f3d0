"""Fits the estimate of `dfkd_jax/methods/referee.py` on students of the zoo.

    python -m configs.zoo.calibrate FOLDER…    of finished runs, with their results.json

What the estimate needs of the runs joins results/zoo/students.json. It is fitted on
students of teachers whose part is "chosen" and judged on the others; of the first, each
is told by a fit that has seen no student of its teacher. Writes
dfkd_jax/methods/calibration.json, and prints how far off it is.
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.zoo.teachers import TEACHERS
from dfkd_jax.methods import referee
from dfkd_jax.runtime import files

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDENTS = ROOT / "results/zoo/students.json"
FIGURES = [
    f"{kind}.{figure}"
    for kind in ("shapes", "mixed", "noise")
    for figure in ("agreement", "explained")
]
MAX_FIGURES = 2
RIDGE = 0.1  # Pull of weights to 0, of a student's weight in the fit.
SURE = 90  # Percent of students that lie within the margin.


def collect(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of results/zoo/students.json, with those of runs in `folders` anew."""
    known = json.loads(STUDENTS.read_text())["students"] if STUDENTS.exists() else []
    rows = {_key(row): row for row in known}
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("results.json")):
            found = json.loads(path.read_text())
            if (row := _row(found)) is not None:
                rows[_key(row)] = row
    return [rows[key] for key in sorted(rows)]


def _key(row):
    return (
        row["teacher"],
        row["num_steps"],
        row["num_images"],
        row["split"],
        row["seed"],
    )


def _row(found):
    teacher = found["experiment"].removeprefix("zoo_")
    split = found["split"]
    evaluation = found["student"].get("evaluation")
    if teacher not in TEACHERS or not evaluation or "referee" not in found:
        return None
    return {
        "teacher": teacher,
        "part": TEACHERS[teacher].part,
        "num_images": found["config"]["synthesis"]["num_images"],
        "num_steps": found["config"]["distillation"]["num_steps"],
        "seed": found["seed"],
        "split": split,
        "teacher_accuracy": found["teacher"][f"{split}_accuracy"],
        "accuracy": found["student"][f"{split}_accuracy"],
        "agreement": evaluation["agreement_with_teacher"],
        "referee": found["referee"],
        "warnings": [text.partition(".")[0] for text in found["warnings"]],
        "seconds": round(sum(found["seconds"].values())),
    }


def _features(rows, names):
    table = [
        [
            referee.log_odds(
                referee.figure(row["referee"], name, row["teacher_accuracy"])
            )
            for name in names
        ]
        for row in rows
    ]
    return np.array(table).reshape(len(rows), len(names))


def _fit(rows, names):
    """Intercept and weights; every teacher counts the same."""
    x = np.column_stack([np.ones(len(rows)), _features(rows, names)])
    y = np.array([referee.log_odds(row["agreement"]) for row in rows])
    teachers = [row["teacher"] for row in rows]
    weight = np.array([1 / teachers.count(teacher) for teacher in teachers])
    pull = RIDGE * np.diag([0.0, *[1.0] * len(names)])
    return np.linalg.solve(x.T @ (weight[:, None] * x) + pull, x.T @ (weight * y))


def _tell(rows, names, fitted):
    """Log odds of agreement."""
    return fitted[0] + _features(rows, names) @ fitted[1:]


def _left_out(rows, names):
    """Each student told by a fit without its teacher, as log odds."""
    told = np.empty(len(rows))
    for teacher in {row["teacher"] for row in rows}:
        own = np.array([row["teacher"] == teacher for row in rows])
        others = [row for row in rows if row["teacher"] != teacher]
        own_rows = [row for row in rows if row["teacher"] == teacher]
        told[own] = _tell(own_rows, names, _fit(others, names))
    return told


def _share(log_odds):
    return 1 / (1 + np.exp(-log_odds))


def _errors(rows, told):
    return np.abs(_share(told) - np.array([row["agreement"] for row in rows]))


def main(folders: Sequence[str]) -> None:
    """See above."""
    students = collect(folders)
    STUDENTS.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(STUDENTS, {"students": students})
    chosen = [row for row in students if row["part"] == "chosen"]
    judged = [row for row in students if row["part"] == "judged"]
    scores = [referee.score(row["referee"]) for row in chosen]
    calibration = {
        "made_by": "configs/zoo/calibrate.py from results/zoo/students.json",
        "teachers": sorted({row["teacher"] for row in chosen}),
        "num_students": len(chosen),
        "score_range": [round(min(scores), 4), round(max(scores), 4)],
    }
    for title, always in (
        ("with_accuracy", (referee.TEACHER,)),
        ("without_accuracy", ()),
    ):
        calibration[title] = _calibrate(title, chosen, judged, always)
    files.write_json(referee.CALIBRATION, calibration)


def _calibrate(title, chosen, judged, always):
    """The figures that tell most of the chosen ones, and what they tell; prints it."""
    choices = [
        (*names, *always)
        for number in range(1, MAX_FIGURES + 1)
        for names in itertools.combinations(FIGURES, number)
    ]
    mean_errors = [_errors(chosen, _left_out(chosen, each)).mean() for each in choices]
    names = choices[int(np.argmin(mean_errors))]
    fitted = _fit(chosen, names)
    left_out = _left_out(chosen, names)
    truth = np.array([referee.log_odds(row["agreement"]) for row in chosen])
    print(f"\n== {title}: {', '.join(names)}")
    _print("chosen, each without its teacher", chosen, left_out)
    told = _tell(judged, names, fitted)
    _print("judged", judged, told)
    return {
        "intercept": round(float(fitted[0]), 4),
        "weights": {
            name: round(float(weight), 4)
            for name, weight in zip(names, fitted[1:], strict=True)
        },
        "margin": round(float(np.percentile(np.abs(truth - left_out), SURE)), 4),
        "mean_error": round(float(min(mean_errors)), 4),
        "mean_error_judged": round(float(_errors(judged, told).mean()), 4),
    }


def _print(title, rows, told):
    errors = _errors(rows, told)
    print(f"\n{title}: {len(rows)} students, mean error {errors.mean():.2%}")
    truth = np.array([row["agreement"] for row in rows])
    poor, called = truth < referee.POOR, _share(told) < referee.POOR
    print(
        f"below {referee.POOR:.0%}: {poor.sum()}, of these flagged "
        f"{(poor & called).sum()}; "
        f"false alarms {(called & ~poor).sum()} of {(~poor).sum()}"
    )
    for row, share, error in zip(rows, _share(told), errors, strict=True):
        print(
            f"{row['teacher']:<20} {row['num_steps']:>6} steps, seed {row['seed']}: "
            f"agreement {row['agreement']:.2%}, told {share:.2%}, off {error:.2%}; "
            f"accuracy {row['accuracy']:.2%} of {row['teacher_accuracy']:.2%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
