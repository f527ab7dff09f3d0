"""The data sets' original files: what they are, and whether a folder holds them."""

import dataclasses
import gzip
import hashlib
import pathlib
import tarfile
import zlib
from collections.abc import Iterator

import numpy as np

from dfkd_jax.data import datasets
from dfkd_jax.errors import DataUnavailableError


@dataclasses.dataclass(frozen=True)
class IdxFile:
    """An IDX file as published: gzip around it, with name and time in the header.

    Attributes:
        sha256: Of the published .gz file.
        content_sha256: Of the uncompressed content.
        stored_name: The name in the gzip header.
        mtime: The time in the gzip header, seconds.
    """

    sha256: str
    content_sha256: str
    stored_name: str
    mtime: int


IDX_FILES = {
    "mnist": {
        "train-images-idx3-ubyte": IdxFile(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-images.idx3-ubyte",
            848331386,
        ),
        "train-labels-idx1-ubyte": IdxFile(
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "train-labels.idx1-ubyte",
            848331398,
        ),
        "t10k-images-idx3-ubyte": IdxFile(
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-images.idx3-ubyte",
            885827245,
        ),
        "t10k-labels-idx1-ubyte": IdxFile(
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "t10k-labels.idx1-ubyte",
            885827268,
        ),
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": IdxFile(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-images-idx3-ubyte",
            1504176606,
        ),
        "train-labels-idx1-ubyte": IdxFile(
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "train-labels-idx1-ubyte",
            1504176606,
        ),
        "t10k-images-idx3-ubyte": IdxFile(
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-images-idx3-ubyte",
            1504176627,
        ),
        "t10k-labels-idx1-ubyte": IdxFile(
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "t10k-labels-idx1-ubyte",
            1504176627,
        ),
    },
}
MAX_UNPACKED = 500_000_000  # Bytes; CIFAR-10 takes 184 million.
MAX_MEMBERS = 100_000
# What a damaged archive raises, depending on where the damage is.
UNREADABLE = (tarfile.TarError, EOFError, OSError, ValueError, zlib.error)
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# The archive cannot be rebuilt bit for bit; its members can.
CIFAR10_MEMBER_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


def sha256(content: bytes) -> str:
    """The hex digest of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: pathlib.Path) -> str:
    """The hex digest of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Base name and content of the regular files; nothing is unpacked to disk.

    Raises:
        tarfile.ReadError: They are larger than any data set's.
    """
    left = MAX_UNPACKED
    for count, member in enumerate(archive):
        left -= member.size
        if left < 0 or count > MAX_MEMBERS:
            raise tarfile.ReadError("larger than any data set's archive")
        if member.isfile() and (file := archive.extractfile(member)):
            yield member.name.rsplit("/", 1)[-1], file.read()


def locate(name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The path of every original file of `name` under its published name, unverified.

    Files lie in `folder` or `folder/name`; IDX files may be uncompressed.
    """
    folder = folder / name if (folder / name).is_dir() else folder
    found = {}
    for published in datasets.spec(name).original_files:
        candidates = [folder / published]
        if published.endswith("ubyte.gz"):
            candidates.append(folder / published.removesuffix(".gz"))
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise DataUnavailableError(
                f"{folder / published} is missing: {name} needs "
                f"{', '.join(datasets.spec(name).original_files)} there."
            )
        found[published] = path
    return found


def verified(name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """`locate`, with the content of every file checked against the published one."""
    found = locate(name, folder)
    for published, path in found.items():
        if published == CIFAR10_ARCHIVE:
            _verify_cifar10(path)
            continue
        file = IDX_FILES[name][published.removesuffix(".gz")]
        wanted = file.sha256 if path.suffix == ".gz" else file.content_sha256
        _verify_digest(path, sha256_of_file(path), wanted)
    return found


def _verify_digest(path, got: str, wanted: str):
    if got != wanted:
        raise DataUnavailableError(
            f"{path} is not the published file: sha256 {got}, expected {wanted}; "
            "replace it."
        )


def _verify_cifar10(path: pathlib.Path):
    """Accepts the published archive, and any other with the published members."""
    got = sha256_of_file(path)
    if got == CIFAR10_SHA256:
        return
    digests = {}
    try:
        with tarfile.open(path) as archive:
            for base, content in read_members(archive):
                if base in CIFAR10_MEMBER_MD5:
                    digests[base] = hashlib.md5(
                        content, usedforsecurity=False
                    ).hexdigest()
    except UNREADABLE:
        digests = {}  # No archive at all, or a truncated one.
    if digests != CIFAR10_MEMBER_MD5:
        _verify_digest(path, got, CIFAR10_SHA256)


def read(
    name: str, files: dict[str, pathlib.Path]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the published splits "train" and "test", in their order.

    Args:
        name: Data set.
        files: Path of every original file under its published name, as from `locate`.

    Returns:
        uint8 images `[num, height, width]`, with `[…, channels]` where there are
        several, and uint8 labels `[num]`.
    """
    if name != "cifar10":
        return {
            split: (
                _read_idx(files[f"{place}-images-idx3-ubyte.gz"]),
                _read_idx(files[f"{place}-labels-idx1-ubyte.gz"]),
            )
            for split, place in {"train": "train", "test": "t10k"}.items()
        }
    with tarfile.open(files[CIFAR10_ARCHIVE]) as archive:
        rows = {
            base: np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            for base, content in read_members(archive)
            if base in CIFAR10_MEMBER_MD5
        }
    *train, test = (rows[base] for base in CIFAR10_MEMBER_MD5)
    return {
        split: (rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0])
        for split, rows in {"train": np.concatenate(train), "test": test}.items()
    }


def _read_idx(path):
    """The bytes of an IDX file in their shape."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
