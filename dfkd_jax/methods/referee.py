"""How far a student follows its teacher, told without data.

Both are asked about images that need none: procedural ones, these warped and mixed, and
coarse noise. A student learns from images like the first, at most, and from none like
the last. What it is worth there ranks students and, by a few numbers that were fitted
on the zoo of teachers (`configs/zoo`), tells how often it will agree with its teacher
on real images: agreement on one set goes with agreement on another (Baek et al.,
NeurIPS 2022).
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.config import DistillationConfig
from dfkd_jax.distillation import loop
from dfkd_jax.methods import pilot
from dfkd_jax.models.network import Network
from dfkd_jax.runtime import rng
from dfkd_jax.sources import shapes
from dfkd_jax.synthesis import parameterization

NUM_PROBES = 1_000  # Images of each kind.
AT_ONCE = 250
RARE = 5  # Images of which a class must have more to count.
CHANGES = DistillationConfig(mixup=0.5, cutmix=0.5, affine=0.15)
NOISE_GRIDS = (7, 4, 2)
NOISE_SCALE = 1.5  # Of the noise before the sigmoid.
CALIBRATION = pathlib.Path(__file__).with_name("calibration.json")
POOR = 0.9  # Agreement below which a student is called poor.


@functools.lru_cache(maxsize=2)
def probes(image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Pixels `[NUM_PROBES, height, width, channels]` in [0, 1] of each kind, by name.

    The same for every run.
    """
    grids = parameterization.grids(
        image_shape, factors=NOISE_GRIDS, init_scale=NOISE_SCALE
    )
    draw = jax.jit(functools.partial(shapes.draw, image_shape=image_shape))
    change = jax.jit(jax.vmap(loop.make_augment(CHANGES)))
    noise = jax.jit(lambda keys: jax.nn.sigmoid(grids.render(grids.init(keys))))
    root = rng.stream(jax.random.key(0), "referee")
    keys = rng.per_example(root, jnp.arange(3 * NUM_PROBES))
    drawn = np.concatenate([draw(part) for part in keys.reshape(-1, AT_ONCE)])
    plain, others, mixed = np.split(drawn, 3)
    keys = keys[:NUM_PROBES]
    return {
        "shapes": plain,
        "mixed": np.asarray(change(keys, others, mixed)),
        "noise": np.asarray(noise(keys)),
    }


def judge(teacher: Network, student: Network) -> dict[str, dict[str, float]]:
    """How far the student follows the teacher, by kind of image.

    Returns:
        Of each kind `agreement`, the share of images with the same likeliest class, as
        a mean over the teacher's classes; `plain`, the same over all images;
        `explained`, the share of the variance of the teacher's logits (less their mean
        over classes) that the student's have; and `spread`, how large these logits are.
    """
    found = {}
    for kind, pixels in probes(tuple(teacher.description.image_shape)).items():
        theirs, own = (_logits(network, pixels) for network in (teacher, student))
        found[kind] = {
            "agreement": _balanced_agreement(theirs.argmax(-1), own.argmax(-1)),
            "plain": float((theirs.argmax(-1) == own.argmax(-1)).mean()),
            "explained": _explained(theirs, own),
            "spread": pilot.spread(theirs),
        }
    return found


def score(found: Mapping[str, Mapping[str, float]]) -> float:
    """One number to rank students of a teacher by: the mean agreement of `judge`."""
    return float(np.mean([each["agreement"] for each in found.values()]))


def estimate(
    found: Mapping[str, Mapping[str, float]], teacher_accuracy: float | None = None
) -> dict[str, Any]:
    """The agreement with the teacher on real images that `judge` lets expect.

    How hard the real images are, the teacher's weights do not tell, its accuracy does:
    without it, that of the middle one of the calibration's teachers is assumed, and the
    margin is wide.

    Args:
        found: From `judge`.
        teacher_accuracy: On held-out data, from 0 to 1, where it is known.

    Returns:
        `agreement`, between `low` and `high` for nine of ten students of teachers that
        the calibration has not seen; `assumed_accuracy` of the teacher, None if it is
        known; `is_known`, whether students like this one are among those that it was
        made with; and `is_poor`.
    """
    known = json.loads(CALIBRATION.read_text())
    accuracy = teacher_accuracy or known["typical_accuracy"]
    kind, _, name = known["figure"].partition(".")
    expected = model(known, found[kind][name], accuracy)
    margin = known["margin" if teacher_accuracy else "margin_assumed"]
    margin *= deviation(expected)
    # Logits of a network that nobody trained are small, say.
    spread = found["shapes"].get("spread", known["spread_range"][0])
    is_like_these = [
        low <= value <= high
        for value, (low, high) in (
            (score(found), known["score_range"]),
            (spread, known["spread_range"]),
        )
    ]
    return {
        "agreement": expected,
        "low": max(expected - margin, 0.0),
        "high": min(expected + margin, 1.0),
        "assumed_accuracy": None if teacher_accuracy else accuracy,
        "is_known": all(is_like_these),
        "is_poor": bool(expected < POOR),
    }


def model(fitted: Mapping[str, Any], share: float, teacher_accuracy: float) -> float:
    """Agreement on real images, by one figure of a student and its teacher's errors.

    Where the teacher errs, images are hard, and student and teacher part there, too.

    Args:
        fitted: `offset` and `slope`, of log odds, and `hardness`, of errors.
        share: The figure, from 0 to 1.
        teacher_accuracy: From 0 to 1.
    """
    value = fitted["offset"] + fitted["slope"] * log_odds(share)
    value = 1 / (1 + math.exp(-value)) - fitted["hardness"] * (1 - teacher_accuracy)
    return min(max(value, 0.0), 1.0)


def deviation(share: float) -> float:
    """How far shares like this one lie apart: less near 0 and 1."""
    return math.sqrt(share * (1 - share) + 1e-3)


def log_odds(share: float) -> float:
    """Of a share, kept away from 0 and 1."""
    share = min(max(share, 0.01), 0.999)
    return math.log(share / (1 - share))


@jax.jit
def _ask(network, pixels):
    return network.logits(network.normalize(pixels))


def _logits(network, pixels):
    parts = np.split(pixels, len(pixels) // AT_ONCE)
    return np.concatenate([np.asarray(_ask(network, part)) for part in parts])


def _balanced_agreement(theirs, own):
    """A mean over the classes that the teacher sees more than `RARE` times."""
    shares = [
        (own[theirs == label] == label).mean()
        for label in np.unique(theirs)
        if (theirs == label).sum() > RARE
    ]
    return float(np.mean(shares))


def _explained(theirs, own):
    return 1 - (pilot.spread(theirs - own) / pilot.spread(theirs)) ** 2
