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
CHECKSUM = "checksum"  # Key of a sealed JSON object.
MOST_JSON_BYTES = 64 * 2**20
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
    """Yields a temporary path that replaces `path` once written and synced.

    Raises:
        StorageError: It cannot be written, or another process is writing it.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with storage_errors(path), _held(temporary, path):
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(temporary, path):
    """Keeps `temporary` for this process, which must not put another in its place."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor).st_ino == os.stat(temporary).st_ino
        except BlockingIOError:
            os.close(descriptor)
            raise StorageError(
                f"{path} is being written by another process: wait for it, or "
                f"{ELSEWHERE}."
            ) from None
        except FileNotFoundError:
            held = False
        except BaseException:
            os.close(descriptor)
            raise
        if held:
            break
        os.close(descriptor)  # Its last owner gave it its final name, or removed it.
    try:
        yield
    finally:
        os.close(descriptor)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys, in hexadecimal."""
    plain = json.loads(json.dumps(value))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: pathlib.Path, value: Any, *, sealed: bool = False) -> None:
    """Writes indented JSON atomically; `sealed`: an object with its own checksum."""
    if sealed:
        value = {key: item for key, item in value.items() if key != CHECKSUM}
        value[CHECKSUM] = digest(value)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: pathlib.Path, *, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The JSON in `path`, without the checksum of a sealed object.

    Raises:
        CheckpointError: It is not there, no JSON, too large, or not what was written.
    """
    try:
        content = read_bytes(path, most_bytes=most_bytes)
        value = json.loads(content.decode())
        if isinstance(value, dict) and CHECKSUM in value:
            wanted = value.pop(CHECKSUM)
            if digest(value) != wanted:
                raise ValueError("its content is not what was written")
        return value
    # A deep nest of brackets exceeds the recursion limit.
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): delete it to have it made again, or "
            "name another."
        ) from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Likewise, where it must be an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds {type(value).__name__} in place of an object: delete it to "
            "have it made again, or name another."
        )
    return value


def read_bytes(path: pathlib.Path, *, most_bytes: int) -> bytes:
    """What a regular file holds.

    Raises:
        OSError: It cannot be read, or is a device or pipe, which may have no end.
        ValueError: It is larger.
    """
    if not path.is_file():
        code = errno.EINVAL if path.exists() else errno.ENOENT
        raise OSError(code, "no file" if path.exists() else os.strerror(code))
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return content


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
