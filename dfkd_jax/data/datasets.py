"""What is known about each data set, and where prepared copies of it lie."""

import dataclasses
import pathlib

from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.runtime import files, places

NUM_VALIDATION = 5_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about a data set, known without reading it.

    Attributes:
        name: As TFDS calls it.
        image_shape: Height, width, channels.
        class_names: In the order of the labels.
        num_train: Size of the published training set, validation included.
        num_test: Size of the published test set.
        mean: Of the training pixels on the 0-1 scale, one a channel.
        std: Likewise, the standard deviation.
        test_class_counts: Test images of each class.
        original_files: Published files, as `--config.data.raw_dir` takes them.
        preparation_bytes: Free disk space that downloading and preparing take at most.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_class_counts: tuple[int, ...]
    original_files: tuple[str, ...]
    preparation_bytes: int

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    def bounds(self, split: str) -> tuple[str, int, int]:
        """The published split, first and end index that make up `split`."""
        end_train = self.num_train - NUM_VALIDATION
        splits = {
            "train": ("train", 0, end_train),
            "validation": ("train", end_train, self.num_train),
            "test": ("test", 0, self.num_test),
        }
        if split not in splits:
            raise ConfigError(unknown("split", split, splits))
        return splits[split]


_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="mnist",
            image_shape=(28, 28, 1),
            class_names=tuple("0123456789"),
            num_train=60_000,
            num_test=10_000,
            mean=(0.1307,),
            std=(0.3081,),
            test_class_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
            original_files=_IDX_FILES,
            preparation_bytes=300_000_000,
        ),
        DatasetSpec(
            name="fashion_mnist",
            image_shape=(28, 28, 1),
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            num_train=60_000,
            num_test=10_000,
            mean=(0.2860,),
            std=(0.3530,),
            test_class_counts=(1_000,) * 10,
            original_files=_IDX_FILES,
            preparation_bytes=400_000_000,
        ),
        DatasetSpec(
            name="cifar10",
            image_shape=(32, 32, 3),
            class_names=(
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ),
            num_train=50_000,
            num_test=10_000,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            test_class_counts=(1_000,) * 10,
            original_files=("cifar-10-binary.tar.gz",),
            preparation_bytes=1_200_000_000,
        ),
    )
}
NAMES = tuple(_SPECS)


def unknown(kind: str, given: str, known) -> str:
    """The message for a name that is not among `known`."""
    hint = did_you_mean(given, known)
    return f'Unknown {kind} "{given}": there are {", ".join(known)}.{hint}'


def spec(name: str) -> DatasetSpec:
    """The facts about data set `name`."""
    if name not in _SPECS:
        raise ConfigError(unknown("data set", name, NAMES))
    return _SPECS[name]


def ways_out(name: str) -> str:
    """What a user can do where a data set cannot be fetched."""
    return (
        "Ways out: (1) give this machine network access to the data set's download "
        "host or to a package registry; (2) --config.data.dir=DIR with a prepared "
        f"TFDS set (DIR/{name}/VERSION/); (3) --config.data.raw_dir=DIR with the "
        f"original files ({', '.join(spec(name).original_files)})."
    )


def resolve_data_dir(data_dir: str = "") -> pathlib.Path:
    """`data_dir`, or the folder in the user's cache where prepared sets lie."""
    if data_dir:
        return pathlib.Path(data_dir).expanduser().absolute()
    return places.cache().absolute() / "tfds"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared TFDS set on disk."""

    path: pathlib.Path
    file_format: str


def find_prepared(name: str, data_dir: pathlib.Path) -> Prepared | None:
    """The newest prepared version of `name`, ArrayRecord before any other format."""
    found = []
    for info in data_dir.glob(f"{name}/*/dataset_info.json"):
        version = info.parent.name.split(".")
        if not all(part.isdecimal() for part in version):
            continue  # An unfinished preparation, or a copy put aside.
        try:
            found_info = files.parse_json(info.read_text("utf-8"))
            file_format = found_info.get("fileFormat", "tfrecord")
        except (OSError, ValueError, AttributeError):
            file_format = "unreadable"
        rank = (file_format == "array_record", [int(part) for part in version])
        found.append((rank, Prepared(info.parent, file_format)))
    return max(found, key=lambda pair: pair[0])[1] if found else None
