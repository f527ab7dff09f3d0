"""Settings: what can be set, what it means, and what is refused.

Files in `configs/` start from `default_config()` or `default_teacher_config()` and set
values; `from_mapping` turns the result into the frozen dataclasses below, once, before
JAX is imported. Every error names the key and the remedy.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from ml_collections import ConfigDict

from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.models import registry
from dfkd_jax.runtime.descriptions import pixels_problem

T = TypeVar("T")


def _require(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"config.{key}={value!r} is not possible: {allowed}.")


def _each(condition, allowed: str):
    """A check of several fields of a config at `path`."""

    def check(config: Any, path: str, *keys: str) -> None:
        for key in keys:
            value = getattr(config, key)
            _require(condition(value), f"{path}.{key}" if path else key, value, allowed)

    return check


_at_least_one = _each(lambda value: value >= 1, "must be at least 1")
_above_zero = _each(lambda value: value > 0, "must be above 0")
_not_negative = _each(lambda value: value >= 0, "must not be negative")
_probability = _each(lambda value: 0 <= value <= 1, "must be from 0 to 1")
_momentum = _each(lambda value: 0 <= value < 1, "must be from 0 to below 1")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"config.{key}={value!r} is not known: choose one of {', '.join(choices)}."
            + did_you_mean(value, choices)
        )


def _optimizer(config: Any, path: str) -> None:
    key = f"{path}.optimizer" if path else "optimizer"
    _one_of(key, config.optimizer, ("adamw", "sgd"))
    _momentum(config, path, "momentum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network and, for a teacher, its trained weights.

    A network of your own is any linen module that takes images `[batch, height, width,
    channels]` and returns logits; nothing needs to be inherited.

    Attributes:
        network: A name of `models/registry.py`.
        module: "package.module:Class" of a linen module; takes the place of `network`.
        arguments: Fields of the linen module. A field `num_classes` is filled in.
        weights: Teacher only: a name of `teachers/pretrained`, a file (`.safetensors`;
            `.pt` or `.pth` of PyTorch), or a folder of Orbax checkpoints.
        mapping: Teacher only: JSON file that says which PyTorch tensors go where.
        image_shape: Teacher only: (height, width, channels) that it takes. Weights that
            this package wrote know it, and the next two.
        mean: Teacher only: one a channel; the teacher gets (pixels - mean) / std, with
            pixels from 0 to 1.
        std: Teacher only: one a channel.
    """

    network: str = "lenet5"
    module: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""
    mapping: str = ""
    image_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What `models/registry.py` creates."""
        return self.module or self.network

    def validate(self, path: str) -> None:
        """Raises ConfigError for a network that cannot be."""
        if path == "student":
            for key in ("weights", "mapping", "image_shape", "mean", "std"):
                _require(
                    not getattr(self, key),
                    f"{path}.{key}",
                    getattr(self, key),
                    f"only the teacher has it (config.teacher.{key})",
                )
        if self.module:
            _require(
                all(self.module.partition(":")),
                f"{path}.module",
                self.module,
                'write "package.module:Class"',
            )
        else:
            _one_of(f"{path}.network", self.network, tuple(registry.NETWORKS))
        if self.image_shape:
            _require(
                len(self.image_shape) == 3 and min(self.image_shape) > 0,
                f"{path}.image_shape",
                self.image_shape,
                "name height, width and channels",
            )
        if self.mean or self.std:
            channels = (*self.image_shape, len(self.mean or self.std))[:3][-1]
            problem = pixels_problem(self.mean, self.std, channels=channels)
            _require(
                not problem,
                f"{path}.mean",
                self.mean,
                f"{problem} (config.{path}.std={self.std!r})",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """Where soft labels come from.

    Attributes:
        distribution: "gaussian" (Wang, 2021), "dirichlet" (ZSKD), or "one_hot": hard
            labels, drawn evenly (DeepInversion).
        feature_layer: Layer whose output, before the activation, is modelled
            (gaussian): its name in the parameter tree, with slashes where nested.
            Empty: the layer before the last. `python -m dfkd_jax.inspect` lists them.
        sigma: Scale of the covariance (gaussian).
        scale: Whether sigma is a "variance" or a "std" (gaussian).
        weights: Correlate "incoming" or "outgoing" weights (gaussian).
        window: "flatten" or "average" a convolution's window (gaussian).
        mean: Of the features (gaussian): "zero", the "bias" of the feature layer, or
            "batch_norm": running mean and standard deviation of the BatchNorm that
            follows it. "auto" is "batch_norm" where one does, else "zero".
        grid: Of a convolutional feature layer (gaussian): features are drawn at this
            many places each way and interpolated; 1 means one draw for all places.
        candidates: Draws for each soft label (gaussian). With more than 1, the one is
            kept that best shows a class drawn evenly: all classes get their share.
        betas: Scalings of the concentration, drawn evenly (dirichlet).
    """

    distribution: str = "gaussian"
    feature_layer: str = ""
    sigma: float = 2.0
    scale: str = "variance"
    weights: str = "incoming"
    window: str = "flatten"
    mean: str = "auto"
    grid: int = 2
    candidates: int = 1
    betas: tuple[float, ...] = (1.0, 0.1)

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        _one_of(
            f"{path}.distribution",
            self.distribution,
            ("gaussian", "dirichlet", "one_hot"),
        )
        _one_of(f"{path}.scale", self.scale, ("variance", "std"))
        _one_of(f"{path}.weights", self.weights, ("incoming", "outgoing"))
        _one_of(f"{path}.window", self.window, ("flatten", "average"))
        _one_of(f"{path}.mean", self.mean, ("auto", "zero", "bias", "batch_norm"))
        _above_zero(self, path, "sigma")
        _at_least_one(self, path, "grid", "candidates")
        _require(
            bool(self.betas) and min(self.betas) > 0,
            f"{path}.betas",
            self.betas,
            "name at least one, each above 0",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How pseudo samples are made.

    Attributes:
        num_images: Size of the transfer set.
        images_per_device: Images optimised together on one device; also the size of a
            shard of the transfer set. Images depend on it only through rounding, unless
            there is a `batch_norm` prior.
        num_steps: Optimiser steps an image gets; 0 leaves images as they start.
        steps_per_call: Steps in one call of the device (an inner `lax.scan`).
        learning_rate: Adam's, on the parameters of the images.
        temperature: τ at which the teacher is matched to the soft labels.
        activation_weight: λ_a, weight of the activation loss.
        grid_factors: The image is a sum of grids this many times coarser; (1,) means
            plain pixels.
        pixel_bounds: "sigmoid" keeps pixels in [0, 1], "none" lets them go anywhere.
            "rescale" maps each image's least and greatest pixel to 0 and 1 after every
            step, as ZSKD does; plain pixels only.
        init: Images start from "normal" or "uniform" noise.
        init_scale: Standard deviation of normal noise; uniform noise is U(0, this).
        init_offset: Added before the sigmoid; below 0 images start dark.
        total_variation: Weight of the total variation prior.
        l2: Weight of the squared norm of the standardised pixels.
        batch_norm: Weight of the distance between the statistics of the images of a
            device and those that the teacher's BatchNorms keep (DeepInversion), of
            images alone: what a BatchNorm keeps of dense layers may be of dropout.
        batch_norm_distance: "absolute" as in DeepInversion, or "relative" to what the
            teacher keeps, so that layers count alike whatever their scale.
        max_shift: Largest random shift, in pixels, before the teacher looks.
        flip: Probability that images are mirrored before the teacher looks.
        checkpoint_seconds: A batch that takes longer than this is checkpointed.
    """

    num_images: int = 12_800
    images_per_device: int = 100
    num_steps: int = 100
    steps_per_call: int = 50
    learning_rate: float = 0.3
    temperature: float = 10.0
    activation_weight: float = 0.05
    grid_factors: tuple[int, ...] = (4, 2, 1)
    pixel_bounds: str = "sigmoid"
    init: str = "normal"
    init_scale: float = 0.3
    init_offset: float = 0.0
    total_variation: float = 1.5e-3
    l2: float = 3e-4
    batch_norm: float = 0.0
    batch_norm_distance: str = "relative"
    max_shift: int = 1
    flip: float = 0.0
    checkpoint_seconds: float = 60.0

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range or a pair that clashes."""
        _at_least_one(self, path, "num_images", "images_per_device", "steps_per_call")
        _not_negative(self, path, "num_steps")
        _require(
            self.num_images % self.images_per_device == 0,
            f"{path}.num_images",
            self.num_images,
            f"must be a multiple of {path}.images_per_device={self.images_per_device}",
        )
        _require(
            self.num_steps % self.steps_per_call == 0,
            f"{path}.num_steps",
            self.num_steps,
            f"must be a multiple of {path}.steps_per_call={self.steps_per_call}",
        )
        _above_zero(self, path, "learning_rate", "temperature")
        _not_negative(
            self,
            path,
            "init_scale",
            "total_variation",
            "l2",
            "batch_norm",
            "max_shift",
            "checkpoint_seconds",
        )
        _probability(self, path, "flip")
        _require(
            bool(self.grid_factors) and min(self.grid_factors) >= 1,
            f"{path}.grid_factors",
            self.grid_factors,
            "name at least one factor, each at least 1, as in (4, 2, 1)",
        )
        _one_of(
            f"{path}.pixel_bounds", self.pixel_bounds, ("sigmoid", "rescale", "none")
        )
        _one_of(
            f"{path}.batch_norm_distance",
            self.batch_norm_distance,
            ("absolute", "relative"),
        )
        _one_of(f"{path}.init", self.init, ("normal", "uniform"))
        if self.pixel_bounds == "rescale":
            _require(
                self.grid_factors == (1,),
                f"{path}.grid_factors",
                self.grid_factors,
                f'with {path}.pixel_bounds="rescale" it must be (1,)',
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How the student learns.

    Attributes:
        num_steps: Optimiser steps; the student after the last one is the result.
        batch_size: Pseudo samples in a step, over all devices.
        optimizer: "adamw", or "sgd" with Nesterov's momentum.
        learning_rate: The optimiser's peak.
        schedule: Of the learning rate after the warm-up: "cosine" to 0, or "constant".
        warmup_steps: Steps of linear warm-up.
        weight_decay: The optimiser's.
        momentum: Of "sgd".
        labels: "fresh" asks the teacher about every augmented batch; "stored" uses the
            soft labels that images were made for, or the labels of real images (no
            mixing then).
        loss: "l1" or "l2" on logits, or "hinton" (tempered cross-entropy).
        temperature: τ of "hinton" and of stored labels.
        start: What the student starts with: "random", or "teacher" if it is the
            teacher, only narrower: a part of its units, fitted layer by layer to say
            what they said.
        feature_layer: A layer that teacher and student both have, equally wide: the
            student learns the teacher's output there, too, and starts with the
            teacher's weights wherever it has some of the same name and shape. Empty:
            it learns logits alone.
        feature_weight: Of the features' relative squared error, beside `loss`.
        class_balance: From 0, where every image counts the same, to 1, where every
            class of the teacher's answers does: changed images are often of few
            classes.
        mixup: Probability of mixup with another pseudo sample.
        cutmix: Probability of CutMix.
        max_shift: Largest random shift by whole pixels.
        flip: Probability that an image is mirrored.
        mirror: Probability that the left half is mirrored onto the right one.
        fill: Probability of a random shape filled with one shade, on a dark ground,
            through which the image still shows.
        shift: Standard deviation of random shifts, in pixels.
        affine: Standard deviation of the linear map's entries.
        elastic: Standard deviation of elastic displacements, in pixels.
        contrast: Standard deviation of the log contrast.
        brightness: Standard deviation of the brightness.
        noise: Largest standard deviation of white noise.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
    """

    num_steps: int = 10_000
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 4e-3
    schedule: str = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 0.0
    momentum: float = 0.9
    labels: str = "fresh"
    loss: str = "hinton"
    temperature: float = 4.0
    start: str = "random"
    feature_layer: str = ""
    feature_weight: float = 1.0
    class_balance: float = 0.0
    mixup: float = 0.4
    cutmix: float = 0.3
    max_shift: int = 0
    flip: float = 0.0
    mirror: float = 0.0
    fill: float = 0.0
    shift: float = 0.5
    affine: float = 0.2
    elastic: float = 0.5
    contrast: float = 0.0
    brightness: float = 0.0
    noise: float = 0.0
    log_every: int = 100
    checkpoint_every: int = 1_000

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range or a pair that clashes."""
        _at_least_one(
            self, path, "num_steps", "batch_size", "log_every", "checkpoint_every"
        )
        _above_zero(self, path, "learning_rate", "temperature")
        _require(
            0 <= self.warmup_steps < self.num_steps,
            f"{path}.warmup_steps",
            self.warmup_steps,
            f"must be from 0 to below {path}.num_steps={self.num_steps}",
        )
        _one_of(f"{path}.schedule", self.schedule, ("cosine", "constant"))
        _one_of(f"{path}.labels", self.labels, ("fresh", "stored"))
        _one_of(f"{path}.loss", self.loss, ("l1", "l2", "hinton"))
        _one_of(f"{path}.start", self.start, ("random", "teacher"))
        _probability(
            self, path, "class_balance", "mixup", "cutmix", "flip", "mirror", "fill"
        )
        _optimizer(self, path)
        _require(
            self.mixup + self.cutmix <= 1,
            f"{path}.mixup+cutmix",
            self.mixup + self.cutmix,
            "together they must not exceed 1",
        )
        _not_negative(
            self,
            path,
            "weight_decay",
            "feature_weight",
            "max_shift",
            "shift",
            "affine",
            "elastic",
            "contrast",
            "brightness",
            "noise",
        )
        if self.labels == "stored":
            _require(
                self.loss == "hinton",
                f"{path}.loss",
                self.loss,
                f'with {path}.labels="stored" it must be "hinton"',
            )
            _require(
                self.mixup + self.cutmix == 0,
                f"{path}.mixup+cutmix",
                self.mixup + self.cutmix,
                f'mixed samples have no stored label; set {path}.labels="fresh"',
            )
            _require(
                not self.feature_layer,
                f"{path}.feature_layer",
                self.feature_layer,
                f'with {path}.labels="stored" the teacher is not asked; leave it empty',
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the real data set is; read by evaluation and teacher training alone.

    Attributes:
        dataset: A name of `data/datasets.py`; empty to leave evaluation out.
        file: In place of `dataset`: an `.npz` file with a test set of your own,
            `images` `[n, height, width, channels]` (uint8, or floats from 0 to 1) and
            `labels` `[n]`.
        split: What evaluation reads: the "test" set, or "validation", the last 5,000
            images of the training set, on which hyper-parameters are chosen. Of a file
            of your own it says what that file is.
        dir: A TFDS data folder; empty for the one in the user's cache.
        raw_dir: A folder with the original files, used to prepare the data set.
    """

    dataset: str = "mnist"
    file: str = ""
    split: str = "test"
    dir: str = ""
    raw_dir: str = ""

    @property
    def source(self) -> str:
        """What evaluation reads: the name of a data set, a file, or nothing."""
        return self.dataset or self.file

    def validate(self, path: str) -> None:
        """Raises ConfigError for two test sets; `data` knows which names exist."""
        _require(
            not (self.file and self.dataset),
            f"{path}.file",
            self.file,
            f'set {path}.dataset="" with a file of your own',
        )
        _one_of(f"{path}.split", self.split, ("test", "validation"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What every way to a student has to know.

    Attributes:
        name: Of the experiment, in `results.json` and the default work directory.
        seed: Of everything random.
        cpu_devices: Devices that a CPU is divided into; 0 for one a core.
        compute_dtype: "float32", or "bfloat16" to let networks compute in it (GPU,
            TPU); images, parameters and statistics stay float32.
        teacher: Network and weights.
        student: Network.
        data: Held-out set.
    """

    reads_real_data: ClassVar[bool] = False

    name: str
    seed: int = 0
    cpu_devices: int = 0
    compute_dtype: str = "float32"
    teacher: NetworkConfig = dataclasses.field(
        default_factory=lambda: NetworkConfig(weights="mnist_lenet5")
    )
    student: NetworkConfig = dataclasses.field(
        default_factory=lambda: NetworkConfig(network="lenet5_half")
    )
    data: DataConfig = DataConfig()

    @property
    def folder(self) -> str:
        """The default work directory, without the seed."""
        return f"real_data/{self.name}" if self.reads_real_data else self.name

    def validate(self, path: str) -> None:
        """Raises ConfigError for values that clash across sections."""
        del path
        _validate_run(self)
        _require(
            bool(self.teacher.weights),
            "teacher.weights",
            self.teacher.weights,
            "name shipped weights, a file or a folder of Orbax checkpoints",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig(StudentConfig):
    """A student from a teacher's weights alone: Wang (2021), ZSKD, unoptimised noise.

    Attributes:
        targets: Soft labels.
        synthesis: Pseudo samples.
        distillation: Student.
    """

    targets: TargetsConfig = TargetsConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    distillation: DistillationConfig = DistillationConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A network that makes pseudo samples from noise, and how it learns.

    Attributes:
        latent_size: Numbers of noise an image is made from.
        features: Of the projection and the two convolutions before the last.
        epsilon: Added to the variance by the BatchNorms after these two.
        learning_rate: Adam's.
    """

    latent_size: int = 100
    features: tuple[int, ...] = (128, 128, 64)
    epsilon: float = 1e-5
    learning_rate: float = 1e-3

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        _at_least_one(self, path, "latent_size")
        _above_zero(self, path, "epsilon", "learning_rate")
        _require(
            len(self.features) == 3 and min(self.features) >= 1,
            f"{path}.features",
            self.features,
            "name three numbers, each at least 1, as in (128, 128, 64)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedConfig(StudentConfig):
    """A student that learns from a generator, which learns at the same time.

    Attributes:
        generator: Makes pseudo samples.
        num_steps: Steps of the two; the student after the last one is the result.
        batch_size: Pseudo samples in a step, over all devices.
        learning_rate: The student's.
        num_samples: Pseudo samples that are kept in the end, to look at.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
    """

    generator: GeneratorConfig = GeneratorConfig()
    num_steps: int = 2_000
    batch_size: int = 512
    learning_rate: float = 1e-2
    num_samples: int = 1_000
    log_every: int = 50
    checkpoint_every: int = 500

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        super().validate(path)
        keys = ("num_steps", "batch_size", "num_samples")
        _at_least_one(self, path, *keys, "log_every", "checkpoint_every")
        _above_zero(self, path, "learning_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaflConfig(GeneratedConfig):
    """DAFL (Chen et al., 2019). Defaults are the published ones for MNIST.

    Attributes:
        feature_layer: Whose responses the activation loss looks at: a name in the
            parameter tree. Empty: the layer before the last.
        one_hot_weight: Of the one-hot loss.
        information_weight: Of the information entropy loss.
        activation_weight: Of the activation loss.
        optimizer: The student's: "adamw", or "sgd" with Nesterov's momentum.
        schedule: Of the student's learning rate: "constant", or "cosine" to 0.
        weight_decay: The student's.
        momentum: Of "sgd".
    """

    generator: GeneratorConfig = GeneratorConfig(epsilon=0.8, learning_rate=0.2)
    num_steps: int = 24_000
    learning_rate: float = 2e-3
    optimizer: str = "adamw"
    schedule: str = "constant"
    weight_decay: float = 0.0
    momentum: float = 0.9
    feature_layer: str = ""
    one_hot_weight: float = 1.0
    information_weight: float = 5.0
    activation_weight: float = 0.1

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        super().validate(path)
        keys = ("one_hot_weight", "information_weight", "activation_weight")
        _not_negative(self, path, *keys, "weight_decay")
        _optimizer(self, path)
        _one_of("schedule", self.schedule, ("cosine", "constant"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DfadConfig(GeneratedConfig):
    """DFAD (Fang et al., 2019). Defaults are the published ones for MNIST.

    Attributes:
        student_steps: Of the student, for each step of the generator.
        momentum: Of the student's SGD.
        weight_decay: Of the student, added to the gradient.
    """

    student_steps: int = 5
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        super().validate(path)
        _at_least_one(self, path, "student_steps")
        _not_negative(self, path, "weight_decay")
        _momentum(self, path, "momentum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealDataConfig(StudentConfig):
    """NOT data-free: a student from real training images.

    Attributes:
        images_per_class: Drawn by the seed; 0 for all of the training part.
        distillation: Student. With `labels="stored"` it learns the labels of the data
            set and the teacher is not asked.
    """

    reads_real_data: ClassVar[bool] = True

    images_per_class: int = 0
    distillation: DistillationConfig = DistillationConfig()

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        super().validate(path)
        _require_dataset(self)
        _not_negative(self, path, "images_per_class")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetadataConfig(StudentConfig):
    """NOT data-free: a student from statistics recorded on real training images.

    Mean and covariance of the feature layer take the place of the normal that the
    weights give; the rest is as in `ExperimentConfig`.

    Attributes:
        feature_layer: As in `TargetsConfig`.
        grid: As in `TargetsConfig`.
        candidates: As in `TargetsConfig`.
        synthesis: Pseudo samples.
        distillation: Student.
    """

    reads_real_data: ClassVar[bool] = True

    feature_layer: str = ""
    grid: int = 2
    candidates: int = 1
    synthesis: SynthesisConfig = SynthesisConfig()
    distillation: DistillationConfig = DistillationConfig()

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        super().validate(path)
        _require_dataset(self)
        _at_least_one(self, path, "grid", "candidates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherTrainingConfig:
    """A teacher trained on real data, with labels.

    Attributes:
        name: Of the teacher, in `results.json` and the default work directory.
        seed: Of everything random.
        cpu_devices: Devices that a CPU is divided into; 0 for one a core.
        compute_dtype: "float32", or "bfloat16" to let networks compute in it (GPU,
            TPU); images, parameters and statistics stay float32.
        network: A name of `models/registry.py`.
        num_epochs: Passes over the training part.
        batch_size: Images in a step, over all devices.
        optimizer: "adamw", or "sgd" with Nesterov's momentum.
        learning_rate: The optimiser's peak; cosine decay to 0.
        warmup_steps: Steps of linear warm-up.
        weight_decay: The optimiser's.
        momentum: Of "sgd".
        max_shift: Largest random shift, in pixels.
        flip: Probability that an image is mirrored.
        cutout: Side of a square that is covered in every image, in pixels.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
        data: Training and test set.
    """

    reads_real_data: ClassVar[bool] = True

    name: str
    seed: int = 0
    cpu_devices: int = 0
    compute_dtype: str = "float32"
    network: str = "lenet5"
    num_epochs: int = 20
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    momentum: float = 0.9
    max_shift: int = 2
    flip: float = 0.0
    cutout: int = 0
    log_every: int = 100
    checkpoint_every: int = 1_000
    data: DataConfig = DataConfig()

    @property
    def folder(self) -> str:
        """The default work directory, without the seed."""
        return self.name

    def validate(self, path: str) -> None:
        """Raises ConfigError for a value out of range."""
        _validate_run(self)
        _one_of("network", self.network, tuple(registry.NETWORKS))
        _require_dataset(self)
        _require(
            self.data.split == "test",
            "data.split",
            self.data.split,
            "teachers are evaluated on both parts; leave it out",
        )
        _at_least_one(
            self, path, "num_epochs", "batch_size", "log_every", "checkpoint_every"
        )
        _above_zero(self, path, "learning_rate")
        _not_negative(self, path, "warmup_steps", "weight_decay", "max_shift", "cutout")
        _probability(self, path, "flip")
        _optimizer(self, path)


def _validate_run(config: Any) -> None:
    _require(
        config.name.replace("_", "").replace("-", "").isalnum(),
        "name",
        config.name,
        "use letters, digits, - and _",
    )
    _require(
        0 <= config.seed < 2**32, "seed", config.seed, "from 0 to 4294967295 (2³² - 1)"
    )
    _not_negative(config, "", "cpu_devices")
    _one_of("compute_dtype", config.compute_dtype, ("float32", "bfloat16"))


def _require_dataset(config: Any) -> None:
    _require(
        bool(config.data.dataset),
        "data.dataset",
        config.data.dataset,
        "name the data set whose training images are read",
    )


KINDS = {
    "distillation": ExperimentConfig,
    "dafl": DaflConfig,
    "dfad": DfadConfig,
    "real_data": RealDataConfig,
    "metadata": MetadataConfig,
    "teacher": TeacherTrainingConfig,
}


def default_config(kind: str = "distillation") -> ConfigDict:
    """Every setting of a way to a student at its default, to be changed by a file.

    Args:
        kind: One of `KINDS`.
    """
    return ConfigDict(defaults(kind))


def default_teacher_config() -> ConfigDict:
    """Every setting of teacher training at its default, to be changed by a file."""
    return default_config("teacher")


def kind_of(config: Any) -> str:
    """The name of `config`'s kind."""
    return next(kind for kind, cls in KINDS.items() if type(config) is cls)


def defaults(kind: str) -> dict[str, Any]:
    """Every setting of a kind at its default, with `kind` beside them."""
    return {"kind": kind} | dataclasses.asdict(KINDS[kind](name="unnamed"))


def unknown_variant(variant: str, known: tuple[str, ...]) -> ConfigError:
    """The error of a config file that has no such variant."""
    return ConfigError(
        f"The config has no variant {variant!r}: choose one of {', '.join(known)}."
        + did_you_mean(variant, known)
    )


def parse(values: Mapping[str, Any]) -> StudentConfig | TeacherTrainingConfig:
    """The validated config of a mapping with its `kind` beside the settings.

    Raises:
        ConfigError: Names the first key that is unknown, of the wrong type or
            impossible, and what is allowed.
    """
    values = dict(values)
    kind = values.pop("kind", None)
    _one_of("kind", str(kind), tuple(KINDS))
    return from_mapping(KINDS[kind], values)


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """`cls` with the values of a (nested) mapping, validated."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{path}." if path else ""
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"config.{prefix}{key} is not a setting."
                + (did_you_mean(key, fields) or f" There are: {', '.join(fields)}.")
            )
        arguments[key] = _convert(fields[key].type, value, f"{prefix}{key}")
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"config.{prefix}{missing[0]} is missing: set it.")
    result = cls(**arguments)
    result.validate(path)
    return result


def _convert(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.{path}={value!r} must be a group of settings.")
        return from_mapping(kind, value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str) and type(value) is kind:
        if kind is float and not abs(value) < float("inf"):
            raise ConfigError(f"config.{path}={value!r} must be a finite number.")
        return value
    if kind == dict[str, Any] and isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    element = {tuple[int, ...]: int, tuple[float, ...]: float}.get(kind)
    if (
        element
        and isinstance(value, list | tuple)
        and all(type(item) in (int, element) for item in value)
    ):
        return tuple(_convert(element, item, path) for item in value)
    expected = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        tuple[int, ...]: "whole numbers, as in (4, 2, 1)",
        tuple[float, ...]: "numbers, as in (1.0, 0.1)",
        dict[str, Any]: "a group of arguments",
    }[kind]
    raise ConfigError(f"config.{path}={value!r} must be {expected}.")


def _plain(value):
    """Arguments of a linen module, which must be hashable: tuples for lists."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value
