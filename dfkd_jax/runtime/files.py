"""Files that are whole or not there, and folders that one process uses at a time."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dfkd_jax.errors import CheckpointError, StorageError

ELSEWHERE = "write elsewhere (--workdir, --output)"
GOES_ON = "What was finished is kept; the same command goes on from there"


@contextlib.contextmanager
def storage_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns a full disk or a refused write into one clear error."""
    try:
        yield
    except OSError as error:
        hint = {
            errno.ENOSPC: f"the disk is full; free some space. {GOES_ON}",
            errno.EDQUOT: f"your disk quota is used up; free some space. {GOES_ON}",
            errno.EROFS: f"the file system is read-only; {ELSEWHERE}",
            errno.EACCES: f"permission denied; {ELSEWHERE}",
            errno.ENOTDIR: f"a file is in the way; {ELSEWHERE}",
            errno.EEXIST: f"a file is in the way; {ELSEWHERE}",
        }.get(error.errno, error.strerror or str(error))
        raise StorageError(f"Cannot write {path}: {hint}.") from error


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path that replaces `path` once written and synced."""
    temporary = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """The JSON in `path`.

    Raises:
        CheckpointError: It is not there or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): delete it to have it made again, or "
            "name another."
        ) from error


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ends_with_newline(path: pathlib.Path) -> bool:
    """Whether the last line of a text file is whole; so it is where there is none."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds `folder` for this process; the kernel lets go when the process ends.

    Raises:
        StorageError: Another process holds it, or it cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - held open on purpose.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StorageError(
            f"{folder} is in use by another process: wait for it, or choose another "
            "--workdir."
        ) from None
    with file:
        yield
