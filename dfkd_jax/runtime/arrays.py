"""Arrays of anybody's: what `.npz` files hold, and whether it can be images and labels.

Nothing is unpickled, and no more memory is taken than is said.
"""

import math
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_BYTES = 8 * 2**30  # Of all arrays that are asked for.
MAX_GROWTH = 200  # A byte of the file to bytes of arrays; deflate reaches 1,032.
ALWAYS_ALLOWED = 64 * 2**20  # Whatever the growth.
MAX_MEMBERS = 1_000
KINDS = "biuf"
MAX_CLASSES = 1_000_000
MANY_IMAGES = 100  # Among so many, some have a pixel that is not black.
MAX_BLACK = (
    16 / 255
)  # What digits from 0 to 16 reach where they are taken for 0 to 255.
MAX_DARK = 127  # Of bytes: in a set that goes no higher, another number may be white.
WHITES = (1, 15, 16, 31, 63, 100, 127)  # What it is, then, by what they go up to.
ROUNDING = 1e-3


def read_npz(
    path: pathlib.Path, names: Sequence[str], *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Those of `names` that are in the file at `path`.

    Nothing is unpacked before the sizes are known: a file that would grow beyond
    reason, or whose arrays are not of the size that they claim, is refused.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, no `.npz`, too large or not of numbers.
    """
    allowed = min(max_bytes, max(ALWAYS_ALLOWED, MAX_GROWTH * path.stat().st_size))
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_MEMBERS:
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


def labeled(
    images: Any,
    labels: Any,
    *,
    image_shape: Sequence[int] | None = None,
    num_classes: int = MAX_CLASSES,
) -> tuple[np.ndarray, np.ndarray]:
    """A test set as it can be evaluated: its images, and its labels as int32.

    Args:
        images: See `pixels`; of all of them, some have bright pixels.
        labels: `[n]`, integers from 0.
        image_shape: (height, width, channels) that is wanted, if that is known.
        num_classes: How many classes there are, if that is known.

    Raises:
        ValueError: Says what they are, what was expected, and how to get there.
    """
    images = pixels(images, image_shape=image_shape, whole=True)
    labels = _array(labels, "labels")
    found = f"labels are {labels.dtype} {labels.shape}"
    expected = f"expected integers ({len(images)},), one an image"
    if labels.ndim == 2 and labels.shape[0] == len(images):
        one_each = labels.shape[1] == 1
        remedy = "labels[:, 0]" if one_each else "labels.argmax(-1) of one-hot labels"
        raise ValueError(f"{found}, {expected}: give {remedy}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{found}, {expected}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{found}, {expected}: give labels.astype(int) if they are")
    low, high = int(labels.min()), int(labels.max())  # Before a cast would wrap them.
    if low < 0:
        count = np.count_nonzero(labels < 0)
        raise ValueError(
            f"{count:,} labels are below 0 (down to {low}), expected 0 to "
            f"{num_classes - 1}: leave examples out that have no label"
        )
    if high >= num_classes:
        remedy = ": give labels - 1" if (low, high) == (1, num_classes) else ""
        raise ValueError(
            f"labels go up to {high}, expected 0 to {num_classes - 1}{remedy}"
        )
    return images, labels.astype(np.int32)


def pixels(
    images: Any, *, image_shape: Sequence[int] | None = None, whole: bool = False
) -> np.ndarray:
    """Images as a network of this package is shown them, before they are normalized.

    Bytes do not say which number is white. In a whole set that uses less than half of
    them it may be 1, 16 or 100 as well as 255, so such sets are refused: whoever
    divides them by their white says which it is. Floats from 0 to 1 do say it: a dark
    set is taken as floats, unless all of it is black.

    Args:
        images: `[n, height, width, channels]`, uint8, or floats from 0 to 1.
        image_shape: (height, width, channels) that is wanted, if that is known.
        whole: Whether they are a whole test set, and no batch.

    Raises:
        ValueError: Says what they are, what was expected, and how to get there.
    """
    images = _array(images, "images")
    _check_shape(images.shape, image_shape)
    many = whole or len(images) >= MANY_IMAGES
    if images.dtype == np.uint8:
        high = int(images.max())
        if high <= (MAX_DARK if whole else 255 * MAX_BLACK if many else -1):
            white = next(white for white in WHITES if high <= white)
            raise ValueError(
                f"images are uint8 and go up to {high}, so that white may be {white}, "
                f"not 255: give images / {white} then, and images / 255 if they are "
                "that dark"
                if high
                else "images are all black"
            )
    elif images.dtype.kind != "f":
        remedy = {
            "b": "give images.astype(float)",
            "u": "divide them by the value of white",
            "i": "give images.astype(numpy.uint8) if they go from 0 to 255",
        }.get(images.dtype.kind, "give numbers")
        raise ValueError(
            f"images are {images.dtype}, expected uint8 or floats from 0 to 1: {remedy}"
        )
    else:
        low, high = float(images.min()), float(images.max())
        _check_floats(low, high)
        if many and high <= MAX_BLACK:
            white = next(w for w in WHITES if 255 * high <= w * (1 + ROUNDING))
            raise ValueError(
                f"images are {images.dtype} and go up to {high:g}, so that all are "
                f"black to a network: give images * {255 / white:g} if they were "
                f"divided by 255{' twice' if white == 1 else f' and {white} is white'}"
                if high
                else "images are all black"
            )
    return images


def _array(value, name):
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are no array ({error})") from error
    if np.ma.is_masked(value):
        raise ValueError(f"some {name} are masked: leave these examples out")
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.hasobject:
        raise ValueError(f"{name} are an array of Python objects, expected numbers")
    return array


def _check_shape(shape, wanted):
    expected = "[n, height, width, channels]"
    remedy = ""
    if wanted is not None:
        height, width, channels = wanted
        expected = f"(n, {height}, {width}, {channels})"
        remedy = {
            (height, width, channels): ": give images[None]",
            (channels, height, width): ": give numpy.moveaxis(images, 1, -1), with "
            "channels last",
        }.get(tuple(shape) if len(shape) == 3 else tuple(shape[1:]), "")
        if channels == 1 and tuple(shape[1:]) == (height, width):
            remedy = ": give images[..., None]"
        right = tuple(shape[1:]) == (height, width, channels)
    else:
        right = len(shape) == 4
    if not right or not math.prod(shape):
        raise ValueError(f"images are {tuple(shape)}, expected {expected}{remedy}")


def _check_floats(low, high):
    """Raises ValueError where floats are not from 0 to 1; NaN is in neither."""
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    if not math.isfinite(low) or not math.isfinite(high):
        remedy = "they hold NaN or infinity"
    elif -1 - ROUNDING <= low < -0.25 and high <= 1 + ROUNDING:
        remedy = "give (images + 1) / 2 if they go from -1 to 1"
    elif low < 0 and high < 16:
        remedy = (
            "give images * std + mean if they are normalized, which is done here; "
            "clip what an interpolation overshot"
        )
    elif low < 0:
        remedy = "shift and scale them"
    else:
        white = next((w for w in (16, 100, 255, 65_535) if 1.5 < high <= w), None)
        remedy = f"divide them by {white}" if white else "clip or scale them"
    raise ValueError(
        f"images go from {low:g} to {high:g}, expected floats from 0 to 1: {remedy}"
    )
