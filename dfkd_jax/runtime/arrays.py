"""Arrays from `.npz` files of anybody's: no pickle, and no more memory than is said."""

import math
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

MOST_BYTES = 8 * 2**30  # Of all arrays that are asked for.
MOST_GROWTH = 200  # A byte of the file to bytes of arrays; deflate reaches 1,032.
ALWAYS_ALLOWED = 64 * 2**20  # Whatever the growth.
MOST_MEMBERS = 1_000
KINDS = "biuf"


def read_npz(
    path: pathlib.Path, names: Sequence[str], *, most_bytes: int = MOST_BYTES
) -> dict[str, np.ndarray]:
    """Those of `names` that are in the file at `path`.

    Nothing is unpacked before the sizes are known: a file that would grow beyond
    reason, or whose arrays are not of the size that they claim, is refused.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, no `.npz`, too large or not of numbers.
    """
    allowed = min(most_bytes, max(ALWAYS_ALLOWED, MOST_GROWTH * path.stat().st_size))
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_MEMBERS:
                raise ValueError(f"{len(entries):,} arrays inside")
            wanted = {f"{name}.npy": name for name in names}
            entries = [entry for entry in entries if entry.filename in wanted]
            total = sum(entry.file_size for entry in entries)
            if total > allowed:
                raise ValueError(f"its arrays take {total:,} bytes, {allowed:,} may be")
            return {wanted[entry.filename]: _read(archive, entry) for entry in entries}
    # Python's readers of archives and NumPy's of headers raise all of these.
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        tokenize.TokenError,
        EOFError,
        KeyError,
        MemoryError,
        NotImplementedError,
        OverflowError,
        RecursionError,
        RuntimeError,
        SyntaxError,
        TypeError,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _read(archive, entry):
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename} is of version {version}")
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
        if dtype.kind not in KINDS or dtype.hasobject:
            raise ValueError(f"{entry.filename} is of {dtype}, not of numbers")
        size = math.prod(shape) * dtype.itemsize
        if size > entry.file_size:
            raise ValueError(f"{entry.filename} claims to be {shape} and is shorter")
        content = file.read(size)
        if len(content) != size or file.read(1):
            raise ValueError(f"{entry.filename} is not of the size that it claims")
    values = np.frombuffer(content, dtype)
    order = "F" if fortran_order else "C"
    return values.reshape(shape, order=order).astype(dtype.newbyteorder("="))
