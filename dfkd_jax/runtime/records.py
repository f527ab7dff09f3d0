"""Records of runs and sweeps as they come from disk: what each key may hold.

Records may be a stranger's, or edited. Whoever reads one may rely on the types below;
settings in it (`config`) are checked where they are used.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from dfkd_jax.errors import CheckpointError, shown
from dfkd_jax.runtime import files

MAX_NUMBER = 1e15
NUMBER = (int, float)
NO_NUMBER = (*NUMBER, type(None))
# By key, wherever it stands; `[kind]`: a list, `{str: kind}`: an object, of such.
KINDS: dict[str, Any] = {
    name: kind
    for names, kind in (
        ("experiment name kind dataset real_data command split commit date", str),
        ("feature_layer network weights sweep format", str),
        ("sha256 file_sha256 config_sha256 teacher_sha256", (str, type(None))),
        ("test_set_sha256 transfer_set_sha256", (str, type(None))),
        ("seed parameters count num_classes num_correct num_training_images", int),
        ("num_pseudo_samples", (int, type(None))),
        ("num_examples", (int, list)),
        ("data_free", bool),
        ("accuracy test_accuracy validation_accuracy recall precision", NO_NUMBER),
        ("confidence mean std agreement_with_teacher", NO_NUMBER),
        ("nll expected_calibration_error agreement explained plain low", NUMBER),
        ("spread", NUMBER),
        ("high", NUMBER),
        ("is_known is_poor", bool),
        ("referee expected changed_from_default", dict),
        ("class", (str, int)),
        ("seconds pilot", {str: NUMBER}),
        ("accuracy_interval_95", [NUMBER]),
        ("image_shape seeds", [int]),
        ("confusion", [[NUMBER]]),
        ("warnings varied", [str]),
        ("per_class reliability rows runs", [dict]),
        ("teacher student description arguments", dict),
        ("machine versions", (dict, list)),
        ("evaluation test_evaluation", (dict, type(None))),
        ("methods tasks", {str: str}),
        ("fingerprints", {str: [[NUMBER]]}),
    )
    for name in names.split()
}
OPEN = ("settings", "fixed", "arguments", "changed_from_default")
# Of a run's settings, what whoever reads records takes for granted.
CONFIG = {
    name: kind
    for names, kind in (
        ("name network module distribution feature_layer", str),
        ("seed", int),
        ("teacher student targets synthesis distillation", dict),
    )
    for name in names.split()
}
# One a channel here, mean and deviation of accuracies elsewhere.
DESCRIPTION = {"mean": [NUMBER], "std": [NUMBER]}


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in `path`, checked.

    Raises:
        CheckpointError: It cannot be read, or holds what it never does.
    """
    value = files.read_object(path)
    check({"seconds": value} if path.name == "seconds.json" else value, source=path)
    return value


def check(value: Any, *, source: Any) -> None:
    """Raises CheckpointError for a record that holds what it never does."""
    try:
        # That of a sweep names a file instead.
        own = {} if "format" in value else {"config": dict}
        wrong = next(_wrong(value, "", KINDS | own), None)
    except RecursionError:
        wrong = ("a value", "nested too deep")
    if wrong:
        raise CheckpointError(
            f"{source} is not as dfkd_jax writes it: {wrong[0][:200]} is "
            f"{shown(wrong[1])}. Restore it from a copy, or name another."
        )


@contextlib.contextmanager
def as_written(source: Any) -> Iterator[None]:
    """Around what relies on a record that is whole: what it lacks is its fault.

    Raises:
        CheckpointError: A key is missing, or values do not fit together.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise CheckpointError(
            f"{source} is not as dfkd_jax writes it ({reason}). Restore it from a "
            "copy, or name another."
        ) from e


def _wrong(value, path, kinds):
    """Yields the paths at which a record holds what it never does, and what."""
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _wrong(item, f"{path}[{place}]", kinds)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        where = f"{path}.{key}" if path else key
        kind = kinds.get(key)
        if isinstance(kind, dict) and isinstance(item, dict):
            yield from _wrong(item, where, dict.fromkeys(item, kind[str]))
        elif kind and not _is(item, kind):
            yield where, item
        elif key not in OPEN:
            within = {"description": kinds | DESCRIPTION, "config": CONFIG}
            yield from _wrong(item, where, within.get(key, kinds))


def _is(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        return isinstance(value, dict)
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int | float):
        return isinstance(value, kind) and abs(value) < MAX_NUMBER  # Finite, too.
    return isinstance(value, kind)
