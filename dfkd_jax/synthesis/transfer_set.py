"""The transfer set on disk: pseudo samples and their soft labels, shard by shard.

    manifest.json       what the set was made from and how big it will be
    shards.jsonl        a line with checksums for each finished shard
    images-00000.npy    [shard_size, height, width, channels], float32, standardised
    labels-00000.npy    [shard_size, classes], float32

A shard is written whole before its line is; what a killed process left behind has no
line and is made again. Of several processes each writes lines to a file of its own
(`shards-0001.jsonl`), and process 0 puts them together when it verifies the set.
Reading fetches the rows of a batch and nothing else, so memory does not grow with the
set.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import resource
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import files, hosts

FORMAT = "dfkd_jax-transfer-set-1"
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


class TransferSet:
    """A transfer set that is being made or read, by one thread at a time."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        """Opens the set in `folder`, or starts one.

        Raises:
            CheckpointError: `folder` holds a transfer set of other settings.
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
            if files.read_json(path) != wanted:
                raise CheckpointError(
                    f"{path} belongs to another teacher or other settings: choose "
                    "another --workdir, or delete that folder."
                )
        elif hosts.is_first():
            files.write_json(path, wanted)
        self._shards = self._read_index()

    @classmethod
    def existing(cls, folder: pathlib.Path) -> "TransferSet":
        """The set in `folder`, whatever its settings.

        Raises:
            CheckpointError: There is none, or its manifest is damaged.
        """
        path = folder / "manifest.json"
        found = files.read_json(path)
        try:
            return cls(folder, Manifest(**found))
        except TypeError as error:
            raise CheckpointError(f"{path} is damaged ({error}).") from error

    def _read_index(self) -> dict[int, dict[str, Any]]:
        shards = {}
        for index in sorted(self.folder.glob("shards*.jsonl")):
            for line in index.read_text().splitlines():
                try:
                    record = json.loads(line)
                    shards[record["shard"]] = record
                except (ValueError, KeyError, TypeError):
                    continue  # The line that a killed process was writing.
        return {
            shard: record
            for shard, record in sorted(shards.items())
            if all(path.is_file() for path in self.paths(shard))
        }

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
        record = {"shard": shard, "images_sha256": sums[0], "labels_sha256": sums[1]}
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
        if hosts.is_first():
            for shard, record in list(self._shards.items()):
                sums = [files.sha256(path) for path in self.paths(shard)]
                if sums != [record["images_sha256"], record["labels_sha256"]]:
                    damaged.append(shard)
                    del self._shards[shard]
            self._put_index_together()
        self.refresh()
        return damaged

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
            total.update((record["images_sha256"] + record["labels_sha256"]).encode())
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
            content = memoryview(array.reshape(-1).view(np.uint8))
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
            f"Cannot read {self.paths(shard)[number]} ({reason}): delete it and give "
            "the same command again to have it made again."
        )

    def _file(self, shard, number):
        """A descriptor; beyond `OPEN_FILES` the one opened first is closed."""
        key = (shard, number)
        if key not in self._open:
            while len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[key] = os.open(self.paths(shard)[number], os.O_RDONLY)
        return self._open[key]

    def close(self) -> None:
        """Closes the files that `gather` opened; reading opens them again."""
        _close(self._open)


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
