"""MNIST: LeNet-5 to its half, from the weights of the shipped teacher alone.

    python -m dfkd_jax.main --config=configs/mnist.py

4 to 5 minutes on two cores; 98.6 % of the test set (results/mnist/default has three
seeds).
`configs/mnist.py:smoke` shows the whole way in under a minute, to about 90 %.
"""

from ml_collections import ConfigDict

from dfkd_jax.config import default_config, unknown_variant

VARIANTS = ("default", "smoke")


def get_config(variant: str = "default") -> ConfigDict:
    """The recipe, or a variant of it."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = default_config()
    config.name = "mnist"
    config.teacher.network = "lenet5"
    config.teacher.weights = "mnist_lenet5"
    config.student.network = "lenet5_half"
    config.data.dataset = "mnist"

    config.targets.feature_layer = "dense_2"
    config.targets.sigma = 4.0

    synthesis = config.synthesis
    synthesis.num_images = 24_000
    synthesis.images_per_device = 100
    synthesis.num_steps = 100
    synthesis.steps_per_call = 50
    synthesis.learning_rate = 0.3
    synthesis.temperature = 10.0
    synthesis.activation_weight = 0.05
    synthesis.grid_factors = (4, 2, 1)
    synthesis.pixel_bounds = "sigmoid"
    synthesis.init_scale = 0.3
    synthesis.total_variation = 1.5e-3
    synthesis.l2 = 3e-4
    synthesis.max_shift = 2

    distillation = config.distillation
    distillation.num_steps = 20_000
    distillation.batch_size = 128
    distillation.learning_rate = 4e-3
    distillation.warmup_steps = 200
    distillation.loss = "hinton"
    distillation.temperature = 4.0
    distillation.mixup = 0.4
    distillation.cutmix = 0.3
    distillation.shift = 1.0
    distillation.affine = 0.4
    distillation.elastic = 3.0

    if variant == "smoke":
        config.name = "mnist_smoke"
        synthesis.num_images = 400
        synthesis.num_steps = 40
        synthesis.steps_per_call = 20
        distillation.num_steps = 300
        distillation.warmup_steps = 30
        distillation.log_every = 10
        distillation.checkpoint_every = 100
    return config
