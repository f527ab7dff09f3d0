"""What is measured: networks with their settings, and both sides' steps on them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import networks
from configs import mnist
from dfkd_jax.config import DistillationConfig, SynthesisConfig, parse
from dfkd_jax.distillation import loop as distillation_loop
from dfkd_jax.distillation import step as distillation_steps
from dfkd_jax.models.network import Linen, Model, Network
from dfkd_jax.runtime import optimization, parallel, training, weights
from dfkd_jax.runtime.descriptions import Description
from dfkd_jax.synthesis import loop as synthesis_loop
from dfkd_jax.synthesis import step as synthesis_steps
from dfkd_jax.teachers import weights as teachers

TOLERANCE = 1e-4  # Between the two sides, relative.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher, its student, and how images and student are made.

    Attributes:
        name: The teacher's, in `networks`.
        teacher: The network.
        feature_layer: For the activation loss.
        synthesis: Settings.
        distillation: Settings.
    """

    name: str
    teacher: Network
    feature_layer: str
    synthesis: SynthesisConfig
    distillation: DistillationConfig

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return tuple(self.teacher.description.image_shape)


def case(name: str) -> Case:
    """LeNet-5 as `configs/mnist.py:first` has it, with the weights that are shipped.

    The others take 32×32 color images: plain pixels, no prior, no augmentation, L1
    loss, and weights that have learned nothing, which cost as much as any.
    """
    model = Linen(networks.create(name))
    if name == "lenet5":
        config = parse(mnist.get_config("first").to_dict())
        variables, description = weights.load(teachers.find(config.teacher.weights))
        return Case(
            name=name,
            teacher=Network(model=model, variables=variables, description=description),
            feature_layer=config.targets.feature_layer,
            synthesis=dataclasses.replace(config.synthesis, batch_norm=0.0),
            distillation=config.distillation,
        )
    return Case(
        name=name,
        teacher=Network(
            model=model,
            variables=fresh(model, (32, 32, 3), seed=0),
            description=Description(
                network=name,
                num_classes=10,
                image_shape=(32, 32, 3),
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
                dataset="",
            ),
        ),
        feature_layer="pool" if name.startswith("resnet") else "dense_2",
        synthesis=SynthesisConfig(
            temperature=10.0,
            activation_weight=0.05,
            init="normal",
            grid_factors=(1,),
            pixel_bounds="none",
            batch_norm=0.0,
            max_shift=0,
        ),
        distillation=DistillationConfig(
            loss="l1",
            start="random",
            mixup=0.0,
            cutmix=0.0,
            shift=0.0,
            affine=0.0,
            elastic=0.0,
        ),
    )


def fresh(model: Model, image_shape: tuple[int, int, int], *, seed: int) -> Any:
    """Initial variables, as NumPy arrays."""
    variables = model.init(jax.random.key(seed), image_shape)
    return jax.tree.map(np.asarray, variables)


def student(case: Case, **arguments: Any) -> tuple[Model, Any]:
    """The student and its initial variables."""
    model = Linen(networks.create(networks.STUDENTS[case.name], arguments))
    return model, fresh(model, case.image_shape, seed=1)


def labels(count: int) -> np.ndarray:
    """Soft labels of ten classes."""
    random = np.random.default_rng(0)
    return random.dirichlet(np.ones(10), count).astype(np.float32)


