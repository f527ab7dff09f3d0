"""What the measurements share: fair timing, the machine's peak, tables, JSON."""

import argparse
import importlib.metadata
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from dfkd_jax.models.network import Model
from dfkd_jax.runtime import files, parallel, progress, workdir

RUNS = 7
PRODUCTS = 4  # Of a matrix, one after the other: enough that starting costs nothing.


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The flags that all commands have."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--output",
        type=pathlib.Path,
        help=f"JSON file; default benchmarks/results/{name}-<backend>.json",
    )
    found.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes and few runs, to see that it works; its times mean nothing",
    )
    return found


def import_torch() -> Any:
    """PyTorch with a thread a core, or None with a message."""
    try:
        import torch
    except ImportError:
        progress.warn('PyTorch is not here: its rows are left out (extra "bench").')
        return None
    torch.set_num_threads(cores())
    return torch


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts(machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Command, machine and versions. A `load` well above 0 at the start spoils times.

    Args:
        machine: As `parallel.describe` saw it in another process; None to ask here.
    """
    versions = workdir.versions()
    if sys.modules.get("torch"):
        versions["torch"] = importlib.metadata.version("torch")
    return {
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "machine": (machine or parallel.describe())
        | {"cores_of_this_process": cores()},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def _module():
    return f"benchmarks.{pathlib.Path(sys.argv[0]).stem}"


def alternate(
    rivals: Mapping[Any, Callable[[], Any]], *, runs: int
) -> dict[Any, list[float]]:
    """Seconds of every call, `runs` a rival.

    One call each warms up and compiles. Then rivals take turns, so that whatever else
    the machine does meets all of them alike, and each finishes before the next starts.
    """
    for call in rivals.values():
        call()
    seconds: dict[Any, list[float]] = {key: [] for key in rivals}
    for _ in range(runs):
        for key, call in rivals.items():
            start = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def best(seconds: Mapping[Any, Sequence[float]], keys: Sequence[Any]) -> Any:
    """Which of `keys` has the smallest median."""
    return min(keys, key=lambda key: statistics.median(seconds[key]))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """How often `fast` fits into `slow`, turn by turn."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def matmul(*, size: int) -> tuple[Callable[[], Any], float]:
    """A float32 matrix product on all devices at once, and its operations a call.

    At the precision that JAX uses for float32 by default: on a GPU with tensor cores
    that is TF32, as it is for the networks. To be a rival of `alternate`, so that the
    peak is that of the same minutes.
    """

    def products(_, matrix):
        return jax.lax.scan(
            lambda left, _: (left @ matrix, None), matrix, length=PRODUCTS
        )[0]

    count = parallel.device_count()
    random = np.random.default_rng(0).normal(size=(count, size, size))
    matrices = parallel.put_split((random / np.sqrt(size)).astype(np.float32))
    product = parallel.map_devices(products)
    nothing = parallel.replicate(np.zeros(()))
    return (
        lambda: jax.block_until_ready(product(nothing, matrices)),
        count * PRODUCTS * 2 * size**3,
    )


def multiply_adds(model: Model, variables: Any, image_shape: Any) -> list[int]:
    """Multiplications with addition an image, a convolution or dense layer each.

    Winograd's and the like count as what they replace; everything else is left out.
    """
    layers = model.graph(variables, image_shape).layers
    return [
        layer.calls * math.prod(layer.output_shape[:-1]) * math.prod(layer.kernel_shape)
        for name, layer in layers.items()
        if layer.kernel_layer == name
    ]


def synthesis_operations(teacher: Sequence[int]) -> int:
    """An image and step: the teacher forwards, and the gradient of the image.

    Args:
        teacher: From `multiply_adds`, as in what follows; one of these is two
            operations.
    """
    return 2 * 2 * sum(teacher)


def training_operations(network: Sequence[int]) -> int:
    """An image: forwards, and the gradients of features and kernels.

    Nobody needs the gradient of the images, the first layer's features.
    """
    return 2 * (3 * sum(network) - network[0])


def distillation_operations(teacher: Sequence[int], student: Sequence[int]) -> int:
    """An image: the teacher is asked, the student trained."""
    return 2 * sum(teacher) + training_operations(student)


def report(
    name: str,
    arguments: argparse.Namespace,
    results: Mapping[str, Any],
    backend: str,
    *,
    ratios: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes `ratios` (by what is compared) and `results` to the file asked for."""
    path = arguments.output or pathlib.Path(f"benchmarks/results/{name}-{backend}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"benchmark": name, "quick": arguments.quick, "ratios": ratios}
    files.write_json(path, head | dict(results))
    progress.say(f"Written: {path}")


def take_ratios(networks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The `ratios` of every network, by network and rival, moved out of its results."""
    return {
        f"{name}: {rival} / dfkd_jax": found
        for name, result in networks.items()
        for rival, found in result.pop("ratios").items()
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under headings; numbers to the right, to three figures."""
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        shown.add_row(*[_format(value) for value in row])
    Console().print(shown)


def _format(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
