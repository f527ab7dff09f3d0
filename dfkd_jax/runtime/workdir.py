"""A work directory belongs to one run: one config, one teacher."""

import contextlib
import hashlib
import importlib.metadata
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dfkd_jax import __version__
from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import files, hosts, records

RECORD = "run.json"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SHARED_SECONDS = 20  # For a network file system to show what another machine wrote.


def in_place(folder: pathlib.Path) -> dict[str, Any]:
    """What `run.json` in `folder` says to process 0; empty where there is none.

    Raises:
        CheckpointError: It is damaged.
        StorageError: The folder is somebody else's.
    """
    found = {}
    if hosts.is_primary():
        files.check_owned(folder, RECORD)
        path = folder / RECORD
        found = records.read(path) if path.exists() else {}
    return hosts.broadcast_from_process_0(found)


@contextlib.contextmanager
def open_workdir(folder: pathlib.Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Holds `folder` for the run called `identity`; kept as `run.json` in it.

    Process 0 holds it for all processes of the run, which must see the same folder.

    Args:
        folder: Made if it is not there.
        identity: Settings and digests that make the run what it is, JSON values.

    Raises:
        CheckpointError: The folder belongs to another run; names what differs.
        StorageError: The folder is in use, somebody else's, cannot be written or is not
            shared.
    """
    path = folder / RECORD
    with (
        files.lock(folder, record=RECORD)
        if hosts.is_primary()
        else contextlib.nullcontext()
    ):
        if hosts.is_primary() and not path.exists():
            files.write_json(path, identity, sealed=True)
        _meet_in(folder)
        differences = compare(files.read_object(path), identity)
        if differences:
            more = len(differences) - 5
            raise CheckpointError(
                f"{folder} was made with other settings: "
                f"{'; '.join(differences[:5])}"
                + (f"; and {more} more" if more > 0 else "")
                + ". Choose another --workdir, or delete that folder."
            )
        yield


def _meet_in(folder):
    """Makes sure that all processes see the same folder."""
    if hosts.count() == 1:
        return
    path = folder / ".processes.json"
    mark = hosts.broadcast_from_process_0(secrets.token_hex(8))
    if hosts.is_primary():
        files.write_json(path, {"mark": mark, "count": hosts.count()})
    hosts.barrier()
    deadline = time.monotonic() + SHARED_SECONDS
    while not path.exists() or files.read_json(path)["mark"] != mark:
        if time.monotonic() > deadline:
            raise StorageError(
                f"{folder} of process {hosts.index()} is not the folder that process 0 "
                "writes to: name a --workdir on a file system that all of them share."
            )
        time.sleep(0.5)
    hosts.barrier()


def mark(folder: pathlib.Path) -> str:
    """What tells the files of the run in `folder` from another's; empty without one."""
    path = folder / RECORD
    return files.sha256(path) if path.is_file() else ""


def compare(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two JSON values, a phrase a leaf."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            difference
            for key in dict.fromkeys([*old, *new])
            for difference in compare(
                old.get(key), new.get(key), f"{path}.{key}" if path else key
            )
        ]
    new = _listed(new)
    return [] if old == new else [f"{path} was {old!r} and is now {new!r}"]


def _listed(value):
    """A JSON value as it is read again: tuples are lists there."""
    if isinstance(value, tuple | list):
        return [_listed(item) for item in value]
    return value


def source() -> dict[str, str]:
    """What code this is: a digest of it and, in a clone, the commit that is out."""
    package = pathlib.Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package).as_posix()}\0".encode())
        total.update(path.read_bytes() + b"\0")
    return {"sha256": total.hexdigest(), "commit": _commit(package.parent)}


def _commit(root):
    """Of a Git clone, read without Git; empty where there is none."""
    try:
        git = root / ".git"
        if git.is_file():  # A worktree: "gitdir: …".
            git = root / git.read_text().split(":", 1)[1].strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        for folder in (
            git,
            git / common.read_text().strip() if common.exists() else git,
        ):
            if (folder / name).is_file():
                return (folder / name).read_text().strip()
            packed = folder / "packed-refs"
            for line in packed.read_text().splitlines() if packed.is_file() else ():
                if line.endswith(f" {name}"):
                    return line.split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        pass
    return ""


def versions() -> dict[str, str]:
    """Versions of Python, this package and what its numbers depend on."""
    return {
        "python": sys.version.split()[0],
        "dfkd_jax": __version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }
