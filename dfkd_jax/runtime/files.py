"""Files that are whole or not there, and folders that one process uses at a time."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dfkd_jax.errors import CheckpointError, StorageError, shown

ELSEWHERE = "write elsewhere (--workdir, --output)"
OWNED = "dfkd_jax\n"  # In the lock file of a folder that is not somebody else's.
CHECKSUM = "checksum"  # Key of a sealed JSON object.
MAX_JSON_BYTES = 64 * 2**20
GOES_ON = "What was finished is kept; the same command goes on from there"

HINTS = {
    errno.ENOSPC: f"the disk is full (bytes or inodes); free some space. {GOES_ON}",
    errno.EDQUOT: f"your disk quota is used up; free some space. {GOES_ON}",
    errno.EROFS: f"the file system is read-only; {ELSEWHERE}",
    errno.EACCES: f"permission denied; {ELSEWHERE}",
    errno.EPERM: f"it is not permitted; {ELSEWHERE}",
    errno.ENOTDIR: f"a file is in the way; {ELSEWHERE}",
    errno.EEXIST: f"a file is in the way; {ELSEWHERE}",
    errno.EISDIR: f"a folder is in the way; {ELSEWHERE}",
    errno.ELOOP: f"its symbolic links lead in a circle; {ELSEWHERE}",
    errno.ENAMETOOLONG: f"its name is too long; {ELSEWHERE}",
    errno.EFBIG: f"a file may not be that large here; {ELSEWHERE}",
    errno.EIO: "the disk does not work (input/output error); check it",
    errno.ESTALE: "the network file system lost it (stale file handle); mount it again",
}


@contextlib.contextmanager
def storage_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns a full disk or a refused write into one clear error."""
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"Cannot write {path}: {hint}.") from error


def storage_errno(error: BaseException | None) -> int:
    """The number of the storage error behind `error`; 0 where it is none.

    TensorStore reports a full disk as ValueError, with the system's words in it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in HINTS:
            return error.errno
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return 0


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
            if not take_lock(descriptor, path):
                raise StorageError(
                    f"{path} is being written by another process: wait for it, or "
                    f"{ELSEWHERE}."
                )
            held = os.fstat(descriptor).st_ino == os.stat(temporary).st_ino
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


def parse_json(text: str) -> Any:
    """The value that a JSON text says, and no guess where it says none or two.

    Raises:
        ValueError: It is no JSON, gives a key twice, holds a number that is not finite,
            or is nested too deep.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _object(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"{shown(twice)} is given twice")
    return values


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is no finite number")
    return value


def read_json(path: pathlib.Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The JSON in `path`, without the checksum of a sealed object.

    Raises:
        CheckpointError: It is not there, no JSON, too large, or not what was written.
    """
    try:
        content = read_bytes(path, max_bytes=max_bytes)
        value = parse_json(content.decode())
        if isinstance(value, dict) and CHECKSUM in value:
            wanted = value.pop(CHECKSUM)
            if digest(value) != wanted:
                raise ValueError("its content is not what was written")
        return value
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the path, its "
            "permissions and the disk."
        ) from error
    except (ValueError, RecursionError) as error:  # Recursion: of `digest`.
        raise CheckpointError(
            f"{path} is damaged ({error}): if dfkd_jax made it, delete it to have it "
            "made again; or name another."
        ) from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in `path`; see `read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds {type(value).__name__} in place of an object: name another."
        )
    return value


def read_bytes(path: pathlib.Path, *, max_bytes: int) -> bytes:
    """What a regular file holds.

    Raises:
        OSError: It cannot be read, or is a device or pipe, which may have no end.
        ValueError: It is larger.
    """
    if not path.is_file():
        code = errno.EINVAL if path.exists() else errno.ENOENT
        raise OSError(code, "no file" if path.exists() else os.strerror(code))
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
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


def take_lock(file: Any, path: pathlib.Path, *, wait: bool = False) -> bool:
    """Whether the open `file` is locked now, by this process, until it is closed.

    Raises:
        StorageError: The file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(
            f"{path} cannot be locked ({error.strerror}), and without a lock two "
            "processes could spoil it: name a folder on a file system with locks, such "
            "as a local disk."
        ) from error
    return True


def check_replaceable(path: pathlib.Path, mark: str) -> None:
    """Refuses to write over what an earlier call of the same command did not write.

    Args:
        path: What is to be written; it need not be there.
        mark: What a file of the command begins with, or has near its beginning.

    Raises:
        StorageError: Something else is there.
    """
    with storage_errors(path):
        if not os.path.lexists(path):
            return
        text = ""
        if path.is_file():
            with open(path, errors="replace") as file:
                text = file.read(1_000)
    if mark not in text:
        raise StorageError(
            f"{path} is there already, and this command did not write it: name another."
        )


def check_owned(folder: pathlib.Path, record: str) -> None:
    """Refuses a folder with somebody else's files, before anything is put into it.

    Names with a dot in front, which file managers leave behind, do not count.

    Args:
        folder: It need not be there.
        record: Name of the sealed JSON that a folder of dfkd_jax holds.

    Raises:
        StorageError: Neither lock file nor record say that it is dfkd_jax's.
    """
    names = []
    with storage_errors(folder), contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(folder))
    others = [name for name in names if not name.startswith(".")]
    if not others or OWNED in _text(folder / ".lock"):
        return
    if f'"{CHECKSUM}": ' not in _text(folder / record):
        raise StorageError(
            f"{folder} is not empty ({', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}) and was not made by dfkd_jax: choose "
            "another folder. Nothing in it was changed."
        )


def _text(path):
    try:
        return read_bytes(path, max_bytes=MAX_JSON_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return ""


@contextlib.contextmanager
def lock(folder: pathlib.Path, *, record: str = "") -> Iterator[None]:
    """Holds `folder` for this process; the kernel lets go when the process ends.

    Args:
        folder: Made if it is not there.
        record: See `check_owned`; empty for a folder that others may use, too.

    Raises:
        StorageError: Another process holds it, it is somebody else's, or it cannot be
            written.
    """
    if record:
        check_owned(folder, record)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115 - held open on purpose.
    with file:
        if not take_lock(file, folder):
            raise StorageError(
                f"{folder} is in use by another process: wait for it, or choose "
                "another --workdir."
            )
        with storage_errors(folder):
            file.seek(0)
            if record and OWNED not in file.read():
                file.write(OWNED)
                file.flush()
        yield
