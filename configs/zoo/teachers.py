"""The zoo: teachers that were trained as people train them, each in another way.

The recipe and the estimate are chosen on the teachers whose `part` is "chosen" and
judged on those whose part is "judged". The parts were fixed before the first run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

NETWORKS = "configs.zoo.networks"
HALF = {"conv_features": (3, 8), "dense_features": (60, 42)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """How a teacher was trained, and which student it gets.

    Attributes:
        part: "chosen" or "judged".
        network: A name of the registry or of `networks.py`.
        student: Arguments of the student, of the same network.
        dataset: A name of `dfkd_jax/data/datasets.py`, or "digits" (scikit-learn).
        classes: Those kept, in their order; empty for all.
        side: Of images, by averaging; 0 as they are.
        shares: Of the training images of each class that are kept; empty for all.
        epochs: Passes over the training part.
        shift: Largest random shift in pixels.
        affine: Standard deviation of a linear map's entries.
        elastic: Standard deviation of elastic displacements, in pixels.
        flip: Whether images are mirrored.
        mixup: α of Beta(α, α); 0 for none.
        label_smoothing: Share that is spread over all classes.
        weight_decay: Joins the gradient, as in PyTorch's Adam.
        weights: Where they lie; empty beside the tests, by the teacher's name.
    """

    part: str
    network: str = "lenet5"
    student: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"conv_features": (3, 8)}
    )
    dataset: str = "mnist"
    classes: tuple[int, ...] = ()
    side: int = 0
    shares: tuple[float, ...] = ()
    epochs: int = 8
    shift: int = 0
    affine: float = 0.0
    elastic: float = 0.0
    flip: bool = False
    mixup: float = 0.0
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    weights: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether its images are those of a data set as it is."""
        return not (self.classes or self.side or self.dataset == "digits")


TEACHERS = {
    # MNIST, LeNet-5.
    "plain": Teacher(part="chosen", weights="mnist_lenet5"),
    "shifted": Teacher(part="judged", shift=2),
    "warped": Teacher(part="chosen", shift=2, affine=0.15, elastic=1.0, epochs=20),
    "smoothing": Teacher(part="chosen", label_smoothing=0.1),
    "smoothing_02": Teacher(part="judged", label_smoothing=0.2),
    "mixup": Teacher(part="judged", mixup=1.0),
    "decay": Teacher(part="chosen", weight_decay=5e-3),
    "dropout": Teacher(part="judged", network="DropoutLeNet", student=HALF),
    "one_epoch": Teacher(part="judged", epochs=1),
    "too_long": Teacher(part="chosen", epochs=20),
    # MNIST, other networks.
    "tanh": Teacher(part="chosen", network="TanhLeNet", student=HALF),
    "mlp": Teacher(part="judged", network="Mlp", student={"features": (100, 50)}),
    "batch_norm": Teacher(
        part="chosen", network="BatchNormCnn", student={"features": (8, 16, 32)}
    ),
    "mixer": Teacher(
        part="judged", network="Mixer", student={"features": 32, "num_blocks": 2}
    ),
    # Fewer classes, rare classes.
    "half_of_the_classes": Teacher(part="chosen", classes=(0, 2, 4, 6, 8)),
    "imbalanced": Teacher(
        part="judged", shares=(1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09, 0.06, 0.05)
    ),
    # Fashion-MNIST.
    "fashion": Teacher(
        part="chosen", dataset="fashion_mnist", weights="fashion_mnist_lenet5"
    ),
    "fashion_smoothing": Teacher(
        part="judged", dataset="fashion_mnist", label_smoothing=0.1, epochs=12
    ),
    "fashion_resnet": Teacher(
        part="judged",
        dataset="fashion_mnist",
        network="SmallResNet",
        student={"features": (8, 16, 32)},
        flip=True,
    ),
    # CIFAR-10.
    "alexnet": Teacher(
        part="judged",
        dataset="cifar10",
        network="alexnet",
        student={
            "conv_features": (24, 64, 96, 96, 64),
            "dense_features": (256, 128),
            "dropout_rate": 0.0,
        },
        weights="cifar10_alexnet",
    ),
    "three_classes": Teacher(
        part="chosen",
        dataset="cifar10",
        classes=(0, 1, 8),
        side=16,
        network="PlainCnn",
        student={"features": (16, 32, 32), "dense_features": 32},
        epochs=30,
        shift=2,
        flip=True,
    ),
    # scikit-learn's digits, 8×8.
    "digits": Teacher(
        part="judged",
        dataset="digits",
        network="DigitsCnn",
        student={"features": (8, 16), "dense_features": 32},
        epochs=60,
    ),
}
