"""How a setting is declared, read from a mapping or from text, and checked.

A group of settings is a frozen dataclass; `setting` declares a field with its default
and whatever else is known of it. Types and ranges are checked here and nowhere else.
"""

import ast
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard, TypeVar

from dfkd_jax.errors import MAX_SHOWN, ConfigError, did_you_mean, shown
from dfkd_jax.runtime import places

T = TypeVar("T", bound=Any)

MAX_COUNT = 2**31 - 1  # Steps and places are int32 on devices.
# Networks compute in float32: what is squared there must neither vanish nor overflow.
MIN_SIZE, MAX_SIZE = 1e-18, 1e18
MAX_TEXT = 4_096  # As long as a path can be,
MAX_NAME = 255  # and a name in it, in bytes.
MAX_SHARDS = 1_000_000  # Of a transfer set.
MAX_DEPTH = 8  # Of arguments of a network.


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    length: int | None = None,
    needs: tuple[str, Callable[[Any], bool]] | None = None,
) -> Any:
    """Declares a field of a group of settings.

    Args:
        default: Its value where none is given.
        at_least: Smallest number; of a tuple, bounds hold for each element.
        above: Number that it must exceed.
        at_most: Largest number.
        below: Number that it must not reach.
        choices: The texts that it may be.
        length: Of a tuple; 0: any but empty.
        needs: Another setting of the group and what it must satisfy for this one to
            have any effect.
    """
    metadata = {
        "bounds": (at_least, above, at_most, below),
        "choices": choices,
        "length": length,
        "needs": needs,
    }
    return dataclasses.field(default=default, metadata=metadata)


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raises ConfigError for a value that cannot be."""
    if not condition:
        raise ConfigError(f"config.{key}={shown(value)} is not possible: {allowed}.")


def one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ConfigError for a name that is none of `choices`."""
    if value not in choices:
        raise ConfigError(
            f"config.{key}={shown(value)} is not known: choose one of "
            f"{', '.join(choices)}." + did_you_mean(value, choices)
        )


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """`cls` with the values of a (nested) mapping, validated.

    Raises:
        ConfigError: Names the first key that is unknown, of the wrong type or
            impossible, and what is allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        where = join(path, key)
        if key not in fields:
            raise unknown(where, fields)
        arguments[key] = _convert(fields[key].type, value, where)
        if metadata := fields[key].metadata:
            _check(metadata, arguments[key], where)
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"config.{join(path, missing[0])} is missing: set it.")
    result = cls(**arguments)
    if validate := getattr(result, "validate", None):  # What clashes across settings.
        validate(path)
    return result


def is_group(kind: Any) -> TypeGuard[type]:
    """Whether settings of this type are groups of settings."""
    return dataclasses.is_dataclass(kind)


def join(path: str, key: Any) -> str:
    """The dotted name of a setting of the group at `path`."""
    return f"{path}.{key}" if path else str(key)


def unknown(path: str, known: Any) -> ConfigError:
    """The error of a setting that is none of its group's, which has those `known`."""
    key = path.rpartition(".")[2]
    return ConfigError(
        f"config.{path[:200]} is not a setting."
        + (did_you_mean(key, known) or f" There are: {', '.join(known)}.")
    )


def unused(
    cls: type, values: Mapping[str, Any], defaults: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, str]]:
    """Settings in `values`, other than in `defaults`, that have no effect.

    Yields the name of each, its value, and the setting that makes it so.
    """
    given = {**defaults, **values}
    for field in dataclasses.fields(cls):
        value, where = given[field.name], join(path, field.name)
        default = defaults[field.name]
        if is_group(field.type) and isinstance(value, Mapping):
            yield from unused(field.type, value, default, where)
            continue
        other = _made_idle_by(cls, given, field.name)
        if other and value != default:
            yield where, value, f"config.{join(path, other)}={shown(given[other])}"


def _made_idle_by(cls, given, name):
    """The setting beside it for which `name` has no effect; empty if it has one."""
    needs = {
        field.name: field.metadata.get("needs") for field in dataclasses.fields(cls)
    }
    while found := needs.get(name):
        name, satisfied = found
        if name in given and not satisfied(given[name]):
            return name
    return ""


def used(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a group and the groups in it, without those that have no effect."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    return {
        key: used(kind, value)
        if is_group(kind := kinds.get(key)) and isinstance(value, Mapping)
        else value
        for key, value in values.items()
        if not _made_idle_by(cls, values, key)
    }


def recorded(cls: type, values: Mapping[str, Any], before: Any = None) -> Any:
    """What a record says of a group of settings: those with an effect, as JSON.

    Args:
        cls: The group.
        values: Its settings.
        before: What is recorded already. That is returned as it is where it says the
            same of the settings with an effect: earlier releases wrote all of them.
    """
    now = json.loads(json.dumps(used(cls, values)))
    if isinstance(before, Mapping) and used(cls, before) == now:
        return before
    return now


