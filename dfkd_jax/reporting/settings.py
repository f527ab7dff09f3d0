"""Settings as text."""

import json
from collections.abc import Mapping
from typing import Any


def flatten(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found = {}
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        found |= flatten(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def as_text(value: Any) -> str:
    """A setting as it is shown: texts as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short_text(value: Any) -> str:
    """A setting as a flag takes it, whole numbers without a fraction: 2.0 is 2."""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list | tuple):
        items = ", ".join(map(short_text, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    return str(value)


def describe(changes: Mapping[str, Any]) -> str:
    """Changes of settings as text: "targets.sigma=2, synthesis.l2=0"."""
    pairs = ", ".join(f"{key}={short_text(value)}" for key, value in changes.items())
    return pairs or "nothing changed"
