"""The transfer set on disk: pseudo samples and their soft labels, shard by shard.

    manifest.json       what the set was made from and how big it will be
    shards.jsonl        a line with checksums for each finished shard
    images-00000.npy    [shard_size, height, width, channels], float32, normalized
    labels-00000.npy    [shard_size, classes], float32

A shard is written whole before its line is; what a killed process left behind has no
line and is made again. The manifest carries its own checksum, and each line the digest
of the manifest that its shard was made for: shards of another set do not count. Of
several processes each writes lines to a file of its own (`shards-0001.jsonl`), and
process 0 puts them together when it verifies the set. Reading fetches the rows of a
batch and nothing else, so memory does not grow with the set.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import resource
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import files, hosts
from dfkd_jax.settings import MAX_SHARDS

FORMAT = "dfkd_jax-transfer-set-1"
SUMS = ("images_sha256", "labels_sha256")
MAX_LINE = 1_000  # Characters.
MAX_NUMBERS = 2**32  # In a shard.
# Half of what the system lets a process have open, which is often 1,024.
OPEN_FILES = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 4_096)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a transfer set is.

    Attributes:
        num_images: When finished.
        shard_size: Images in a shard.
        image_shape: (height, width, channels).
        num_classes: Length of a soft label.
        seed: Of everything random in it.
        teacher_sha256: Digest of the teacher's weights.
        settings: Configuration of targets and synthesis.
        format: Version of this layout.
    """

    num_images: int
    shard_size: int
    image_shape: tuple[int, int, int]
    num_classes: int
    seed: int
    teacher_sha256: str
    settings: Mapping[str, Any]
    format: str = FORMAT

    @property
    def num_shards(self) -> int:
        """Shards when finished."""
        return self.num_images // self.shard_size

    def problem(self) -> str:
        """What no set can be that was read from a file, or nothing."""
        sizes = (self.num_images, self.shard_size, self.num_classes, *self.image_shape)
        if not all(type(size) is int and size > 0 for size in sizes):
            return "sizes must be whole numbers above 0"
        if self.format != FORMAT or len(self.image_shape) != 3:
            return f"format {self.format!r}, image_shape {list(self.image_shape)}"
        if self.num_images % self.shard_size or self.num_shards > MAX_SHARDS:
            return f"{self.num_images} images in shards of {self.shard_size}"
        numbers = self.shard_size * max(math.prod(self.image_shape), self.num_classes)
        return f"{numbers} numbers in a shard" if numbers > MAX_NUMBERS else ""


