"""Fits the estimate of `dfkd_jax/methods/referee.py` on students of the zoo.

    python -m configs.zoo.calibrate FOLDER…    of finished runs, with their results.json

What the estimate needs of the runs joins results/zoo/students.json. It is fitted on
students of teachers whose part is "chosen" and judged on the others; of the first, each
is told by a fit that has seen no student of its teacher. Writes
dfkd_jax/methods/calibration.json, and prints how far off it is.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize

from configs.zoo.teachers import TEACHERS
from dfkd_jax.config import DistillationConfig
from dfkd_jax.methods import referee
from dfkd_jax.runtime import files

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDENTS = ROOT / "results/zoo/students.json"
FIGURES = [
    f"{kind}.{figure}"
    for kind in ("shapes", "mixed", "noise")
    for figure in ("agreement", "explained")
]
USUAL = DistillationConfig().num_steps
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
        "spread": found["pilot"]["temperature"],
        "warnings": [text.partition(".")[0] for text in found["warnings"]],
        "seconds": round(sum(found["seconds"].values())),
    }


def _figure(row, name):
    kind, _, which = name.partition(".")
    return row["referee"][kind][which]


def _tell(rows, name, fitted, accuracy=None):
    """Agreement by a fit; teachers are as accurate as they are, or as is assumed."""
    return np.array(
        [
            referee.model(
                fitted, _figure(row, name), accuracy or row["teacher_accuracy"]
            )
            for row in rows
        ]
    )


def _fit(rows, name):
    """Offset, slope and hardness by least squares, in units of `referee.deviation`."""
    truth = np.array([row["agreement"] for row in rows])
    units = np.array([referee.deviation(share) for share in truth])
    names = ("offset", "slope", "hardness")

    def residuals(values):
        fitted = dict(zip(names, values, strict=True))
        return (_tell(rows, name, fitted) - truth) / units

    bounds = ([-5, 0, 0], [8, 5, 3])
    found = scipy.optimize.least_squares(residuals, [1.5, 1.5, 0.5], bounds=bounds).x
    return {
        key: round(float(value), 4) for key, value in zip(names, found, strict=True)
    }


def _left_out(rows, name, accuracy=None):
    """Each student told by a fit without its teacher."""
    told = np.empty(len(rows))
    for teacher in {row["teacher"] for row in rows}:
        own = np.array([row["teacher"] == teacher for row in rows])
        others = [row for row in rows if row["teacher"] != teacher]
        own_rows = [row for row in rows if row["teacher"] == teacher]
        told[own] = _tell(own_rows, name, _fit(others, name), accuracy)
    return told


def _errors(rows, told):
    return np.abs(told - np.array([row["agreement"] for row in rows]))


def _mistakes(rows, told):
    """Poor students that are not flagged, and others that are."""
    truth = np.array([row["agreement"] for row in rows])
    return int(((truth < referee.POOR) != (told < referee.POOR)).sum())


def main(folders: Sequence[str]) -> None:
    """See above."""
    students = collect(folders)
    STUDENTS.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(STUDENTS, {"students": students})
    chosen = [row for row in students if row["part"] == "chosen"]
    judged = [row for row in students if row["part"] == "judged"]
    scores = [referee.score(row["referee"]) for row in chosen]
    spreads = [row["spread"] for row in chosen]
    calibration = {
        "made_by": "configs/zoo/calibrate.py from results/zoo/students.json",
        "teachers": sorted({row["teacher"] for row in chosen}),
        "num_students": len(chosen),
        "score_range": [round(min(scores), 4), round(max(scores), 4)],
        # Of teachers' logits; half and twice as large are taken for alike.
        "spread_range": [round(min(spreads) / 2, 4), round(2 * max(spreads), 4)],
    }
    left_out = {name: _left_out(chosen, name) for name in FIGURES}
    name = min(
        FIGURES,
        key=lambda name: (
            _mistakes(chosen, left_out[name]),
            _errors(chosen, left_out[name]).mean(),
        ),
    )
    fitted = _fit(chosen, name)
    accuracies = {row["teacher"]: row["teacher_accuracy"] for row in chosen}
    typical = round(float(np.median(list(accuracies.values()))), 4)
    calibration |= {"figure": name, **fitted, "typical_accuracy": typical}
    for suffix, accuracy in (("", None), ("_assumed", typical)):
        title = f"{name}, teachers right on {accuracy or 'what they are'}"
        told = _left_out(chosen, name, accuracy)
        judged_told = _tell(judged, name, fitted, accuracy)
        _print(f"{title}; chosen, each without its teacher", chosen, told)
        _print(f"{title}; judged", judged, judged_told)
        units = np.array([referee.deviation(share) for share in told])
        margin = np.percentile(_errors(chosen, told) / units, SURE)
        mean_errors = (
            float(_errors(*each).mean())
            for each in ((chosen, told), (judged, judged_told))
        )
        calibration[f"margin{suffix}"] = round(float(margin), 4)
        for part, error in zip(("chosen", "judged"), mean_errors, strict=True):
            calibration[f"mean_error_{part}{suffix}"] = round(error, 4)
    files.write_json(referee.CALIBRATION, calibration)


def _print(title, rows, told):
    errors = _errors(rows, told)
    trained = np.array([row["num_steps"] == USUAL for row in rows])
    print(
        f"\n{title}: {len(rows)} students, mean error {errors.mean():.2%}; of "
        f"{trained.sum()} of the recipe {errors[trained].mean():.2%}"
    )
    truth = np.array([row["agreement"] for row in rows])
    poor, called = truth < referee.POOR, told < referee.POOR
    print(
        f"below {referee.POOR:.0%}: {poor.sum()}, of these flagged "
        f"{(poor & called).sum()}; "
        f"false alarms {(called & ~poor).sum()} of {(~poor).sum()}"
    )
    for row, share, error in zip(rows, told, errors, strict=True):
        print(
            f"{row['teacher']:<20} {row['num_steps']:>6} steps, seed {row['seed']}: "
            f"agreement {row['agreement']:.2%}, told {share:.2%}, off {error:.2%}; "
            f"accuracy {row['accuracy']:.2%} of {row['teacher_accuracy']:.2%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