def paths(cls: type, path: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings of a group and the groups in it."""
    for field in dataclasses.fields(cls):
        where = join(path, field.name)
        if is_group(field.type):
            yield from paths(field.type, where)
        else:
            yield where


def change(cls: type, values: dict[str, Any], key: str, text: str) -> None:
    """Sets what `--config.key=text` says in `values`, nested settings of `cls`.

    Raises:
        ConfigError: There is no such setting, or the text is of the wrong type.
    """
    *groups, last = key.split(".")
    path, kind, place = "", cls, values
    for name in groups:
        kind = _kind_of(kind, name, path)
        path = join(path, name)
        if not is_group(kind) and kind != dict[str, Any]:
            raise ConfigError(
                f"config.{key[:200]} is not a setting: config.{path} has none below it."
            )
        below = place.get(name)
        place[name] = dict(below) if isinstance(below, Mapping) else {}
        place = place[name]
    kind = _kind_of(kind, last, path)
    if is_group(kind):
        example = f"{key}.{dataclasses.fields(kind)[0].name}"
        raise ConfigError(
            f"--config.{key}={text[:MAX_SHOWN]}: config.{key} is a group of settings; "
            f"set one of them, as in --config.{example}=…."
        )
    place[last] = _parse(kind, text, key)


def _kind_of(kind, name, path):
    """The type of a setting of a group, or of an argument of a network."""
    if kind == dict[str, Any]:
        return Any
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if name not in fields:
        raise unknown(join(path, name), fields)
    return fields[name]


def _parse(kind, text: str, key):
    """What `text` is in the words of a setting of this type."""
    if kind is str:
        return text
    try:
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if kind is Any:
            return text
        raise _wrong_type(kind, text[:MAX_SHOWN], key) from error
    if kind in ELEMENTS and not isinstance(value, tuple | list):
        return (value,)
    return value


ELEMENTS = {tuple[int, ...]: int, tuple[float, ...]: float}


def _wrong_type(kind, text, path):
    expected = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        tuple[int, ...]: "whole numbers, as in (4, 2, 1)",
        tuple[float, ...]: "numbers, as in (1.0, 0.1)",
        dict[str, Any]: 'a group of arguments, as in {"width": 8}',
    }[kind]
    return ConfigError(f"config.{path}={text} must be {expected}.")


def _convert(kind: Any, value: Any, path: str) -> Any:
    if type(value).__module__ == "numpy" and value.ndim == 0:
        value = value.item()
    if is_group(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"config.{path}={shown(value)} must be a group of settings."
            )
        return from_mapping(kind, value, path)
    if kind is float and type(value) in (int, float):
        try:
            return float(value) + 0.0  # -0.0 is 0.
        except OverflowError:
            return math.inf
    if kind in (int, str) and type(value) is kind:
        return value
    if kind == dict[str, Any] and isinstance(value, Mapping):
        return {
            str(name): _plain(item, f"{path}.{name}") for name, item in value.items()
        }
    element = ELEMENTS.get(kind)
    if (
        element
        and isinstance(value, list | tuple)
        and all(type(item) in (int, element) for item in value)
    ):
        return tuple(_convert(element, item, path) for item in value)
    raise _wrong_type(kind, shown(value), path)


def _plain(value, path, depth=0):
    """Arguments of a linen module, which must be hashable: tuples for lists."""
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return tuple(_plain(item, path, depth + 1) for item in value)
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        return {str(k): _plain(v, path, depth + 1) for k, v in value.items()}
    allowed = value is None or isinstance(value, bool | int | float | str)
    require(allowed, path, value, "use numbers, texts, lists and objects of these")
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, int):
        require(-(2**63) <= value < 2**63, path, value, "it takes more than 64 bits")
    elif isinstance(value, float):
        require(not math.isnan(value), path, value, "it must be a number")
    return value


def _check(metadata, value, path):
    """Raises ConfigError for a value out of the range that its setting declares."""
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) in (int, float):
            _check_number(metadata["bounds"], item, path, value)
        elif isinstance(item, str):
            _check_text(item, path)
    if metadata["choices"]:
        one_of(path, value, metadata["choices"])
    length = metadata["length"]
    if length is not None:
        number = "at least one number" if length == 0 else f"{length} numbers"
        each = words(metadata["bounds"])
        fits = len(value) == length if length else bool(value)
        require(fits, path, value, f"name {number}, each {each}")


def _check_number(bounds, item, path, value):
    at_least, above, at_most, below = bounds
    if not math.isfinite(item):
        raise ConfigError(f"config.{path}={shown(item)} must be a finite number.")
    inside = (
        (at_least is None or item >= at_least)
        and (above is None or item > above)
        and (at_most is None or item <= at_most)
        and (below is None or item < below)
    )
    each = "each " if isinstance(value, tuple) else ""
    require(inside, path, value, f"{each}must be {words(bounds)}")
    if type(item) is int:
        if at_most is None:
            require(
                abs(item) <= MAX_COUNT,
                path,
                value,
                f"at most {MAX_COUNT:,} is possible",
            )
    elif item:
        require(
            MIN_SIZE <= abs(item) <= MAX_SIZE,
            path,
            value,
            f"in size it must be 0 or from {MIN_SIZE:g} to {MAX_SIZE:g}, as float32 "
            "takes it",
        )


def words(bounds: tuple[float | None, ...]) -> str:
    """A range as people say it: at least, above, at most, below."""
    at_least, above, at_most, below = bounds
    if at_least is not None and at_most is not None:
        return f"from {at_least:,} to {at_most:,}"
    if at_least is not None and below is not None:
        return f"from {at_least:,} to below {below:,}"
    if above is not None and at_most is not None:
        return f"above {above:,} and at most {at_most:,}"
    if at_least is not None:
        return f"at least {at_least:,}" if at_least else "0 or more"
    if above is not None:
        return f"above {above:,}"
    return "a number"


def _check_text(value, path):
    """Raises ConfigError for what can be neither a name nor a path."""
    try:
        longest = max(len(part.encode()) for part in value.split("/"))
    except UnicodeEncodeError:
        require(False, path, value, "it is not valid Unicode")
    require(
        len(value) <= MAX_TEXT and longest <= MAX_NAME,
        path,
        value,
        f"it is longer than {MAX_TEXT:,} characters, or than {MAX_NAME} between "
        "slashes, which no path can be",
    )
    if value.startswith("~"):
        places.expand(value, source=f"config.{path}")
    require(
        value.isprintable(), path, value, "it holds characters that cannot be printed"
    )
