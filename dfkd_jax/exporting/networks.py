"""A trained network as a function of pixels, written so that a product can load it.

What leaves the package takes pixels as a camera or a picture file gives them, divided
by 255, and normalizes them itself:

    images   float32 [batch, height, width, channels], 0 to 1, any batch size
    logits   float32 [batch, classes]

Each format comes as a pair: one function that writes a file, one that reads it back the
way its users do, as a function from pixels to logits.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from dfkd_jax.errors import ExportError
from dfkd_jax.exporting import to_onnx
from dfkd_jax.models import fast
from dfkd_jax.models.network import Model
from dfkd_jax.runtime import admission, files, weights
from dfkd_jax.runtime.trained import TrainedNetwork

PLATFORMS = ("cpu", "cuda", "tpu")
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # Of a logit, or of the largest one if that is greater than 1.
_CHECKED_BATCHES = (1, 63)  # The batch is free, which one size would not show.


Call = Callable[[np.ndarray], np.ndarray]


def card(trained: TrainedNetwork, class_names: Sequence[str]) -> dict[str, Any]:
    """What a user of an exported file has to know, as JSON values.

    Args:
        trained: The network.
        class_names: One a class, or none where nobody gave any.
    """
    description = trained.description
    return {
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": ["batch", *description.image_shape],
        },
        "pixel_scale": [0.0, 1.0],
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", description.num_classes],
        },
        "standardization": "inside",
        "class_names": list(class_names),
        "parameters": weights.count(trained.variables),
        "weights_sha256": trained.sha256,
        "network": description.to_json(),
    }


def evaluation_function(trained: TrainedNetwork) -> Call:
    """Pixels, 0 to 1, to logits as the package itself evaluates a network."""
    logits = jax.jit(trained.model.logits)
    return lambda pixels: np.asarray(
        logits(trained.variables, trained.normalize(pixels))
    )


def serving_function(trained: TrainedNetwork) -> Callable[[jax.Array], jax.Array]:
    """`pixels [batch, height, width, channels]`, 0 to 1, to logits; weights inside.

    With native operations: how the package writes them for speed depends on the machine
    at hand, and an exported file is for others.
    """
    variables = jax.tree.map(jnp.asarray, trained.variables)

    def logits(pixels):
        with fast.native_operations():
            return trained.model.logits(variables, trained.normalize(pixels))

    return logits


def batched_images(trained: TrainedNetwork) -> jax.ShapeDtypeStruct:
    """Pixels in a batch of unknown size."""
    batch = export.symbolic_shape("batch")
    shape = (*batch, *trained.description.image_shape)
    return jax.ShapeDtypeStruct(shape, np.float32)


def write_safetensors(
    path: pathlib.Path, trained: TrainedNetwork, class_names: Sequence[str]
) -> None:
    """Weights and batch statistics in the package's own format, for archives."""
    del class_names  # The description names the data set.
    trained.save(path)


def read_safetensors(path: pathlib.Path, model: Model) -> Call:
    """The function behind a file of `write_safetensors`, given what computes."""
    stored = weights.read(path)
    return evaluation_function(admission.restore(stored, model, source=str(path)))


def write_stablehlo(
    path: pathlib.Path, trained: TrainedNetwork, class_names: Sequence[str]
) -> None:
    """StableHLO for `PLATFORMS` in one file, which has no place for a card."""
    del class_names
    serve = jax.jit(serving_function(trained))
    with _no_source_paths():
        exported = export.export(serve, platforms=PLATFORMS)(batched_images(trained))
        path.write_bytes(exported.serialize())


@contextlib.contextmanager
def _no_source_paths():
    """JAX notes where each operation is written: folders of whoever exports."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def read_stablehlo(path: pathlib.Path, model: Model) -> Call:
    """The function behind a file of `write_stablehlo`, for the machine at hand."""
    del model
    call = export.deserialize(bytearray(path.read_bytes())).call
    return lambda pixels: np.asarray(call(pixels))


def write_onnx(
    path: pathlib.Path, trained: TrainedNetwork, class_names: Sequence[str]
) -> None:
    """ONNX with the card among its metadata.

    Raises:
        ExportError: The converter is not installed, or knows an operation not.
    """
    model = to_onnx.convert(
        serving_function(trained),
        batched_images(trained),
        name=trained.description.network,
        input_name=INPUT,
        output_name=OUTPUT,
        metadata={weights.FORMAT: json.dumps(card(trained, class_names))},
    )
    path.write_bytes(model)


def read_onnx(path: pathlib.Path, model: Model) -> Call:
    """The function behind a file of `write_onnx`, run by ONNX Runtime."""
    del model
    run = to_onnx.load(path.read_bytes())
    return lambda pixels: run({INPUT: pixels})


FORMATS = {
    "safetensors": (write_safetensors, read_safetensors),
    "stablehlo": (write_stablehlo, read_stablehlo),
    "onnx": (write_onnx, read_onnx),
}


def write(
    path: pathlib.Path,
    trained: TrainedNetwork,
    *,
    format_name: str,
    class_names: Sequence[str] = (),
) -> float:
    """Writes a network, reads it back and compares.

    Nothing is left, and what was there before stays, unless all went well.

    Args:
        path: File to write or replace.
        trained: The network.
        format_name: One of `FORMATS`.
        class_names: For the card, if they are known.

    Returns:
        The largest difference of a logit on random images.

    Raises:
        ExportError: It cannot be written, or what was written computes something else.
        StorageError: The disk is full or refuses.
    """
    write_format, read_format = FORMATS[format_name]
    with files.atomic_write(path) as temporary:
        write_format(temporary, trained, class_names)
        call = read_format(temporary, trained.model)
        difference = compare(call, trained, source=str(path))
    if format_name == "stablehlo":
        files.write_json(card_path(path), card(trained, class_names))
    return difference


def card_path(path: pathlib.Path) -> pathlib.Path:
    """Where the card of a StableHLO file is."""
    return path.with_name(f"{path.name}.json")


def compare(call: Call, trained: TrainedNetwork, *, source: str) -> float:
    """The largest difference between logits of `call` and of the network.

    Raises:
        ExportError: It is greater than rounding explains.
    """
    random = np.random.default_rng(0)
    evaluate = evaluation_function(trained)
    worst = 0.0
    for batch in _CHECKED_BATCHES:
        shape = (batch, *trained.description.image_shape)
        pixels = random.random(shape, np.float32)
        found, wanted = call(pixels), evaluate(pixels)
        difference = float(np.max(np.abs(found - wanted)))
        allowed = TOLERANCE * max(1.0, float(np.max(np.abs(wanted))))
        if found.shape != wanted.shape or not difference <= allowed:
            raise ExportError(
                f"{source}: read back, it computes other logits than the network (up "
                f"to {difference:.2g} apart, {allowed:.2g} is allowed), so it is not "
                "kept: try another --format."
            )
        worst = max(worst, difference)
    return worst
