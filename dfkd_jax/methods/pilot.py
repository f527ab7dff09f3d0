"""What suits a teacher: settings in its own units, measured before anything is made.

A teacher's logits may be ten times as large as another's; then so must be the
temperature that images are matched at, and the scale of the features that soft labels
come from. Both are measured here on procedural images and on draws of the normal, so
that no number has to be chosen with data that a user has not got.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfkd_jax.methods.task import Task
from dfkd_jax.models.network import Network
from dfkd_jax.runtime import files, hosts, progress, rng
from dfkd_jax.sources import shapes

DRAWS = 1_000  # Images, and soft labels.
# Spread of drawn labels' logits: decided, but with something to say of every class.
DECIDED = 1.5
HALVINGS = 24  # Of the range in which sigma is looked for, on a logarithmic scale.
SIGMAS = (1e-6, 1e6)
DIGITS = 3  # Kept of what is measured, so that rounding elsewhere changes nothing.


def spread(logits: Any) -> float:
    """Root mean square of logits `[batch, classes]` less the mean of their image."""
    logits = np.asarray(logits, np.float64)
    return float(np.sqrt(np.mean((logits - logits.mean(-1, keepdims=True)) ** 2)))


def unit(teacher: Network) -> float:
    """The size of a teacher's logits: their spread over procedural images."""
    draw = functools.partial(shapes.draw, image_shape=teacher.description.image_shape)
    answers = jax.jit(
        lambda teacher, keys: teacher.logits(teacher.normalize(draw(keys)))
    )
    return max(_rounded(spread(answers(teacher, _keys("images")))), 10.0**-DIGITS)


def fitting_sigma(draw: Callable[[float, Any], Any]) -> float:
    """The scale of the covariance with which drawn logits spread by `DECIDED`.

    Args:
        draw: `(sigma, keys [batch]) -> logits [batch, classes]` of features drawn so.
    """
    keys = _keys("labels")
    low, high = np.log(SIGMAS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if spread(draw(float(np.exp(middle)), keys)) < DECIDED:
            low = middle
        else:
            high = middle
    return _rounded(float(np.exp(high)))


def settle(
    task: Task, *, find_sigma: Callable[[], float] | None = None
) -> tuple[Task, dict[str, dict[str, float]]]:
    """Returns `task` with numbers for zeros left to the teacher, and metadata.

    They are measured once: what `pilot.json` in the work directory says is kept. Where
    the teacher has no BatchNorms of images, there is no prior of their statistics.

    Args:
        task: Of any method.
        find_sigma: Measures that of the targets, where there are any.
    """
    config = task.config
    synthesis = getattr(config, "synthesis", None)
    if synthesis and synthesis.batch_norm and not task.teacher.graph().has_batch_norm:
        synthesis = dataclasses.replace(synthesis, batch_norm=0.0)
        config = dataclasses.replace(config, synthesis=synthesis)
        task = dataclasses.replace(task, config=config)
    left = [
        (group, "temperature")
        for group in ("synthesis", "distillation")
        if (settings := getattr(config, group, None))
        and settings.is_tempered
        and not settings.temperature
    ]
    if find_sigma and not config.targets.sigma:
        left.append(("targets", "sigma"))
    if not left:
        return task, {}
    path = task.workdir / "pilot.json"
    found: dict[str, float] = {}
    if hosts.is_primary():
        if not path.exists():
            with progress.busy("Pilot: measuring the teacher"):
                measured = {"temperature": unit(task.teacher)}
                if find_sigma and ("targets", "sigma") in left:
                    measured["sigma"] = find_sigma()
            files.write_json(path, measured, sealed=True)
        found = files.read_object(path)
    found = hosts.broadcast_from_process_0(found)
    for group, name in left:
        changed = dataclasses.replace(getattr(config, group), **{name: found[name]})
        config = dataclasses.replace(config, **{group: changed})
    return dataclasses.replace(task, config=config), {"pilot": found}


def _keys(purpose):
    """The same for every run: what suits a teacher is not a matter of luck."""
    return rng.per_example(
        rng.stream(jax.random.key(0), f"pilot {purpose}"), jnp.arange(DRAWS)
    )


def _rounded(number):
    return float(f"{number:.{DIGITS}g}")
