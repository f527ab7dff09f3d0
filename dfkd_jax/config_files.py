"""Configs: what `--config` and `--config.KEY=VALUE` name, found, read and checked."""

import copy
import importlib.util
import pathlib
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dfkd_jax import command_line, config, json_settings, settings
from dfkd_jax.errors import ConfigError, DfkdError, did_you_mean, shown


def define_flag(text: str) -> None:
    """Defines --config of a command, which `--config.KEY=VALUE` then change."""
    flags.DEFINE_string("config", None, text)
    command_line.settable.extend(
        path for cls in reversed(config.KINDS.values()) for path in settings.paths(cls)
    )


def chosen(argument: str | None) -> Any:
    """The settings that --config, which says `argument`, and changes of it give.

    Raises:
        ConfigError: There are none, or they are not possible.
    """
    return read_settings(required(argument), command_line.changes)


def required(argument: str | None) -> str:
    """Returns what --config says, or raises ConfigError where it says nothing."""
    if not argument:
        raise ConfigError("Name a config: --config=configs/mnist.py (see --help).")
    return argument


def read_settings(
    argument: str,
    texts: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """The validated settings of a config with changes.

    Args:
        argument: As `--config` takes it: "configs/mnist.py:variant".
        texts: Changes as `--config.KEY=VALUE` has them: text by dotted name.
        changes: Changes as values; a mapping changes settings of its group.

    Raises:
        ConfigError: There is no such file or variant, it fails, or a setting is not
            possible.
    """
    base = read_config(argument).to_dict()
    cls, values = config.kind_of_values(copy.deepcopy(base))
    for key, value in (changes or {}).items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            value = values[key] | value
        values[key] = value
    for key, text in (texts or {}).items():
        settings.change(cls, values, key, text)
    return config.parse({"kind": base["kind"]} | values, base=base)


def read_config(argument: str) -> ConfigDict:
    """The config of "configs/mnist.py:variant".

    A `.py` file is executed. One that ends in `.json` is read; see `json_settings`.

    Raises:
        ConfigError: There is no such file or variant, or it fails.
    """
    path, variant = _find(argument)
    if path.suffix == ".py":
        return _execute(path, variant)
    if path.suffix.lower() != ".json":
        raise ConfigError(
            f"--config={shown(str(path))}: expected a config file (.py, which is "
            "executed) or settings (.json)."
        )
    if variant:
        raise ConfigError(
            f"--config={path}:{variant}: settings in JSON have no variants; leave out "
            f'":{variant}".'
        )
    return json_settings.get_config(str(path))


def _execute(path, variant):
    """What `get_config` of a config file returns."""
    name = str(path)
    try:
        get_config = runpy.run_path(name, run_name="dfkd_jax_config").get("get_config")
        if get_config is None:
            raise ConfigError(
                f"{name} has no function get_config(): see docs/your-own-network.md."
            )
        values = get_config(*([variant] if variant else []))
        if isinstance(values, ConfigDict):
            values = values.to_dict()
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{name}: get_config() returned {type(values).__name__}, not the "
                "settings: end it with `return config`."
            )
        return ConfigDict(values)
    except (DfkdError, KeyboardInterrupt):
        raise
    except BaseException as error:  # Somebody's code: it may even end the process.
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == name
        ]
        if isinstance(error, SyntaxError) and error.filename == name:
            lines = [error.lineno]
        where = f"{name}, line {lines[-1]}" if lines else name
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"The config file {where}: {type(error).__name__}"
            + (f": {reason}." if reason else ".")
        ) from error


def neighbor(file: str, name: str) -> dict[str, Any]:
    """What the config file `name` defines, for `file`, which starts from it.

    It is the one beside `file`; of a copy that was taken elsewhere, the one that comes
    with the project.
    """
    beside = pathlib.Path(file).with_name(name)
    folder = beside.parent if beside.is_file() else config_folder()
    assert folder is not None
    return runpy.run_path(str(folder / name))


def config_folder() -> pathlib.Path | None:
    """Where the configs that come with the project are: beside it, or installed."""
    beside = pathlib.Path(__file__).resolve().parent.parent / "configs"
    if (beside / "mnist.py").is_file():
        return beside
    spec = importlib.util.find_spec("dfkd_jax.configs")
    if spec and spec.submodule_search_locations:
        return pathlib.Path(next(iter(spec.submodule_search_locations)))
    return None


def _find(argument):
    """The file and the variant that `--config` names, from here or installed."""
    name, _, variant = argument.partition(":")
    path = pathlib.Path(name)
    try:
        if path.is_file():
            return path, variant
    except OSError as error:  # Too long, or in a folder that may not be read.
        raise ConfigError(f"--config={shown(name)}: {error.strerror}.") from error
    folder = config_folder()
    known = sorted(
        f"configs/{path.relative_to(folder)}"
        for path in (folder.rglob("*.py") if folder else ())
        if folder and path.name != "__init__.py"
    )
    if folder and name in known:
        return folder / name.removeprefix("configs/"), variant
    raise ConfigError(
        f"--config={shown(name)}: no such file here, and none of those that come with "
        f"dfkd_jax ({', '.join(known)})." + did_you_mean(name[:200], known)
    )
