"""What a reader must not miss: results that are incomplete or degenerate."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from dfkd_jax.reporting import run_files, tables
from dfkd_jax.reporting.run_files import Run

NOT_EVALUATED = "Not evaluated"
MIN_INFORMATION = 0.01  # Of log(classes), that a soft label says about its class.
MIN_VARIETY = 0.01  # Standard deviation over images of a pixel on the scale 0 to 1.
# The shipped recipes have no blank image, no twin, and miss 0.3 of the information; a
# teacher whose images turn black has half of them blank and misses all of it.
MIN_CONTRAST = 0.02  # Standard deviation of the pixels of an image, on that scale; or
MIN_RELATIVE_CONTRAST = 0.1  # of the median's.
MAX_BLANK = 0.1  # Of the images.
TWIN_DISTANCE = 0.05  # Between two images without their mean, in lengths of one.
MAX_TWINS = 0.25  # Of the images.
NUM_COMPARED = 500
MAX_MISSED = 0.7  # Of what soft labels tell, that the teacher does not find in images.


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something is wrong or missing.

    Attributes:
        title: What, in a few words.
        text: What it means and what to do.
    """

    title: str
    text: str


def find(run: Run) -> list[Finding]:
    """All that is wrong with a run, the worst first."""
    return [
        *_not_data_free(run),
        *_expected(run),
        *_evaluated(run),
        *_incomplete(run),
        *_degenerate(run),
    ]


def warnings(folder: pathlib.Path) -> list[str]:
    """What makes the results of the run in `folder` degenerate, for `results.json`."""
    run = run_files.read(folder)
    return [
        f"{finding.title}. {finding.text}"
        for finding in (*_expected(run), *_evaluated(run), *_degenerate(run))
        if finding.title != NOT_EVALUATED
    ]


def of_transfer_set(folder: pathlib.Path) -> list[str]:
    """What makes the pseudo samples in `folder` degenerate, before a student learns."""
    run = run_files.read(folder)
    return [f"{finding.title}. {finding.text}" for finding in _degenerate(run)]


def _degenerate(run):
    for check in (_labels, _one_class, _pictures, _reached, _activation, _damaged):
        yield from check(run)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """In nats, over the last axis; 0 · log 0 is 0."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * np.log(safe)).sum(-1)


def information(labels: np.ndarray) -> float:
    """Nats that knowing the sample tells about the class: H(mean) - mean(H)."""
    return float(entropy(labels.mean(0)) - entropy(labels).mean())


def chance_threshold(num_classes: int) -> float:
    """Twice the accuracy of guessing; of two or three classes, halfway to 1."""
    chance = 1 / num_classes
    return min(2 * chance, (1 + chance) / 2)


def _not_data_free(run):
    if not run.data_free:
        learned = f"real data ({run.real_data})" if run.real_data else "real data"
        yield Finding(
            "Not data-free",
            f"This student learned from {learned}. It is a baseline to compare with, "
            "no result of data-free distillation.",
        )


def _expected(run):
    expected = run.results.get("expected")
    if not expected:
        return
    share = tables.in_percent(expected)
    if expected["is_poor"]:
        yield Finding(
            "A poor student is to be expected",
            "By images that are none of the data, it will agree with its teacher on "
            f"{share} of the real ones. Train it longer "
            "(config.distillation.num_steps); if that does not help, it is too small "
            "for what this teacher does.",
        )
    elif not expected["is_known"]:
        yield Finding(
            "A student of an unknown kind",
            f"It is expected to agree with its teacher on {share} of real images, but "
            "no student like it was among those that this estimate was made with: "
            "measure it on some labeled images before it is used.",
        )


def _evaluated(run):
    student, teacher = run.evaluation("student"), run.evaluation("teacher")
    least = chance_threshold(len(run.class_names))
    chance = 1 / len(run.class_names)
    if student and student["accuracy"] < least:
        yield Finding(
            "Student hardly better than chance",
            f"It is right on {student['accuracy']:.2%} of the {run.split} set; "
            f"guessing is right on {chance:.2%}. Look at the loss curves and the "
            "pseudo samples: the distillation may be too short, its learning rate too "
            "high, or the pseudo samples may be noise.",
        )
    if teacher and teacher["accuracy"] < least:
        yield Finding(
            "Teacher hardly better than chance",
            f"It is right on {teacher['accuracy']:.2%} of the {run.split} set. Its "
            "weights may be of another task, or the normalization of images (mean, "
            "std) or the order of the classes may be another one.",
        )
    if student:
        answers = np.asarray(student["confusion"]).sum(0)
        never = np.flatnonzero(answers == 0)
        if len(never):
            yield Finding(
                "Classes that the student never answers",
                f"On the whole {run.split} set: {_names(run, never)}.",
            )
    elif run.results and run.has_student:
        named = run.results.get("dataset")
        yield Finding(
            NOT_EVALUATED,
            "The student is made, but "
            + (
                f"the {run.split} set {named} was not available. The same command does "
                "the evaluation only."
                if named
                else "no test set is named in config.data."
            ),
        )


def _incomplete(run):
    has_synthesis = "synthesis" in run.config
    if has_synthesis and (
        run.sample is None or run.sample.num_made < run.sample.num_wanted
    ):
        made = run.sample.num_made if run.sample else 0
        wanted = (
            run.sample.num_wanted
            if run.sample
            else run.config["synthesis"]["num_images"]
        )
        yield Finding(
            "Synthesis is not finished",
            f"{made:,} of {wanted:,} pseudo samples are made. The same command goes on "
            "from there.",
        )
    if not run.has_student:
        yield Finding(
            "No student yet",
            "Distillation is not finished. The same command goes on from the last "
            "checkpoint.",
        )


def _labels(run):
    if run.sample is None or len(run.sample.labels) < 2:
        return
    labels = run.sample.labels
    counts = np.bincount(labels.argmax(-1), minlength=labels.shape[1])
    never = np.flatnonzero(counts == 0)
    if len(never):
        yield Finding(
            "Classes that are never sampled",
            f"No pseudo sample of the {len(labels):,} looked at has this likeliest "
            f"class: {_names(run, never)}. The student has little to learn them from. "
            "More pseudo samples, another variance (config.targets.sigma) or another "
            "feature layer may reach them.",
        )
    share = information(labels) / np.log(labels.shape[1])
    if share < MIN_INFORMATION:
        yield Finding(
            "Soft labels are all alike",
            f"They differ from their mean by {max(share, 0):.2%} of what they could. "
            "Raise config.targets.sigma, or choose another feature layer.",
        )


def _one_class(run):
    if run.sample is None or len(run.sample.labels) < 2:
        return
    labels = run.sample.labels
    counts = np.bincount(labels.argmax(-1), minlength=labels.shape[1])
    share = counts.max() / len(labels)
    if labels.shape[1] > 1 and share > (1 + 1 / labels.shape[1]) / 2:
        yield Finding(
            "One class has most of the pseudo samples",
            f"{_names(run, [counts.argmax()])} is the likeliest class of {share:.0%} "
            "of the soft labels. The student has little to learn the others from: try "
            "another variance (config.targets.sigma) or another feature layer.",
        )


def _pictures(run):
    if run.sample is None or len(run.sample.pixels) < 2:
        return
    flat = run.sample.pixels.reshape(len(run.sample.pixels), -1)
    contrast = flat.std(1)
    least = max(MIN_CONTRAST, MIN_RELATIVE_CONTRAST * float(np.median(contrast)))
    blank = contrast < least
    if blank.mean() > MAX_BLANK:
        yield Finding(
            "Many pseudo samples are blank",
            f"{blank.mean():.0%} of the {len(flat):,} looked at are black or of one "
            f"shade (their pixels deviate by less than {least:.3f} on a scale of 0 to "
            "1). Terms of the loss other than the soft labels are too strong for this "
            "teacher: lower config.synthesis.total_variation, "
            "config.synthesis.l2 and config.synthesis.temperature.",
        )
    elif (twins := _twins(flat)) > MAX_TWINS:
        yield Finding(
            "Many pseudo samples are the same picture",
            f"{twins:.0%} of them have a twin that differs by less than "
            f"{TWIN_DISTANCE:.0%}. A stronger start (config.synthesis.init_scale) or "
            "another variance (config.targets.sigma) may give others.",
        )
    variety = float(run.sample.pixels.std(0).mean())
    if variety < MIN_VARIETY:
        yield Finding(
            "Pseudo samples are all alike",
            f"A pixel's standard deviation over them is {variety:.4f} on a scale of 0 "
            "to 1. More steps, a higher learning rate or weaker priors may help.",
        )


def _twins(flat):
    """The share of images that are nearly the same as another one."""
    flat = flat[:: -(-len(flat) // NUM_COMPARED)]
    flat = flat - flat.mean(1, keepdims=True)
    squares = (flat**2).sum(1)
    distances = squares[:, None] + squares - 2 * flat @ flat.T
    np.fill_diagonal(distances, np.inf)
    return float((distances.min(1) < TWIN_DISTANCE**2 * squares).mean())


def label_gap(run: Run) -> float | None:
    """Nats by which the last pseudo samples miss their soft labels, where known."""
    lost, labels = run.terms.get("cross_entropy"), run.sample and run.sample.labels
    if not isinstance(lost, int | float) or labels is None or len(labels) < 2:
        return None
    return lost - float(entropy(labels).mean())


def _reached(run):
    if label_gap(run) is None:
        return
    lost, labels = run.terms["cross_entropy"], run.sample.labels
    reached, told = float(entropy(labels).mean()), information(labels)
    guessing = reached + told
    if lost > guessing - (1 - MAX_MISSED) * told:
        yield Finding(
            "Pseudo samples are not what their labels say",
            f"The cross-entropy of the last ones is {lost:.2f}; {reached:.2f} is what "
            "it can come down to, and a teacher that sees nothing in them would have "
            f"{guessing:.2f}. Either the steps are too few "
            "(config.synthesis.num_steps), or another term of the loss outweighs it "
            "(batch_norm, total_variation, l2, activation_weight).",
        )


def _activation(run):
    weight = run.config.get("synthesis", {}).get("activation_weight", 0.0)
    terms = [run.terms.get(name) for name in ("activation", "cross_entropy")]
    if not weight or not all(isinstance(term, int | float) for term in terms):
        return
    gained, lost = -weight * terms[0], terms[1]
    if gained > lost:
        yield Finding(
            "Activation loss outweighs the soft labels",
            f"Of the last pseudo samples it is {gained:.2f}, their cross-entropy "
            f"{lost:.2f}: they may be textures that excite this teacher. Look at them, "
            f"and try config.synthesis.activation_weight={weight / 10:g}.",
        )


def _damaged(run):
    if run.damaged:
        more = len(run.damaged) - 3
        yield Finding(
            "Damaged files",
            f"Left out of this report: {', '.join(run.damaged[:3])}"
            + (f" and {more} more" if more > 0 else "")
            + ". The same command makes damaged shards again.",
        )


def _names(run: Run, classes: Sequence | np.ndarray) -> str:
    names = [run.class_names[k] for k in classes[:12]]
    more = len(classes) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
