"""Settings in JSON, which run no code: for those of people whom you do not know.

    {"name": "theirs", "seed": 1, "synthesis": {"num_images": 3200, "grid_factors": [4, 1]}}

    python -m dfkd_jax.main --config=settings.json

The keys are those of the dataclasses in `config.py`; what is not there has its default.
`"kind": "teacher"` for settings of teacher training. A network of one's own (`module`)
is code, so it is refused here; whoever trusts it gives it as a flag.
"""  # noqa: E501 - JSON on one line, to be copied.

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dfkd_jax import config
from dfkd_jax.errors import ConfigError, shown
from dfkd_jax.runtime import files

MAX_BYTES = 1_000_000


def get_config(path: str) -> ConfigDict:
    """The settings in a JSON file, over the defaults of their kind.

    Raises:
        ConfigError: It is not there, too large, no JSON object, or names code.
    """
    source = f"--config={path}"
    try:
        content = files.read_bytes(pathlib.Path(path), max_bytes=MAX_BYTES)
        values = files.parse_json(content.decode())
        return ConfigDict(settings(values, source=source))
    # Of a ConfigDict: a dot in a key of `arguments`, or a deep nest of them.
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source} is not possible: {error}.") from error


def settings(values: Any, *, source: str) -> dict[str, Any]:
    """A JSON value over the defaults of its kind; `config.parse` checks the rest.

    Raises:
        ConfigError: It is no object of settings, or names code.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f'{source} must be an object of settings, as {{"name": "mine"}}.'
        )
    kind = values.get("kind", "distillation")
    if not isinstance(kind, str) or kind not in config.KINDS:
        raise ConfigError(
            f"{source}: kind {shown(kind)} is not known: choose one of "
            f"{', '.join(config.KINDS)}."
        )
    result = config.defaults(kind)
    for key, value in values.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            if value.get("module"):
                raise ConfigError(
                    f"{source}: {key}.module is code, which JSON settings may not "
                    f"name: if you trust it, give --config.{key}.module as a flag."
                )
            result[key] = {**below, **{k: _tuple(v) for k, v in value.items()}}
        else:
            result[key] = _tuple(value)
    config.parse(result)
    return result


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value