def images(case: Case, count: int, *, seed: int) -> np.ndarray:
    """White noise, `[count, height, width, channels]`."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, *case.image_shape)).astype(np.float32)


class Synthesis:
    """Our side of the synthesis step, lifted to all devices as in production."""

    def __init__(self, case: Case, *, per_device: int, num_steps: int, optimizer=None):
        config = case.synthesis
        parameterization = synthesis_loop.make_parameterization(
            config, case.teacher.description
        )
        optimizer = optimizer or optax.adam(config.learning_rate)
        init = parallel.map_devices(
            synthesis_steps.make_init(
                parameterization=parameterization, optimizer=optimizer
            )
        )
        self._step = parallel.batch_parallel(
            synthesis_loop.make_step(
                config,
                feature_layer=case.feature_layer,
                parameterization=parameterization,
                optimizer=optimizer,
                num_steps=num_steps,
            )
        )
        self.num_images = parallel.device_count() * per_device
        self._key, self._teacher = parallel.replicate((jax.random.key(0), case.teacher))
        self._labels = parallel.split(labels(self.num_images))
        self.state = init(
            (self._teacher, self._key),
            (parallel.split(np.arange(self.num_images)), self._labels),
        )

    def run(self) -> Any:
        """`num_steps` optimizer steps; their metrics."""
        self.state, metrics = self._step(
            self.state, self._teacher, self._labels, self._key
        )
        return jax.block_until_ready((self.state, metrics))[1]

    def grids(self) -> list[np.ndarray]:
        """The images' parameters, `[images, …]`."""
        return [
            np.array(leaf).reshape(-1, *leaf.shape[2:]) for leaf in self.state.params
        ]


class Distillation:
    """Our side of the distillation step, data-parallel as in production."""

    def __init__(
        self,
        case: Case,
        *,
        student: Any,
        variables: Any,
        batches: list[dict[str, np.ndarray]],
        optimizer=None,
    ):
        config = case.distillation
        schedule = optimization.warmup_cosine(
            config.learning_rate,
            warmup_steps=config.warmup_steps,
            num_steps=config.num_steps,
        )
        optimizer = optimizer or optax.adamw(schedule, weight_decay=config.weight_decay)
        step = distillation_steps.make_step(
            student=student,
            augment=distillation_loop.make_augment(config),
            loss=distillation_steps.make_loss(
                config.loss, temperature=config.temperature
            ),
            stored_labels_temperature=None,
        )
        self._call = parallel.data_parallel(training.scan_steps(step))
        state = optimization.create_state(variables, optimizer)
        self.state, self._teacher, self._key = parallel.replicate(
            (state, case.teacher, jax.random.key(0))
        )
        size = training.STEPS_PER_CALL
        self._calls = [batches[at : at + size] for at in range(0, len(batches), size)]

    def run(self) -> Any:
        """A step a batch, with the copies to the devices; the last metrics."""
        for batches in self._calls:
            batch = jax.tree.map(lambda *parts: np.stack(parts), *batches)
            self.state, metrics = self._call(
                self.state, self._teacher, parallel.split(batch, axis=1), self._key
            )
            parallel.block_on_cpu(metrics)
        metrics = jax.tree.map(lambda each: each[-1], metrics)
        return jax.block_until_ready((self.state, metrics))[1]

    def params(self) -> Any:
        """The student's weights as NumPy arrays."""
        return jax.tree.map(np.array, self.state.params)


def batches(case: Case, size: int, *, count: int) -> list[dict[str, np.ndarray]]:
    """What the feed hands to distillation."""
    return [
        {
            "images": images(case, size, seed=2 * index),
            "others": images(case, size, seed=2 * index + 1),
            "labels": labels(size),
        }
        for index in range(count)
    ]


def relative_errors(ours: list[Any], theirs: list[Any]) -> list[float]:
    """Norm of the difference over the norm, an array each."""
    return [
        float(np.linalg.norm(a - b) / np.linalg.norm(a))
        for a, b in zip(ours, theirs, strict=True)
    ]


def check_same_work(
    errors: dict[str, float], *, gradient: float = TOLERANCE
) -> dict[str, float]:
    """`errors`, relative ones of loss and gradient, if they are small.

    Args:
        errors: By name.
        gradient: What is allowed to the gradient.

    Raises:
        AssertionError: They differ: the times of different work are no comparison.
    """
    for name, error in errors.items():
        if not error < (gradient if name == "gradient" else TOLERANCE):
            raise AssertionError(f"PyTorch computes another {name}: off by {error:.1e}")
    return errors
