"""Flags, errors and exit statuses that the commands share. Imports no JAX."""

import errno
import io
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from dfkd_jax import settings
from dfkd_jax.errors import ConfigError, DfkdError, did_you_mean, shown
from dfkd_jax.runtime import hosts, places, stopping

FLAGS = flags.FLAGS
MIN_COLUMNS = 40  # Help cannot be wrapped into less.

settable: list[str] = []  # Settings that --config.KEY=VALUE may change, and
changes: dict[str, str] = {}  # what they say, as text.


def run(main: Callable[[list[str]], int], *, positional: bool = False) -> None:
    """Runs a command; what a user can mend is one line and a status, no traceback.

    0: done. 1: weights, checkpoint, disk or numbers. 2: flags or config. 3: the student
    is made but the held-out set could not be had. 130 (SIGINT), 143 (SIGTERM): stopped.

    Args:
        main: The command; gets its name and the arguments that are no flags.
        positional: Whether there may be such arguments.
    """

    def guarded(argv):
        if not _debugging():
            # What Orbax logs as an error, with hundreds of lines, it raises as well.
            logging.set_verbosity(logging.FATAL)
        if len(argv) > 1 and not positional:
            return _fail(ConfigError(_unexpected(argv[1])))
        try:
            stopping.install()
            if "coordinator" not in FLAGS:  # Else `hosts.join` decides.
                stopping.watch()
            try:
                with hosts.ending_together():
                    status = main(argv)
            except DfkdError as error:
                status = _fail(error)
            except OSError as error:  # A path that is too long or may not be read.
                if error.filename is None:
                    raise
                reason = f"{shown(str(error.filename))}: {error.strerror}."
                status = _fail(DfkdError(f"{reason} Name another."))
            stopping.finish()
        except stopping.StopRequested as request:
            _stop(request)
        hosts.leave(status)
        return status

    _prepare_terminal()
    app.run(guarded, flags_parser=_parse)


def _unexpected(word):
    close = f" Did you mean --config={word}?" if "config" in FLAGS else ""
    return f"Unexpected argument {word!r}: see --help.{close}"


class _Outlet(io.FileIO):
    """Standard output or error that nobody may read: a run does not end for it."""

    def write(self, data: Any) -> int:
        """Writes, or drops what cannot be written: its reader is gone."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1 and error.errno != errno.EPIPE:
                reason = f"({error.strerror}): going on without it."
                print(
                    f"WARNING: Standard output cannot be written {reason}",
                    file=sys.stderr,
                )
            return len(data)


def _prepare_terminal():
    """Makes sure that there is something to print to, and a width to print in."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # Closed: the next file would take its place.
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            outlet = io.BufferedWriter(_Outlet(number, "wb", closefd=False))
            made = io.TextIOWrapper(
                outlet,
                encoding=getattr(stream, "encoding", "utf-8"),
                errors="backslashreplace",
                line_buffering=number == 2 or os.isatty(number),
            )
            setattr(sys, name, made)
    columns = os.environ.get("COLUMNS", "")
    if not columns.isdecimal() or int(columns) < MIN_COLUMNS:
        os.environ.pop("COLUMNS", None)


def _debugging() -> bool:
    """Whether --verbosity asks for what libraries log, and for tracebacks."""
    return FLAGS.is_parsed() and FLAGS["verbosity"].present > 0 and FLAGS.verbosity >= 0


def _stop(request: stopping.StopRequested) -> NoReturn:
    """Says how to go on, and ends the process: all that is finished is saved."""
    if hosts.is_primary():
        command = shlex.join(["python", "-m", _module(), *sys.argv[1:]])
        print(
            f"{request.name}. The same command goes on from here: {command}",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    hosts.leave(request.status)
    os._exit(request.status)  # Waiting for the threads of JAX takes long.


def _module() -> str:
    """What `python -m` was given."""
    return getattr(sys.modules["__main__"].__spec__, "name", "dfkd_jax.main")


def _fail(error: DfkdError) -> int:
    if _debugging():
        traceback.print_exception(error)
    print(f"ERROR: {error}", file=sys.stderr)
    return error.exit_status


# Flags ----------------------------------------------------------------------------


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are no flags; reads no config file."""
    try:
        argv, found = _split(FLAGS.read_flags_from_files(argv, force_gnu=False))
        argv = _underscored(argv)
        try:
            left = FLAGS(argv)
        except SystemExit:
            sys.exit(0)  # The help was asked for and printed; absl calls that 1.
        for name in FLAGS:
            flag = FLAGS[name]
            if flag.present > 1 and not isinstance(flag, flags.MultiFlag):
                raise ConfigError(
                    f"--{name} is given {flag.present} times: give it once."
                )
            if flag.present and isinstance(flag.value, str):
                flag.value = _path(flag.value, source=f"--{name}")  # pyright: ignore[reportAttributeAccessIssue]
        left[1:] = [_path(word, source="argument") for word in left[1:]]
        changes.clear()
        changes.update(found)
        return left
    except flags.UnrecognizedFlagError as error:
        sys.exit(_fail(_unknown_flag(error.flagname)))
    except flags.Error as error:
        sys.exit(_fail(ConfigError(" ".join(str(error).split()))))
    except DfkdError as error:
        sys.exit(_fail(error))


def _underscored(argv):
    """`--data-dir` as `--data_dir`: both are the same flag."""
    end = argv.index("--") if "--" in argv else len(argv)
    names = [
        re.sub(
            r"^--?[a-z][a-z-]*",
            lambda name: name[0][:2] + name[0][2:].replace("-", "_"),
            word,
        )
        for word in argv[:end]
    ]
    return [*names, *argv[end:]]


def _path(text, *, source):
    """What may be a path, with `~` expanded: no shell does it after an equals sign."""
    if len(text) > settings.MAX_TEXT:
        raise ConfigError(
            f"{source}={shown(text)} is longer than {settings.MAX_TEXT:,} characters."
        )
    return places.expand(text, source=source) if text.startswith("~") else text


def _split(argv):
    """Arguments without the changes of settings, and these by their names."""
    left, found = [], {}
    if not settable:
        return argv, found
    words = iter(argv)
    for word in words:
        if word == "--":
            left += [word, *words]
            break
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            left.append(word)
            continue
        key, text = match.groups()
        text = next(words, None) if text is None else text
        if not key or text is None:
            raise ConfigError(f"{word}: write --config.KEY=VALUE.")
        for other in found:
            if key == other or f"{other}.".startswith(f"{key}."):
                raise ConfigError(
                    f"--config.{other} and then --config.{key} are given: give one."
                )
        found[key] = text
    return left, found


def _unknown_flag(name):
    """The error of a flag that is none, with the flag or setting that was meant."""
    name = name[:80]
    paths = {path.rpartition(".")[2]: f"config.{path}" for path in settable}
    known = {other: other for other in FLAGS if len(other) > 1} | paths
    close = did_you_mean(name, known)
    for key, path in paths.items():
        close = close.replace(f'"{key}"', f'"--{path}"')
    return ConfigError(f"--{name} is no flag of this command (see --help).{close}")
