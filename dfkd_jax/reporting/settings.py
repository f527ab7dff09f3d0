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
