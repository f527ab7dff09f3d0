"""A network that is done, as one value: what it answers, its file, its fingerprint."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dfkd_jax.errors import CheckpointError
from dfkd_jax.models.network import Network
from dfkd_jax.runtime import arrays, places, weights

MAX_FINGERPRINT_CLASSES = 1_000
# Of the largest logit: more than other processors round, less than another function.
TOLERANCE = 1e-3
HALF_PRECISION = 30.0  # Times that, where a network rounds to 8 bits by itself.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork(Network):
    """A teacher or a student that is done, ready to be asked; `variables` are NumPy."""

    def __repr__(self) -> str:
        about = self.description
        shape = " × ".join(map(str, about.image_shape))
        layers = ", ".join(self.layers()) or "none found"
        return (
            f"{about.network}: {weights.count(self.variables):,} parameters\n"
            f"  images {shape}, normalized with mean {tuple(about.mean)} and std "
            f"{tuple(about.std)}\n"
            f"  {about.num_classes} classes; layers: {layers}"
        )

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the variables."""
        return weights.digest(self.variables)

    @functools.cached_property
    def fingerprint(self) -> list[list[float]]:
        """Logits of fixed images, a list per image: they tell functions apart.

        With many classes, of the first ones. Empty where a logit is not finite.
        """
        logits = self.answers(fixed_images(self.description.image_shape))
        if not np.isfinite(logits).all():
            return []
        kept = logits[:, :MAX_FINGERPRINT_CLASSES].astype(np.float64)
        return [[float(f"{value:.7g}") for value in row] for row in kept]

    def answers(self, pixels: Any, *, contrast: float = 1.0, scale: float = 1.0) -> Any:
        """Logits of pixels from 0 to 1 with images and parameters times a factor."""
        with np.errstate(over="ignore"):
            params = jax.tree.map(lambda leaf: leaf * scale, self.variables["params"])
        variables = {**self.variables, "params": params}
        # Accelerators multiply float32 with fewer digits unless they are told.
        with jax.default_matmul_precision("highest"):
            images = contrast * self.normalize(pixels)
            return np.asarray(self._logits(variables, images), np.float32)

    def _is_of_half_precision(self):
        """Whether the network itself computes in float16 or bfloat16 somewhere."""
        images = fixed_images(self.description.image_shape)
        return "f16[" in str(jax.make_jaxpr(self._logits)(self.variables, images))

    @functools.cached_property
    def _logits(self):
        return jax.jit(self.model.logits)

    def _ask(self, pixels):
        shape = tuple(self.description.image_shape)
        try:
            pixels = arrays.pixels(pixels, image_shape=shape)
        except ValueError as error:
            raise CheckpointError(
                f"The network takes images {shape}: {error}."
            ) from error
        return self._logits(self.variables, self.normalize(pixels))

    def predict_proba(self, pixels: Any) -> np.ndarray:
        """Probabilities `[batch, classes]` of `[batch, height, width, channels]`.

        Args:
            pixels: uint8, or floats from 0 to 1; they are normalized here.

        Raises:
            CheckpointError: They are not what the network takes.
        """
        return np.asarray(jax.nn.softmax(self._ask(pixels)))

    def predict(self, pixels: Any) -> np.ndarray:
        """Classes `[batch]` of pixels; see `predict_proba`."""
        return np.asarray(self._ask(pixels).argmax(-1))

    def save(self, path: str | pathlib.Path, *, run: str = "") -> None:
        """Writes the weights and their description as a safetensors file.

        Args:
            path: File to write or replace.
            run: Mark of the run that made it (`workdir.mark`), if it belongs to one.
        """
        weights.save(
            places.path(path, source="path"),
            self.variables,
            self.description,
            run=run,
            fingerprint=self.fingerprint,
        )

    def check_fingerprint(self, wanted: Any, *, source: str) -> None:
        """Compares the logits of fixed images with those of an earlier time.

        Args:
            wanted: A `fingerprint`; empty where none was kept.
            source: Where it is from, for the message.

        Raises:
            CheckpointError: The network computes something else.
        """
        if not wanted:
            return
        now = np.asarray(self.fingerprint, np.float64)
        then = (
            np.asarray(wanted, np.float64)
            if weights.is_matrix(wanted)
            else np.full_like(now, np.inf)
        )
        apart, allowed = np.inf, TOLERANCE * np.abs(then).max(initial=0)
        if then.shape == now.shape:
            apart = np.abs(then - now).max(initial=0)
        if apart > allowed and self._is_of_half_precision():
            allowed *= HALF_PRECISION
        if apart <= allowed < np.inf:
            return
        held = {*self.description.arguments, "num_classes"}
        fields = [name for name in self.model.fields if name not in held]
        raise CheckpointError(
            f"{source}: the network {self.description.network!r} computes other logits "
            f"than when it was saved (up to {apart:.2g} apart, expected at most "
            f"{allowed:.2g}): its source was edited, or a field that the file does not "
            f"hold ({', '.join(fields) or 'it holds all'}) has another value. Restore "
            "the source, or set these fields: config.teacher.arguments of a teacher, "
            "load(path, module=Network(...)) in Python."
        )


def fixed_images(image_shape: Sequence[int]) -> np.ndarray:
    """Pixels from 0 to 1, `[4, …]`, the same everywhere and for ever.

    From raw bits, which NumPy promises to keep; two images of fine noise, one of coarse
    noise, and a black one.
    """
    height, width, channels = image_shape
    bits = np.random.PCG64(0).random_raw(2 * height * width * channels)
    fine = ((bits >> np.uint64(40)) / 2.0**24).astype(np.float32)
    fine = fine.reshape(2, height, width, channels)
    rows, columns = (np.arange(size) // 4 for size in (height, width))
    return np.stack([*fine, fine[0][rows][:, columns], np.zeros_like(fine[0])])
