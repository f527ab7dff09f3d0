"""Errors a user can act on. Everything else that is raised is a bug."""

import difflib
from typing import Any


class DfkdError(Exception):
    """One line that names the culprit (key, file, step) and the way out.

    The commands print it without a traceback and exit with `exit_status`.
    """

    exit_status = 1


class ConfigError(DfkdError):
    """A setting is unknown, of the wrong type or impossible."""

    exit_status = 2


class DataUnavailableError(DfkdError):
    """A real data set could not be had; names the ways to get it."""

    exit_status = 3


class CheckpointError(DfkdError):
    """Weights, a checkpoint or a work directory are missing, damaged or foreign."""


class StorageError(DfkdError):
    """The disk is full or a folder cannot be written."""


class MissingPackageError(DfkdError):
    """A package of an extra is not installed; names the extra."""


class ExportError(DfkdError):
    """A network or transfer set cannot be written in the format asked for."""


class ResultsError(DfkdError):
    """Results files do not fit together, or what was made of them is out of date."""


class NonFiniteError(DfkdError):
    """A loss, image or weight became NaN or infinite."""


class ProcessError(DfkdError):
    """The processes of a run on several hosts did not meet or lost one of them."""


def did_you_mean(name: str, known: Any) -> str:
    """A sentence that suggests the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""


MAX_SHOWN = 80  # Characters of a value in a message.


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits.
        text = "a huge number"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
