"""CIFAR-10: ResNet-34 to ResNet-18, from the weights of the teacher alone.

    python -m dfkd_jax.main --config=configs/cifar10_resnet.py

For a GPU; add `--config.compute_dtype=bfloat16`. The teacher does not come with the
package; configs/teachers/cifar10_resnet34.py trains it, or name weights of your own:
`--config.teacher.weights=FILE.safetensors` (or `.pth` of PyTorch, with mean and std).
No accuracy has been measured yet. docs/cost.md has the arithmetic of every variant, and
the seconds that it should take. On a CPU only `:smoke` is of use, which shows the whole
way in a few minutes of two cores, and no accuracy.

Data-free methods to compare with, from the same teacher: the first version's recipe,
Wang (2021), Nayak et al. (2019), Chen et al. (2019), Yin et al. (2020), unoptimized
noise.

    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:first
    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:paper
    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:zskd
    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:dafl
    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:deep_inversion
    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:noise

NOT data-free, to compare with: the teacher's answers about the real training images.

    python -m dfkd_jax.main --config=configs/cifar10_resnet.py:kd

The recipe is the same for every teacher. Settings of other methods are those of
configs/cifar10_alexnet.py, which says where each is from, but for what follows here.
Their feature layer is the vector of 512 that the last layer reads; its units' incoming
weights are the kernels of the last convolution.
`--config.targets.window=average` averages these over their windows: docs/ablations.md
compares both, with smaller networks.
"""

from ml_collections import ConfigDict

from dfkd_jax.config import unknown_variant
from dfkd_jax.config_files import neighbor

ALEXNET = neighbor(__file__, "cifar10_alexnet.py")
VARIANTS = dict(ALEXNET["VARIANTS"])
del VARIANTS["scratch"]  # As all students here start.


def get_config(variant: str = "default") -> ConfigDict:
    """The recipe, or a variant of it."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, tuple(VARIANTS))
    config = ALEXNET["get_config"](variant)
    config.name = config.name.replace("alexnet", "resnet", 1)
    config.teacher.network = "resnet34"
    config.teacher.weights = "runs/teacher_cifar10_resnet34/seed0/teacher.safetensors"
    config.student.network = "resnet18"
    config.student.arguments = {}  # It has no dropout to be turned off.
    if variant == "first":  # A chain of layers alone can be a part of the teacher.
        config.distillation.start = "random"
    if "targets" in config and variant not in ALEXNET["OURS"]:
        config.targets.feature_layer = "pool"
    if variant in CHANGES:
        CHANGES[variant](config)
    return config


def _recipe(config: ConfigDict) -> None:
    config.synthesis.num_images = 51_200
    config.synthesis.images_per_device = 256
    config.distillation.num_steps = 80_000


def _first_recipe(config: ConfigDict) -> None:
    _recipe(config)
    config.targets.sigma = 2.0
    config.synthesis.num_steps = 500
    config.synthesis.batch_norm = 1.8  # AlexNet's is 1.5.
    _distillation(config.distillation)


def _distillation(distillation: ConfigDict) -> None:
    distillation.num_steps = 80_000
    distillation.optimizer = "sgd"
    distillation.learning_rate = 0.05
    distillation.weight_decay = 5e-4
    distillation.temperature = 4.0


def _smoke(config: ConfigDict) -> None:
    config.synthesis.num_images = 16
    config.synthesis.images_per_device = 4
    config.synthesis.num_steps = 4
    config.synthesis.steps_per_call = 2
    config.targets.candidates = 4
    config.distillation.num_steps = 6
    config.distillation.batch_size = 8
    config.distillation.warmup_steps = 2
    config.distillation.log_every = 2
    config.distillation.checkpoint_every = 6


def _noise(config: ConfigDict) -> None:
    config.synthesis.num_images = 51_200
    config.synthesis.images_per_device = 256
    _distillation(config.distillation)


def _dafl(config: ConfigDict) -> None:
    config.feature_layer = "pool"  # Published: what the last layer reads.


def _deep_inversion(config: ConfigDict) -> None:
    config.distillation.num_steps = 80_000  # Inferred: 200 epochs.


def _kd(config: ConfigDict) -> None:
    _distillation(config.distillation)


CHANGES = {
    "default": _recipe,
    "first": _first_recipe,
    "smoke": _smoke,
    "noise": _noise,
    "dafl": _dafl,
    "deep_inversion": _deep_inversion,
    "kd": _kd,
}
