"""Settings: what can be set, what it means, and what is refused.

Files in `configs/` start from `default_config()` or `default_teacher_config()` and set
values; `from_mapping` turns the result into the frozen dataclasses below, once, before
JAX is imported. Every error names the key and the remedy.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from operator import eq, ne, not_
from typing import Any, ClassVar

from ml_collections import ConfigDict

from dfkd_jax.errors import ConfigError, did_you_mean, shown
from dfkd_jax.models import registry
from dfkd_jax.runtime.descriptions import pixels_problem
from dfkd_jax.settings import (
    MAX_SHARDS,
    from_mapping,
    join,
    one_of,
    require,
    setting,
    unused,
)

_OPTIMIZERS = ("adamw", "sgd")
_SCHEDULES = ("cosine", "constant")
_WEIGHT: dict[str, Any] = {"at_least": 0}
_EXTENT: dict[str, Any] = {"at_least": 0, "at_most": 10}
_PIXELS: dict[str, Any] = {"at_least": 0, "at_most": 16_384}
_COUNT: dict[str, Any] = {"at_least": 1}
_RATE: dict[str, Any] = {"above": 0}
_CHANCE: dict[str, Any] = {"at_least": 0, "at_most": 1}
_TEMPERATURE: dict[str, Any] = {"at_least": 0, "at_most": 10_000}
_MOMENTUM: dict[str, Any] = {
    "at_least": 0,
    "below": 1,
    "needs": ("optimizer", partial(eq, "sgd")),
}
_GAUSSIAN: dict[str, Any] = {"needs": ("distribution", partial(eq, "gaussian"))}
# Images that stay as they start have none.
_OPTIMIZED: dict[str, Any] = {"needs": ("num_steps", bool)}
_NEVER_EMPTY = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network and, for a teacher, its trained weights.

    A network of your own is any of linen, NNX, Equinox, Keras or, as a teacher, PyTorch
    that takes images and returns logits; nothing of this package is inherited.

    Attributes:
        network: A name of `models/registry.py`.
        module: "package.module:Class" of a network, or of a function that makes one;
            takes the place of `network`.
        arguments: Fields of a linen module, or arguments of the class. `num_classes` is
            filled in.
        weights: Teacher only: a name of `teachers/pretrained`, a file (`.safetensors`;
            `.pt` or `.pth` of PyTorch; `.keras`; `.eqx`), or a folder of Orbax
            checkpoints.
        mapping: Teacher only: JSON file that says which PyTorch tensors go where in a
            linen module.
        logits: Teacher only: name or index of the logits, where the network returns
            several things.
        image_shape: Teacher only: (height, width, channels) that it takes. Weights that
            this package wrote know it, and the next two.
        mean: Teacher only: one a channel; the teacher gets (pixels - mean) / std, with
            pixels from 0 to 1.
        std: Teacher only: one a channel.
    """

    network: str = setting("lenet5", needs=("module", not_))
    module: str = setting("")
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = setting("")
    mapping: str = setting("")
    logits: str = setting("")
    image_shape: tuple[int, ...] = setting((), at_least=1, at_most=16_384)
    mean: tuple[float, ...] = setting(())
    std: tuple[float, ...] = setting((), above=0)

    @property
    def name(self) -> str:
        """What `models/registry.py` creates."""
        return self.module or self.network

    def validate(self, path: str) -> None:
        """Raises ConfigError for a network that cannot be."""
        if path == "student":
            for key in ("weights", "mapping", "logits", "image_shape", "mean", "std"):
                require(
                    not getattr(self, key),
                    f"{path}.{key}",
                    getattr(self, key),
                    f"only the teacher has it (config.teacher.{key})",
                )
        if self.module:
            require(
                all(self.module.partition(":")),
                f"{path}.module",
                self.module,
                'write "package.module:Class"',
            )
        else:
            one_of(f"{path}.network", self.network, tuple(registry.NETWORKS))
        if self.image_shape:
            require(
                len(self.image_shape) == 3,
                f"{path}.image_shape",
                self.image_shape,
                "name height, width and channels",
            )
        if self.mean or self.std:
            channels = (*self.image_shape, len(self.mean or self.std))[:3][-1]
            problem = pixels_problem(self.mean, self.std, channels=channels)
            require(
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
        feature_layer: Layer whose output, before the activation, is modeled
            (gaussian): its name in the parameter tree, with slashes where nested.
            Empty: the layer before the last. `python -m dfkd_jax.inspect` lists them.
        sigma: Scale of the covariance (gaussian); 0 for one with which soft labels are
            as decided as suits the teacher (`methods/pilot.py`).
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

    distribution: str = setting(
        "gaussian", choices=("gaussian", "dirichlet", "one_hot")
    )
    feature_layer: str = setting("")
    sigma: float = setting(0.0, at_least=0, at_most=1_000_000, **_GAUSSIAN)
    scale: str = setting("variance", choices=("variance", "std"), **_GAUSSIAN)
    weights: str = setting("incoming", choices=("incoming", "outgoing"), **_GAUSSIAN)
    window: str = setting("flatten", choices=("flatten", "average"), **_GAUSSIAN)
    mean: str = setting(
        "auto", choices=("auto", "zero", "bias", "batch_norm"), **_GAUSSIAN
    )
    grid: int = setting(2, at_least=1, at_most=1_024, **_GAUSSIAN)
    candidates: int = setting(64, at_least=1, at_most=1_000_000, **_GAUSSIAN)
    betas: tuple[float, ...] = setting(
        (1.0, 0.1),
        above=0,
        at_most=1_000_000,
        length=_NEVER_EMPTY,
        needs=("distribution", partial(eq, "dirichlet")),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How pseudo samples are made.

    Attributes:
        num_images: Size of the transfer set.
        images_per_device: Images optimized together on one device; also the size of a
            shard of the transfer set. Images depend on it only through rounding, unless
            there is a `batch_norm` prior.
        num_steps: Optimizer steps an image gets; 0 leaves images as they start.
        steps_per_call: Steps in one call of the device (an inner `lax.scan`).
        learning_rate: Adam's, on the parameters of the images.
        temperature: τ at which the teacher is matched to the soft labels; 0 for the
            size of this teacher's logits (`methods/pilot.py`).
        activation_weight: λ_a, weight of the activation loss.
        grid_factors: The image is a sum of grids this many times coarser; (1,) means
            plain pixels.
        pixel_bounds: "sigmoid" keeps pixels in [0, 1], "none" lets them go anywhere.
            "rescale" maps each image's least and greatest pixel to 0 and 1 after every
            step, as ZSKD does; plain pixels only.
        init: Images start from procedural "shapes", each soft label from one whose
            answer is near; or from "normal" or "uniform" noise.
        init_scale: Standard deviation of normal noise; uniform noise is U(0, this).
        total_variation: Weight of the total variation prior.
        l2: Weight of the squared norm of the normalized pixels.
        batch_norm: Weight of the distance between the statistics of the images of a
            device and those that the teacher's BatchNorms keep (DeepInversion), of
            images alone: what a BatchNorm keeps of dense layers may be of dropout. The
            default is for teachers that have such BatchNorms, and nothing to others.
        batch_norm_distance: The sum over layers of "absolute" distances as in
            DeepInversion, or the mean of "relative" ones, to what the teacher keeps, so
            that layers count alike whatever their scale and number.
        max_shift: Largest random shift, in pixels, before the teacher looks.
        flip: Probability that images are mirrored before the teacher looks.
        checkpoint_seconds: A batch that takes longer than this is checkpointed.
    """

    num_images: int = setting(12_800, at_least=1, at_most=2**40)
    images_per_device: int = setting(100, **_COUNT)
    num_steps: int = setting(40, **_WEIGHT)
    steps_per_call: int = setting(20, **_COUNT, **_OPTIMIZED)
    learning_rate: float = setting(0.3, **_RATE, **_OPTIMIZED)
    temperature: float = setting(0.0, **_TEMPERATURE, **_OPTIMIZED)
    activation_weight: float = setting(0.0, **_OPTIMIZED)
    grid_factors: tuple[int, ...] = setting(
        (1,), at_least=1, at_most=16_384, length=_NEVER_EMPTY
    )
    pixel_bounds: str = setting("sigmoid", choices=("sigmoid", "rescale", "none"))
    init: str = setting("shapes", choices=("shapes", "normal", "uniform"))
    init_scale: float = setting(0.3, **_WEIGHT, needs=("init", partial(ne, "shapes")))
    total_variation: float = setting(0.0, **_WEIGHT, **_OPTIMIZED)
    l2: float = setting(0.0, **_WEIGHT, **_OPTIMIZED)
    batch_norm: float = setting(10.0, **_WEIGHT, **_OPTIMIZED)
    batch_norm_distance: str = setting(
        "relative", choices=("absolute", "relative"), needs=("batch_norm", bool)
    )
    max_shift: int = setting(1, **_PIXELS, **_OPTIMIZED)
    flip: float = setting(0.0, **_CHANCE, **_OPTIMIZED)
    checkpoint_seconds: float = setting(60.0, **_WEIGHT, **_OPTIMIZED)

    @property
    def is_tempered(self) -> bool:
        """Whether `temperature` is looked at: by steps, or by how images start."""
        return bool(self.num_steps) or self.init == "shapes"

    def validate(self, path: str) -> None:
        """Raises ConfigError for a pair of values that clashes."""
        for total, part in (
            ("num_images", "images_per_device"),
            ("num_steps", "steps_per_call"),
        ):
            size = getattr(self, part)
            require(
                getattr(self, total) % size == 0,
                f"{path}.{total}",
                getattr(self, total),
                f"must be a multiple of {path}.{part}={size}",
            )
        require(
            self.num_images // self.images_per_device <= MAX_SHARDS,
            f"{path}.num_images",
            self.num_images,
            f"with {path}.images_per_device={self.images_per_device} at most "
            f"{MAX_SHARDS * self.images_per_device:,} images are possible, in "
            f"{MAX_SHARDS:,} shards",
        )
        if self.init == "shapes":
            require(
                self.pixel_bounds == "sigmoid" and self.grid_factors[-1] == 1,
                f"{path}.init",
                self.init,
                f'set {path}.pixel_bounds="sigmoid" and let {path}.grid_factors end '
                f"with 1, or set {path}.init='normal'",
            )
        if self.pixel_bounds == "rescale":
            require(
                self.grid_factors == (1,),
                f"{path}.grid_factors",
                self.grid_factors,
                f'with {path}.pixel_bounds="rescale" it must be (1,)',
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How the student learns.

    Attributes:
        num_steps: Optimizer steps; the student after the last one is the result.
        batch_size: Pseudo samples in a step, over all devices.
        optimizer: "adamw", or "sgd" with Nesterov's momentum.
        learning_rate: The optimizer's peak.
        schedule: Of the learning rate after the warm-up: "cosine" to 0, or "constant".
        warmup_steps: Steps of linear warm-up.
        weight_decay: The optimizer's.
        momentum: Of "sgd".
        labels: "fresh" asks the teacher about every augmented batch; "stored" uses the
            soft labels that images were made for, or the labels of real images (no
            mixing then).
        loss: "l1" or "l2" on logits, or "hinton" (tempered cross-entropy).
        temperature: τ of "hinton" and of stored labels; 0 for the size of this
            teacher's logits (`methods/pilot.py`).
        start: What the student starts with: "random", or "teacher" if it is the
            teacher, only narrower, in any framework: a part of its units, fitted layer
            by layer to say what they said. "auto" is "teacher" where that can be.
        feature_layer: A layer that teacher and student both have, equally wide: the
            student learns the teacher's output there, too, and starts with the
            teacher's weights wherever it has some of the same name and shape. Empty:
            it learns logits alone.
        feature_weight: Of the features' relative squared error, beside `loss`.
        class_balance: From 0, where every image counts the same, to 1, where every
            class of the teacher's answers does: changed images are often of few
            classes.
        procedural: Every so many-th image of a batch is a procedural one that is drawn
            anew, in place of a pseudo sample; 0 for none.
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

    num_steps: int = setting(10_000, **_COUNT)
    batch_size: int = setting(128, **_COUNT)
    optimizer: str = setting("adamw", choices=_OPTIMIZERS)
    learning_rate: float = setting(2e-3, **_RATE)
    schedule: str = setting("cosine", choices=_SCHEDULES)
    warmup_steps: int = setting(200, **_WEIGHT)
    weight_decay: float = setting(0.0, **_WEIGHT)
    momentum: float = setting(0.9, **_MOMENTUM)
    labels: str = setting("fresh", choices=("fresh", "stored"))
    loss: str = setting("hinton", choices=("l1", "l2", "hinton"))
    temperature: float = setting(
        0.0, **_TEMPERATURE, needs=("loss", partial(eq, "hinton"))
    )
    start: str = setting("auto", choices=("auto", "random", "teacher"))
    feature_layer: str = setting("")
    feature_weight: float = setting(1.0, **_WEIGHT, needs=("feature_layer", bool))
    class_balance: float = setting(0.0, **_CHANCE)
    procedural: int = setting(2, **_WEIGHT)
    mixup: float = setting(0.25, **_CHANCE)
    cutmix: float = setting(0.25, **_CHANCE)
    max_shift: int = setting(0, **_PIXELS)
    flip: float = setting(0.0, **_CHANCE)
    mirror: float = setting(0.0, **_CHANCE)
    fill: float = setting(0.0, **_CHANCE)
    shift: float = setting(0.5, **_PIXELS)
    affine: float = setting(0.1, **_EXTENT)
    elastic: float = setting(0.5, **_PIXELS)
    contrast: float = setting(0.0, **_EXTENT)
    brightness: float = setting(0.0, **_EXTENT)
    noise: float = setting(0.0, **_EXTENT)
    log_every: int = setting(100, **_COUNT)
    checkpoint_every: int = setting(1_000, **_COUNT)

    @property
    def is_tempered(self) -> bool:
        """Whether `temperature` is looked at."""
        return self.loss == "hinton"

    def validate(self, path: str) -> None:
        """Raises ConfigError for values that clash."""
        require(
            self.warmup_steps < self.num_steps,
            f"{path}.warmup_steps",
            self.warmup_steps,
            f"must be from 0 to below {path}.num_steps={self.num_steps}",
        )
        mixed = self.mixup + self.cutmix
        where = f"{path}.mixup+cutmix"
        require(mixed <= 1, where, mixed, "together they must not exceed 1")
        if self.labels == "stored":
            require(
                self.loss == "hinton",
                f"{path}.loss",
                self.loss,
                f'with {path}.labels="stored" it must be "hinton"',
            )
            require(
                not mixed,
                where,
                mixed,
                f'mixed samples have no stored label; set {path}.labels="fresh"',
            )
            require(
                not self.procedural,
                f"{path}.procedural",
                self.procedural,
                f'procedural images have no stored label; set {path}.labels="fresh"',
            )
            require(
                not self.feature_layer,
                f"{path}.feature_layer",
                self.feature_layer,
                f'with {path}.labels="stored" the teacher is not asked; leave it empty',
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the real data set is; read by evaluation and teacher training alone.

    Attributes:
        dataset: "mnist", "fashion_mnist", "cifar10", or what TFDS calls another set of
            labeled images of one size, prepared in `dir`; empty to leave evaluation
            out.
        file: In place of `dataset`: an `.npz` file with a test set of your own,
            `images` `[n, height, width, channels]` (uint8 where 255 is white, or floats
            from 0 to 1) and `labels` `[n]`.
        split: What evaluation reads: the "test" set, or "validation", the last 5,000
            images of the training set (the last tenth, of a set that is not built in),
            on which hyper-parameters are chosen. Of a file of your own it says what
            that file is.
        teacher_accuracy: The teacher's share of right answers on such data, from 0 to
            1, where it is known: with it, what is told of a student without data is far
            nearer the truth. 0 where it is not.
        dir: A TFDS data folder; empty for the one in the user's cache.
        raw_dir: A folder with the original files, used to prepare the data set.
    """

    dataset: str = setting("mnist")
    file: str = setting("")
    split: str = setting("test", choices=("test", "validation"))
    teacher_accuracy: float = setting(0.0, **_CHANCE)
    dir: str = setting("", needs=("dataset", bool))
    raw_dir: str = setting("", needs=("dataset", bool))

    @property
    def source(self) -> str:
        """What evaluation reads: the name of a data set, a file, or nothing."""
        return self.dataset or self.file

    def validate(self, path: str) -> None:
        """Raises ConfigError for two test sets; `data` knows which names exist."""
        require(
            not (self.file and self.dataset),
            f"{path}.file",
            self.file,
            f'set {path}.dataset="" with a file of your own',
        )
        require(
            bool(self.source) or self.split == "test",
            f"{path}.split",
            self.split,
            f"no test set is named: set config.{path}.dataset or config.{path}.file",
        )


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
    seed: int = setting(0, at_least=0, at_most=2**32 - 1)
    cpu_devices: int = setting(0, at_least=0, at_most=1_024)
    compute_dtype: str = setting("float32", choices=("float32", "bfloat16"))
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
        _validate_name(self)
        require(
            bool(self.teacher.weights),
            "teacher.weights",
            self.teacher.weights,
            "name shipped weights, a file or a folder of Orbax checkpoints",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig(StudentConfig):
    """A student from a teacher's weights alone: Wang (2021), ZSKD, unoptimized noise.

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

    latent_size: int = setting(100, **_COUNT)
    features: tuple[int, ...] = setting((128, 128, 64), **_COUNT, length=3)
    epsilon: float = setting(1e-5, **_RATE)
    learning_rate: float = setting(1e-3, **_RATE)


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
    num_steps: int = setting(2_000, **_COUNT)
    batch_size: int = setting(512, **_COUNT)
    learning_rate: float = setting(1e-2, **_RATE)
    num_samples: int = setting(1_000, **_COUNT)
    log_every: int = setting(50, **_COUNT)
    checkpoint_every: int = setting(500, **_COUNT)


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
    num_steps: int = setting(24_000, **_COUNT)
    learning_rate: float = setting(2e-3, **_RATE)
    optimizer: str = setting("adamw", choices=_OPTIMIZERS)
    schedule: str = setting("constant", choices=_SCHEDULES)
    weight_decay: float = setting(0.0, **_WEIGHT)
    momentum: float = setting(0.9, **_MOMENTUM)
    feature_layer: str = setting("", needs=("activation_weight", bool))
    one_hot_weight: float = setting(1.0, **_WEIGHT)
    information_weight: float = setting(5.0, **_WEIGHT)
    activation_weight: float = setting(0.1, **_WEIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DfadConfig(GeneratedConfig):
    """DFAD (Fang et al., 2019). Defaults are the published ones for MNIST.

    Attributes:
        student_steps: Of the student, for each step of the generator.
        momentum: Of the student's SGD.
        weight_decay: Of the student, added to the gradient.
    """

    student_steps: int = setting(5, **_COUNT)
    momentum: float = setting(0.9, at_least=0, below=1)
    weight_decay: float = setting(1e-4, **_WEIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealDataConfig(StudentConfig):
    """NOT data-free: a student from real training images.

    Attributes:
        images_per_class: Drawn by the seed; 0 for all of the training part.
        distillation: Student. With `labels="stored"` it learns the labels of the data
            set and the teacher is not asked.
    """

    reads_real_data: ClassVar[bool] = True

    images_per_class: int = setting(0, **_WEIGHT)
    distillation: DistillationConfig = DistillationConfig(procedural=0)

    def validate(self, path: str) -> None:
        """Raises ConfigError where no training images are named."""
        super().validate(path)
        _require_dataset(self)


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

    feature_layer: str = setting("")
    grid: int = setting(2, at_least=1, at_most=1_024)
    candidates: int = setting(1, at_least=1, at_most=1_000_000)
    synthesis: SynthesisConfig = SynthesisConfig()
    distillation: DistillationConfig = DistillationConfig(procedural=0)

    def validate(self, path: str) -> None:
        """Raises ConfigError where no training images are named."""
        super().validate(path)
        _require_dataset(self)


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
        learning_rate: The optimizer's peak; cosine decay to 0.
        warmup_steps: Steps of linear warm-up.
        weight_decay: The optimizer's.
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
    seed: int = setting(0, at_least=0, at_most=2**32 - 1)
    cpu_devices: int = setting(0, at_least=0, at_most=1_024)
    compute_dtype: str = setting("float32", choices=("float32", "bfloat16"))
    network: str = setting("lenet5", choices=tuple(registry.NETWORKS))
    num_epochs: int = setting(20, at_least=1, at_most=10_000)
    batch_size: int = setting(128, **_COUNT)
    optimizer: str = setting("adamw", choices=_OPTIMIZERS)
    learning_rate: float = setting(2e-3, **_RATE)
    warmup_steps: int = setting(200, **_WEIGHT)
    weight_decay: float = setting(1e-4, **_WEIGHT)
    momentum: float = setting(0.9, **_MOMENTUM)
    max_shift: int = setting(2, **_PIXELS)
    flip: float = setting(0.0, **_CHANCE)
    cutout: int = setting(0, **_PIXELS)
    log_every: int = setting(100, **_COUNT)
    checkpoint_every: int = setting(1_000, **_COUNT)
    data: DataConfig = DataConfig()

    @property
    def folder(self) -> str:
        """The default work directory, without the seed."""
        return self.name

    def validate(self, path: str) -> None:
        """Raises ConfigError for values that clash across sections."""
        del path
        _validate_name(self)
        _require_dataset(self)
        require(
            self.data.split == "test",
            "data.split",
            self.data.split,
            "teachers are evaluated on both parts; leave it out",
        )
        require(
            not self.data.teacher_accuracy,
            "data.teacher_accuracy",
            self.data.teacher_accuracy,
            "here it is measured; leave it out",
        )


def _validate_name(config: Any) -> None:
    require(
        config.name.replace("_", "").replace("-", "").isalnum(),
        "name",
        config.name,
        "use letters, digits, - and _",
    )


def _require_dataset(config: Any) -> None:
    require(
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


def begin_from_noise(config: Any) -> None:
    """Images start as noise, the student from scratch, as in published recipes."""
    if "synthesis" in config:
        config.synthesis.init = "normal"
    if "distillation" in config:
        config.distillation.procedural = 0
        config.distillation.start = "random"


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


def parse(
    values: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
) -> StudentConfig | TeacherTrainingConfig:
    """Returns the validated config of a mapping with its `kind` beside the settings.

    Args:
        values: Settings by group.
        base: What a config file gives, if `values` are that with changes: what the file
            sets and the changes make idle is not held against them.

    Raises:
        ConfigError: Names the first key that is unknown, of the wrong type, impossible
            or without effect, and what is allowed.
    """
    cls, values = kind_of_values(values)
    result = from_mapping(cls, values)
    own = dataclasses.asdict(cls(name="unnamed"))
    accepted = {}
    if base is not None:
        _, base = kind_of_values(base)
        idle = {key for key, *_ in unused(cls, base, own)}
        accepted = {key: value for key, value in _flat(base) if key not in idle}
    for key, value, reason in unused(cls, values, own):
        if key not in accepted or accepted[key] != value:
            raise ConfigError(
                f"config.{key}={shown(value)} has no effect with {reason}: leave it "
                "out, or change the other."
            )
    return result


def kind_of_values(values: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """Returns the class that a mapping's `kind` names, and the other settings."""
    values = dict(values)
    kind = values.pop("kind", None)
    one_of("kind", str(kind), tuple(KINDS))
    return KINDS[str(kind)], values


def _flat(values, path=""):
    """Yields dotted names and values of nested settings."""
    for key, value in values.items():
        yield join(path, key), value
        if isinstance(value, Mapping):
            yield from _flat(value, join(path, key))
