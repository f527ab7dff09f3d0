"""Where a user's files are: the cache, and what `~` stands for."""

import os
import pathlib
import stat
import tempfile
from typing import Any

from dfkd_jax.errors import ConfigError, shown


def cache() -> pathlib.Path:
    """The folder of what can be made again: compiled programs, prepared data sets.

    A user without a home gets a folder in the temporary one, which is their own.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(expand(given, source="XDG_CACHE_HOME")) / "dfkd_jax"
    home = os.path.expanduser("~")
    if home != "~":
        return pathlib.Path(home) / ".cache" / "dfkd_jax"
    path = pathlib.Path(tempfile.gettempdir()) / f"dfkd_jax-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(path)
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    # Programs are run from there: nobody else may put some into it.
    if own and not found.st_mode & 0o022:
        return path
    return pathlib.Path(tempfile.mkdtemp(prefix="dfkd_jax-"))


def path(value: Any, *, source: str) -> pathlib.Path:
    """The path that an argument of Python names, `~` included.

    Args:
        value: A text or path.
        source: The argument, for the message.

    Raises:
        ConfigError: It is no path, or the user has no home folder.
    """
    try:
        text = os.fsdecode(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}={shown(value)}: expected a path.") from error
    if "\0" in text:
        raise ConfigError(f"{source}={shown(text)}: no path holds a NUL.")
    return pathlib.Path(expand(text, source=source))


def expand(path: str, *, source: str) -> str:
    """`path` with the home folder in place of a leading `~`.

    Args:
        path: As a user wrote it.
        source: Flag or setting, for the message.

    Raises:
        ConfigError: The user has no home folder: none called `~` is ever made.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and expanded == path:
        user = path.split("/")[0]
        raise ConfigError(
            f"{source}={shown(path)}: {user!r} has no home folder here: write the "
            "whole path."
        )
    return expanded
