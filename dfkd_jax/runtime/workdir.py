"""A work directory belongs to one run: one config, one teacher."""

import contextlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dfkd_jax import __version__
from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import files

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def open_workdir(folder: pathlib.Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Holds `folder` for the run called `identity`; kept as `run.json` in it.

    Args:
        folder: Made if it is not there.
        identity: Settings and digests that make the run what it is, JSON values.

    Raises:
        CheckpointError: The folder belongs to another run; names what differs.
        StorageError: The folder is in use or cannot be written.
    """
    with files.lock(folder):
        path = folder / "run.json"
        if path.exists():
            differences = compare(files.read_json(path), identity)
            if differences:
                more = len(differences) - 5
                raise CheckpointError(
                    f"{folder} was made with other settings: "
                    f"{'; '.join(differences[:5])}"
                    + (f"; and {more} more" if more > 0 else "")
                    + ". Choose another --workdir, or delete that folder."
                )
        else:
            files.write_json(path, identity)
        yield


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
    if isinstance(new, tuple):
        new = list(new)
    return [] if old == new else [f"{path} was {old!r} and is now {new!r}"]


def versions() -> dict[str, str]:
    """Versions of Python, this package and what its numbers depend on."""
    return {
        "python": sys.version.split()[0],
        "dfkd_jax": __version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }
