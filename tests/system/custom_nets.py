"""Networks that are not of the package, as users bring them."""

from flax import linen as nn


class Toy(nn.Module):
    """Two layers, for tests that pay for compiling and not for arithmetic."""

    width: int = 16
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, name="logits")(x)


class SmallCnn(nn.Module):
    """Convolution, BatchNorm, dense layers, dropout; told apart by `training`."""

    width: int = 8
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, training):
        x = nn.Conv(self.width, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not training, name="norm")(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.Dense(4 * self.width, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not training, name="hidden_norm")(x)
        x = nn.Dropout(0.2, deterministic=not training)(nn.relu(x))
        return nn.Dense(self.num_classes, name="logits")(x)


class Stage(nn.Module):
    """Part of a network that nests modules."""

    width: int

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=deterministic)(x))


class AllConvolutional(nn.Module):
    """No dense layer but the last; told apart by `deterministic`."""

    width: int = 16
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, deterministic: bool = True):
        x = Stage(self.width, name="first")(x, deterministic)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = Stage(2 * self.width, name="second")(x, deterministic)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class LateNorm(nn.Module):
    """A BatchNorm of flattened maps, and one before all else."""

    width: int = 8

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="first")(x)
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2, name="conv")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train, name="late")(x)
        return nn.Dense(10, name="logits")(x)


class Shared(nn.Module):
    """One layer called twice, and no word of training."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="first")(x.reshape(x.shape[0], -1))
        again = nn.Dense(6, name="again")
        return nn.Dense(3, name="last")(again(nn.relu(again(nn.relu(x)))))


class NoKernel(nn.Module):
    """Nothing that could be a feature layer."""

    @nn.compact
    def __call__(self, x):
        return x.mean((1, 2)) + self.param("bias", nn.initializers.ones, (1, 2))


class NoLogits(nn.Module):
    """Feature maps, where logits belong."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3, 3))(x)


class NotLinen:
    """No linen module at all."""
