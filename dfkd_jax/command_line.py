"""Flags, errors and exit statuses that the commands share. Imports no JAX."""

import contextlib
import importlib.util
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from dfkd_jax.errors import ConfigError, DfkdError, did_you_mean
from dfkd_jax.runtime import hosts, stopping

# A config file that reads JSON; executed like the others, not imported here.
JSON_READER = pathlib.Path(__file__).with_name("json_settings.py")


def run(main: Callable[[list[str]], int], *, positional: bool = False) -> None:
    """Runs a command; what a user can mend is one line and a status, no traceback.

    0: done. 1: weights, checkpoint, disk or numbers. 2: flags or config. 3: the student
    is made but the held-out set could not be had. 130 (SIGINT), 143 (SIGTERM): stopped.

    Args:
        main: The command; gets its name and the arguments that are no flags.
        positional: Whether there may be such arguments.
    """

    def guarded(argv):
        # What Orbax logs as an error, with hundreds of lines, it raises as well.
        logging.set_verbosity(logging.FATAL)
        if len(argv) > 1 and not positional:
            return _fail(ConfigError(f"Unexpected argument {argv[1]!r}: see --help."))
        try:
            stopping.install()
            if "coordinator" not in flags.FLAGS:  # Else `hosts.join` decides.
                stopping.watch()
            try:
                with hosts.ending_together():
                    status = main(argv)
            except DfkdError as error:
                status = _fail(error)
            stopping.finish()
        except stopping.StopRequested as request:
            _stop(request)
        hosts.leave(status)
        return status

    app.run(guarded, flags_parser=_parse)


def _stop(request: stopping.StopRequested) -> NoReturn:
    """Says how to go on, and ends the process: all that is finished is saved."""
    if hosts.is_first():
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
    print(f"ERROR: {error}", file=sys.stderr)
    return error.exit_status


def _parse(argv: list[str]) -> list[str]:
    try:
        sys.argv = [_find_config(argument) for argument in _join_config(argv)]
        with flag_errors(argv):
            try:
                return flags.FLAGS([_as_python(argument) for argument in sys.argv])
            except SystemExit:
                sys.exit(0)  # The help was asked for and printed; absl calls that 1.
    except DfkdError as error:
        sys.exit(_fail(error))


@contextlib.contextmanager
def flag_errors(argv: Sequence[str]) -> Iterator[None]:
    """Turns what absl and ml_collections raise for `argv` into one clear error."""
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such config file.") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_explain(error, argv)) from error


def _join_config(argv):
    """`--config FILE` as `--config=FILE`, so that one form is left."""
    joined = []
    for argument in argv:
        if joined and re.fullmatch("--?config", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def config_folder() -> pathlib.Path | None:
    """Where the configs that come with the project are: beside it, or installed."""
    beside = pathlib.Path(__file__).resolve().parent.parent / "configs"
    if (beside / "mnist.py").is_file():
        return beside
    spec = importlib.util.find_spec("dfkd_jax.configs")
    if spec and spec.submodule_search_locations:
        return pathlib.Path(next(iter(spec.submodule_search_locations)))
    return None


def read_config(argument: str) -> ConfigDict:
    """The config of "configs/mnist.py:variant"; the file is executed.

    A file that ends in `.json` is read instead; see `json_settings`.

    Raises:
        ConfigError: There is no such file or variant.
    """
    found = _as_python(_find_config(f"--config={argument}"))
    found = found.removeprefix("--config=")
    name, _, variant = found.partition(":")
    spec = importlib.util.spec_from_file_location("dfkd_jax_config", name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if variant else []))


def _as_python(argument):
    """A config in JSON as the variant of a config file that reads it."""
    match = re.fullmatch(r"(--?config=)([^:]*\.json)", argument)
    return f"{match[1]}{JSON_READER}:{match[2]}" if match else argument


def _find_config(argument):
    """Falls back from `configs/mnist.py` in this folder to the installed one."""
    match = re.fullmatch(r"(--?config=)([^:]*)(:.*)?", argument)
    if not match or pathlib.Path(match[2]).is_file():
        return argument
    folder = config_folder()
    known = sorted(
        f"configs/{path.relative_to(folder)}"
        for path in (folder.rglob("*.py") if folder else ())
        if path.name != "__init__.py"
    )
    if folder and match[2] in known:
        return (
            match[1]
            + str(folder / match[2].removeprefix("configs/"))
            + (match[3] or "")
        )
    raise ConfigError(
        f"--config={match[2]}: no such file here, and none of those that come with "
        f"dfkd_jax ({', '.join(known)})." + did_you_mean(match[2], known)
    )


def _explain(error, argv):
    """A flag error in one line that names the flag and what it takes."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    suggestion = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    for argument in argv:
        name, _, value = argument.lstrip("-").partition("=")
        keys = name.split(".")
        if keys[0] != "config" or len(keys) == 1:
            continue
        if suggestion and suggestion[2] in keys:
            return f'{name} is not a setting. Did you mean "{suggestion[1]}"?'
        if "=" not in text and any(f"'{key}'" in text for key in keys[1:]):
            return f"{name} is not a setting: the config file lists what is."
        if f"--{name}={value}" in text:
            for clue, kind in (("int()", "a whole number"), ("float", "a number")):
                if clue in text:
                    return f"--{name}={value}: must be {kind}."
    return text