class TransferSet:
    """A transfer set that is being made or read, by one thread at a time."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        """Opens the set in `folder`, or starts one.

        Raises:
            CheckpointError: `folder` holds a transfer set of other settings.
            StorageError: It holds arrays that are of no transfer set.
        """
        self._open: dict[tuple[int, int], int] = {}
        weakref.finalize(self, _close, self._open)
        self.folder = folder
        self.manifest = manifest
        own = f"shards-{hosts.index():04}.jsonl" if hosts.index() else "shards.jsonl"
        self._index = folder / own
        with files.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / "manifest.json"
        wanted = json.loads(json.dumps(dataclasses.asdict(manifest)))
        if path.exists():
            if files.read_object(path) != wanted:
                raise CheckpointError(
                    f"{path} belongs to another teacher or other settings: choose "
                    "another --workdir."
                )
        elif hosts.is_primary():
            strange = next(folder.glob("*.npy"), None)
            if strange and not any(folder.glob("shards*.jsonl")):
                raise StorageError(
                    f"{strange} was not made by dfkd_jax, which keeps shards there: "
                    "move it elsewhere, or choose another --workdir."
                )
            files.write_json(path, wanted, sealed=True)
        self._set = files.digest(wanted)
        self._shards = self._read_index()

    @classmethod
    def existing(cls, folder: pathlib.Path) -> "TransferSet":
        """The set in `folder`, whatever its settings.

        Raises:
            CheckpointError: There is none, or its manifest is damaged.
        """
        path = folder / "manifest.json"
        found = files.read_object(path)
        try:
            manifest = Manifest(**found)
            problem = manifest.problem()
        except (TypeError, ValueError) as error:
            problem = str(error)
        if problem:
            raise CheckpointError(f"{path} is damaged ({problem}): name another.")
        return cls(folder, manifest)

    def _read_index(self) -> dict[int, dict[str, Any]]:
        shards = {}
        for index in sorted(self.folder.glob("shards*.jsonl")):
            for line in _lines(index):
                record = self._record(line)
                if record:
                    shards[record["shard"]] = record
        return {
            shard: record
            for shard, record in sorted(shards.items())
            if all(_is_plain_file(path) for path in self.paths(shard))
        }

    def _record(self, line):
        """What a line says of a shard; nothing where a killed process wrote it."""
        try:
            record = json.loads(line)  # There may be a million.
            shard, sums = record["shard"], (record[key] for key in SUMS)
            known = type(shard) is int and 0 <= shard < self.manifest.num_shards
            whole = known and all(isinstance(value, str) for value in sums)
            # Sets of before this digest was written have none.
            return record if whole and record.get("set", self._set) == self._set else {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def paths(self, shard: int) -> tuple[pathlib.Path, pathlib.Path]:
        """Files of a shard: images, labels."""
        return (
            self.folder / f"images-{shard:05d}.npy",
            self.folder / f"labels-{shard:05d}.npy",
        )

    def missing(self) -> list[int]:
        """Shards that are still to be made, in order."""
        return [s for s in range(self.manifest.num_shards) if s not in self._shards]

    def __len__(self) -> int:
        """Number of images in finished shards."""
        return len(self._shards) * self.manifest.shard_size

    def add(self, shard: int, images: np.ndarray, labels: np.ndarray) -> None:
        """Writes one finished shard."""
        sums = []
        for path, array in zip(self.paths(shard), (images, labels), strict=True):
            # NumPy's own writing does not say that a disk is full.
            stream = io.BytesIO()
            np.save(stream, np.asarray(array, np.float32), allow_pickle=False)
            # A copy: Python 3.12.1 crashes on a view that a failed write leaves behind.
            content = stream.getvalue()
            with files.atomic_write(path) as temporary:
                temporary.write_bytes(content)
            sums.append(hashlib.sha256(content).hexdigest())
        record = {"shard": shard, "set": self._set}
        record |= dict(zip(SUMS, sums, strict=True))
        with files.storage_errors(self._index):
            # A newline first ends a line that a killed process left unfinished.
            start = "" if files.ends_with_newline(self._index) else "\n"
            with open(self._index, "a") as file:
                file.write(start + json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._shards[shard] = record
        self.close()  # A file that was replaced may be open.

    def verify(self) -> list[int]:
        """Compares every shard with its checksums and forgets damaged ones.

        Process 0 does it; the others wait, and all know the same shards afterwards.

        Returns:
            The damaged shards (in process 0); `missing` names them from now on.
        """
        damaged = []
        if hosts.is_primary():
            damaged = self.damaged()
            for shard in damaged:
                del self._shards[shard]
            self._put_index_together()
        self.refresh()
        return damaged

    def damaged(self) -> list[int]:
        """Shards that are not what was written; changes nothing."""
        return [
            shard
            for shard, record in self._shards.items()
            if [_sha256(path) for path in self.paths(shard)]
            != [record[key] for key in SUMS]
        ]

    def _put_index_together(self):
        with files.atomic_write(self._index) as temporary:
            temporary.write_text(
                "".join(json.dumps(record) + "\n" for record in self._shards.values())
            )
        for other in self.folder.glob("shards-*.jsonl"):
            other.unlink()

    def refresh(self) -> None:
        """Waits for all processes and takes in what they made."""
        hosts.barrier()
        self._shards = self._read_index()
        hosts.barrier()  # Nobody adds while another one reads.

    def digest(self) -> str:
        """SHA-256 over the checksums of all shards, in order."""
        total = hashlib.sha256()
        for shard in sorted(self._shards):
            record = self._shards[shard]
            total.update("".join(record[key] for key in SUMS).encode())
        return total.hexdigest()

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and soft labels at global `indices`.

        Raises:
            CheckpointError: A shard cannot be read.
        """
        shards, rows = np.divmod(indices, self.manifest.shard_size)
        images = np.empty((len(indices), *self.manifest.image_shape), np.float32)
        labels = np.empty((len(indices), self.manifest.num_classes), np.float32)
        for number, array in enumerate((images, labels)):
            size = array[:1].nbytes
            start = _header_size((self.manifest.shard_size, *array.shape[1:]))
            # Flat bytes, so that a row is a slice of them.
            content = array.reshape(-1).view(np.uint8).data
            for place, (shard, row) in enumerate(
                zip(shards.tolist(), rows.tolist(), strict=True)
            ):
                self._read(
                    shard,
                    number,
                    content[place * size : (place + 1) * size],
                    start + row * size,
                )
        return images, labels

    def _read(self, shard, number, content, start):
        try:
            file = self._file(shard, number)
            if os.preadv(file, [content], start) == len(content):
                return
            reason = "it is too short"
        except OSError as error:
            reason = error.strerror
        raise CheckpointError(
            f"Cannot read {self.paths(shard)[number]} ({reason}): check its "
            "permissions, or delete it to have the same command make it again."
        )

    def _file(self, shard, number):
        """A descriptor; beyond `OPEN_FILES` the one opened first is closed."""
        key = (shard, number)
        if key not in self._open:
            while len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[key] = os.open(
                self.paths(shard)[number], os.O_RDONLY | os.O_NOFOLLOW
            )
        return self._open[key]

    def close(self) -> None:
        """Closes the files that `gather` opened; reading opens them again."""
        _close(self._open)


def _lines(path):
    """Lines of an index, some 300 bytes each; longer ones are cut, and so are none."""
    if not _is_plain_file(path):
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for _ in range(2 * MAX_SHARDS):
            line = file.readline(MAX_LINE)
            if not line:
                return
            yield line


def _is_plain_file(path):
    """Whether it is a file of the set, not a link to one elsewhere."""
    return path.is_file() and not path.is_symlink()


def _sha256(path):
    try:
        return files.sha256(path)
    except PermissionError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check its permissions."
        ) from error
    except OSError:
        return ""  # A bad block of the disk, say.


def _close(files_by_key):
    while files_by_key:
        os.close(files_by_key.popitem()[1])


def _header_size(shape):
    """Bytes before the values in a file of an array of `shape`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.dtype(np.float32).str,
            "fortran_order": False,
            "shape": tuple(shape),
        },
    )
    return len(header.getvalue())
