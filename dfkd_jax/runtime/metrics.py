"""Counts and sums that leave an evaluation step, and what is computed from them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_BINS = 15  # Of the calibration error, as in Guo et al. (2017).


def sums(
    logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Float[Array, " batch"],
) -> dict[str, Array]:
    """What a batch adds to each total; rows with mask 0 are padding and add nothing.

    `confusion` is `[true class, predicted class]`; the three `bin_*` are by confidence.
    """
    num_classes = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits)
    predicted = logits.argmax(-1)
    confidence = jnp.exp(log_probs.max(-1))
    correct = (predicted == labels) * mask
    place = jnp.clip((confidence * NUM_BINS).astype(jnp.int32), 0, NUM_BINS - 1)
    bins = jax.nn.one_hot(place, NUM_BINS) * mask[:, None]
    true = jax.nn.one_hot(labels, num_classes) * mask[:, None]
    return {
        "count": mask.sum(),
        "nll": -(jnp.take_along_axis(log_probs, labels[:, None], 1)[:, 0] * mask).sum(),
        "agreement": ((predicted == teacher_logits.argmax(-1)) * mask).sum(),
        "confusion": true.T @ jax.nn.one_hot(predicted, num_classes),
        "bin_count": bins.sum(0),
        "bin_confidence": (confidence[:, None] * bins).sum(0),
        "bin_correct": (correct[:, None] * bins).sum(0),
    }


def wilson_interval(successes: float, trials: float, *, z: float = 1.959964):
    """95 % confidence interval of a proportion (Wilson, 1927)."""
    if not trials:
        return (0.0, 1.0)
    p = successes / trials
    center = p + z**2 / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return ((center - spread) / scale, (center + spread) / scale)


def summarize(totals: dict[str, Any], *, class_names: Any) -> dict[str, Any]:
    """Accuracy, calibration and per-class figures from summed `sums`.

    `reliability` has a row for each of the equally wide bins of confidence.

    Raises:
        ValueError: Nothing was counted.
    """
    count = float(totals["count"])
    if not count:
        raise ValueError("No example was evaluated.")
    confusion = np.asarray(totals["confusion"])
    correct = float(np.trace(confusion))
    gap = np.abs(totals["bin_confidence"] - totals["bin_correct"]).sum() / count
    low, high = wilson_interval(correct, count)
    per_class = []
    for index, name in enumerate(class_names):
        true, predicted = confusion[index].sum(), confusion[:, index].sum()
        hits = float(confusion[index, index])
        per_class.append(
            {
                "class": name,
                "count": int(true),
                "recall": hits / true if true else None,
                "precision": hits / predicted if predicted else None,
            }
        )
    reliability = [
        {
            "count": int(number),
            "confidence": float(confidence / number) if number else None,
            "accuracy": float(right / number) if number else None,
        }
        for number, confidence, right in zip(
            totals["bin_count"],
            totals["bin_confidence"],
            totals["bin_correct"],
            strict=True,
        )
    ]
    return {
        "num_examples": int(count),
        "num_correct": int(correct),
        "accuracy": correct / count,
        "accuracy_interval_95": [low, high],
        "nll": float(totals["nll"]) / count,
        "expected_calibration_error": float(gap),
        "reliability": reliability,
        "agreement_with_teacher": float(totals["agreement"]) / count,
        "per_class": per_class,
        "confusion": confusion.astype(int).tolist(),
    }
