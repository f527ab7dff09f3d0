"""Settings for people: name, value, what is possible and what it means."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dfkd_jax import settings
from dfkd_jax.reporting.settings import short_text

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


class Setting(NamedTuple):
    """A setting of a kind of config.

    Attributes:
        name: With dots where it is in groups.
        default: Its value where none is given.
        allowed: Its choices or its range; empty where its type says all.
        meaning: A sentence or two.
    """

    name: str
    default: Any
    allowed: str
    meaning: str


def describe(
    cls: type, defaults: Mapping[str, Any], path: str = ""
) -> Iterator[Setting]:
    """Yields the settings of a group and the groups in it.

    Args:
        cls: The group, a dataclass whose docstring says what each setting means.
        defaults: Their values where none is given.
        path: Of the group.
    """
    meanings = _meanings(cls)
    for field in dataclasses.fields(cls):
        where, default = settings.join(path, field.name), defaults[field.name]
        if settings.is_group(field.type):
            yield from describe(field.type, default, where)
        else:
            yield Setting(
                where, default, _allowed(field.metadata), meanings.get(field.name, "")
            )


def shown(cls: type, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """What `--show` prints: every setting as it is, those changed marked."""
    lines = []
    for each in describe(cls, defaults):
        value: Any = values
        for name in each.name.split("."):
            value = value[name]
        is_changed = value != each.default
        line = f"{'*' if is_changed else ' '} config.{each.name} = {short_text(value)}"
        if is_changed:
            line += f"   (default {short_text(each.default)})"
        allowed = f" [{each.allowed}]" if each.allowed else ""
        words = textwrap.wrap(
            each.meaning + allowed, 76, break_long_words=False, break_on_hyphens=False
        )
        lines += [line, *(f"    {word}" for word in words)]
    return "\n".join(lines)


def _meanings(cls):
    """By the docstrings of a dataclass and of those that it is made from."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        found |= {
            name: " ".join(meaning.split())
            for name, meaning in _ATTRIBUTE.findall(attributes)
        }
    return found


def _allowed(metadata):
    if not metadata:
        return ""
    if metadata["choices"]:
        return ", ".join(map(str, metadata["choices"]))
    words = settings.words(metadata["bounds"])
    return "" if words == "a number" else words
