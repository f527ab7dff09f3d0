"""Inputs near valid ones: bytes changed blindly, and JSON changed as JSON."""

import json
import random
from typing import Any

NUMBERS = (0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63), 10**30, 0.5, float("nan"))
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    "",
    "x",
    "../x",
    "\ud800",
    [],
    {},
    [[]],
)


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """A new input from one or two of `seeds`."""
    data = rng.choice(seeds)
    if rng.random() < 0.4:
        data = _change_json(data, rng)
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        data = rng.choice(CHANGES)(data, rng, seeds)
    return data[:1_000_000]


def _flip(data, rng, seeds):
    if not data:
        return data
    place = rng.randrange(len(data))
    flipped = data[place] ^ (1 << rng.randrange(8))
    return data[:place] + bytes([flipped]) + data[place + 1 :]


def _set_byte(data, rng, seeds):
    place = rng.randrange(len(data) + 1)
    value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data[:place] + bytes([value]) + data[place + 1 :]


def _set_integer(data, rng, seeds):
    """A length or a count, in either order of bytes."""
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 1 << 20, 255))
    place = rng.randrange(len(data) + 1)
    content = (value % 2 ** (8 * size)).to_bytes(size, order)
    return data[:place] + content + data[place + size :]


def _cut(data, rng, seeds):
    return data[: rng.randrange(len(data) + 1)]


def _delete(data, rng, seeds):
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[last:]


def _repeat(data, rng, seeds):
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    times = rng.choice((2, 3, 100)) if last - first < 1_000 else 2
    return data[:first] + data[first:last] * times + data[last:]


def _splice(data, rng, seeds):
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _insert(data, rng, seeds):
    place = rng.randrange(len(data) + 1)
    new = rng.choice((b"[" * 2_000, b"\xff\xfe", b"\0" * 64, b"9" * 5_000, b"\n", b"{"))
    return data[:place] + new + data[place:]


CHANGES = (
    _flip,
    _flip,
    _set_byte,
    _set_integer,
    _cut,
    _delete,
    _repeat,
    _splice,
    _insert,
)


def _change_json(data, rng):
    """The first JSON value in `data` with something in it replaced or removed."""
    start = data.find(b"{")
    try:
        text = data[start:].decode("utf-8", "surrogateescape")
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return data
    if start < 0 or not isinstance(value, dict):
        return data
    for _ in range(rng.choice((1, 1, 2, 5))):
        _change_value(value, rng)
    value.pop("checksum", None)  # Else nothing but the checksum is tried.
    old = text[:end].encode("utf-8", "surrogateescape")
    new = json.dumps(value).encode()
    # A safetensors header of the length that is said before it.
    if start == 8 and int.from_bytes(data[:8], "little") >= len(old):
        size = int.from_bytes(data[:8], "little")
        new = new.ljust(-(-len(new) // 8) * 8)
        return len(new).to_bytes(8, "little") + new + data[8 + size :]
    return data[:start] + new + data[start + len(old) :]


def _change_value(value, rng):
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            value = inner
            continue
        what = rng.random()
        if what < 0.2:
            del value[key]
        elif what < 0.3 and isinstance(value, dict):
            value[rng.choice(("", "x", "a/b", "__class__", "é"))] = inner
        else:
            value[key] = rng.choice(VALUES)
        return
