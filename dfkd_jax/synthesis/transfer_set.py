"""The transfer set on disk: pseudo samples and their soft labels, shard by shard.

    manifest.json       what the set was made from and how big it will be
    shards.jsonl        a line with checksums for each finished shard
    images-00000.npy    [shard_size, height, width, channels], float32, standardised
    labels-00000.npy    [shard_size, classes], float32

A shard is written whole before its line is; what a killed process left behind has no
line and is made again. Reading maps the files into memory and holds no image longer
than its batch, so memory does not grow with the set.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfkd_jax.errors import CheckpointError
from dfkd_jax.runtime import files

FORMAT = "dfkd_jax-transfer-set-1"


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
    """A transfer set that is being made or read."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        """Opens the set in `folder`, or starts one.

        Raises:
            CheckpointError: `folder` holds a transfer set of other settings.
        """
        self.folder = folder
        self.manifest = manifest
        self._index = folder / "shards.jsonl"
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
        else:
            files.write_json(path, wanted)
        self._shards = self._read_index()
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _read_index(self) -> dict[int, dict[str, Any]]:
        shards = {}
        if self._index.exists():
            for line in self._index.read_text().splitlines():
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
            content = io.BytesIO()
            np.save(content, np.asarray(array, np.float32), allow_pickle=False)
            with files.atomic_write(path) as temporary:
                temporary.write_bytes(content.getvalue())
            sums.append(files.sha256(path))
        record = {"shard": shard, "images_sha256": sums[0], "labels_sha256": sums[1]}
        with files.storage_errors(self._index):
            # A newline first ends a line that a killed process left unfinished.
            start = "" if files.ends_with_newline(self._index) else "\n"
            with open(self._index, "a") as file:
                file.write(start + json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._shards[shard] = record
        self._maps.pop(shard, None)  # Of the file that was replaced.

    def verify(self) -> list[int]:
        """Compares every shard with its checksums and forgets damaged ones.

        Returns:
            The damaged shards; `missing` names them from now on.
        """
        damaged = []
        for shard, record in list(self._shards.items()):
            sums = [files.sha256(path) for path in self.paths(shard)]
            if sums != [record["images_sha256"], record["labels_sha256"]]:
                damaged.append(shard)
                del self._shards[shard]
        return damaged

    def digest(self) -> str:
        """SHA-256 over the checksums of all shards, in order."""
        total = hashlib.sha256()
        for shard in sorted(self._shards):
            record = self._shards[shard]
            total.update((record["images_sha256"] + record["labels_sha256"]).encode())
        return total.hexdigest()

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and soft labels at global `indices`, as copies."""
        shards, rows = np.divmod(indices, self.manifest.shard_size)
        images = np.empty((len(indices), *self.manifest.image_shape), np.float32)
        labels = np.empty((len(indices), self.manifest.num_classes), np.float32)
        for place, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            shard_images, shard_labels = self._map(int(shard))
            images[place] = shard_images[row]
            labels[place] = shard_labels[row]
        return images, labels

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._maps:
            self._maps[shard] = tuple(
                np.load(path, mmap_mode="r", allow_pickle=False)
                for path in self.paths(shard)
            )
        return self._maps[shard]
