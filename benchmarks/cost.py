"""The arithmetic of CIFAR-10 runs: operations, and the seconds that should follow.

    python -m benchmarks.cost
    python -m benchmarks.cost --check

Writes the tables of docs/cost.md, all of which are calculated from the networks and the
configs but for those that are called measured: these are read from benchmarks/results/
and results/.
`--check` writes nothing and fails where a table is out of date.

Nothing is trained and no image made: about 20 seconds on two cores.
"""

import argparse
import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.networks import STUDENTS
from configs import cifar10_alexnet, cifar10_resnet
from configs.teachers import cifar10_alexnet as alexnet_teacher
from configs.teachers import cifar10_resnet34 as resnet_teacher
from dfkd_jax.config import parse
from dfkd_jax.data import datasets
from dfkd_jax.models import registry
from dfkd_jax.models.generator import Generator
from dfkd_jax.models.network import Linen, Model
from dfkd_jax.runtime import progress, weights
from docs.pages.result_tables import markdown

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cost.md"
RESULTS = ROOT / "results"
MEASURED = ROOT / "benchmarks" / "results" / "synthesis-cpu.json"
SHAPE = (32, 32, 3)
# What a network is assumed to reach of a machine's peak; the CPU's is in MEASURED.
CPU_SHARE = 0.6
GPU_SHARE = 0.2
GPU_PEAK = 989e12  # Of an H100 SXM in bfloat16, dense, by its data sheet.
_BLOCK = re.compile(r"(<!-- cost: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if not arguments.check:
        PAGE.write_text(new, encoding="utf-8")
        progress.say(f"Written: {PAGE}")
    elif new != old:
        sys.exit(f"{PAGE} is out of date: python -m benchmarks.cost writes it.")


def filled(text: str) -> str:
    """A page with the tables between its markers made anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


@functools.cache
def network(name: str, arguments: str = "{}") -> tuple[tuple[int, ...], int]:
    """Multiply-adds by layer, and the number of parameters; `arguments` as JSON."""
    made = registry.create(name, num_classes=10, arguments=json.loads(arguments))
    return counted(Linen(made), SHAPE)


@functools.cache
def generator(latent_size: int, features: tuple[int, ...]) -> tuple[int, ...]:
    """Multiply-adds by layer of the generator of DAFL."""
    module = Generator(image_shape=SHAPE, features=features)
    return counted(Linen(module), (latent_size,))[0]


def counted(model: Model, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Multiply-adds by layer, and the number of parameters; nothing is computed.

    Args:
        model: Of linen.
        shape: Of an input.
    """
    variables = model.shapes(shape)
    counts = tuple(measure.multiply_adds(model, variables, shape))
    return counts, weights.count(variables)


def operations(config: Any) -> dict[str, float]:
    """Of every stage of a run. Soft labels, augmentation and evaluation add little.

    Args:
        config: Of any kind, or what `results.json` says of one.
    """
    if hasattr(config, "num_epochs"):
        _, start, stop = datasets.spec(config.data.dataset).bounds("train")
        an_epoch = (stop - start) // config.batch_size * config.batch_size
        per_image = measure.training_operations(network(config.network)[0])
        return {"training": config.num_epochs * an_epoch * per_image}
    teacher, student = (
        network(each.network, json.dumps(dict(each.arguments)))[0]
        for each in (config.teacher, config.student)
    )
    if hasattr(config, "generator"):
        # The generator is trained through the teacher, which the student asks no more.
        made = generator(config.generator.latent_size, tuple(config.generator.features))
        per_image = (
            measure.training_operations(made)
            + measure.synthesis_operations(teacher)
            + measure.training_operations(student)
        )
        return {"distillation": config.num_steps * config.batch_size * per_image}
    found = {}
    if hasattr(config, "synthesis"):
        images = config.synthesis.num_images * config.synthesis.num_steps
        found["synthesis"] = images * measure.synthesis_operations(teacher)
    distillation = config.distillation
    per_image = measure.training_operations(student)
    if distillation.labels == "fresh":
        per_image = measure.distillation_operations(teacher, student)
    images = distillation.num_steps * distillation.batch_size
    return found | {"distillation": images * per_image}


def steps(config: Any) -> dict[str, str]:
    """What a run consists of, in words, by stage."""
    if hasattr(config, "num_epochs"):
        return {"training": f"{config.num_epochs} epochs of {config.batch_size}"}
    if hasattr(config, "generator"):
        return {"distillation": f"{config.num_steps:,} × {config.batch_size:,}"}
    distillation = config.distillation
    found = {
        "distillation": f"{distillation.num_steps:,} × {distillation.batch_size:,}"
    }
    if hasattr(config, "synthesis"):
        images = config.synthesis
        found["synthesis"] = f"{images.num_images:,} × {images.num_steps:,}"
    return found


def runs() -> dict[str, Any]:
    """The configs that there are tables of, by name."""
    found = {}
    for teacher in (alexnet_teacher, resnet_teacher):
        config = _parsed(teacher.get_config())
        found[config.name] = config
    for pair in (cifar10_alexnet, cifar10_resnet):
        for variant in pair.VARIANTS:
            if variant != "smoke":
                config = _parsed(pair.get_config(variant))
                found[config.name] = config
    return found


def _parsed(config):
    """A config that comes with the package: variants may leave some of it idle."""
    values = config.to_dict()
    return parse(values, base=values)


def measured() -> dict[str, Any]:
    """What `benchmarks.synthesis` found on a CPU, by network."""
    return json.loads(MEASURED.read_text())["networks"]


@functools.cache
def cpu_peak() -> float:
    """Operations a second of a large matrix product, the slowest that was measured."""
    return min(found["matmul_operations_per_second"] for found in measured().values())


def cpu_seconds(count: float) -> float:
    """That so many operations should take on the CPU."""
    return count / (CPU_SHARE * cpu_peak())


def table_of_networks() -> str:
    """A row a network of CIFAR-10."""
    names = [name for name in registry.NETWORKS if not name.startswith("lenet5")]
    rows = []
    for name in names:
        counts, parameters = network(name)
        student = STUDENTS.get(name)
        rows.append(
            (
                f"`{name}`",
                f"{parameters:,}",
                _millions(sum(counts)),
                _millions(measure.synthesis_operations(counts)),
                _millions(measure.training_operations(counts)),
                f"{_millions(_of_pair(name, student))} (`{student}`)"
                if student
                else "",
            )
        )
    return markdown(
        (
            "network",
            "parameters",
            "multiply-adds",
            "synthesis, an image and step",
            "training, an image",
            "distillation, an image",
        ),
        rows,
    )


def _of_pair(teacher, student):
    return measure.distillation_operations(network(teacher)[0], network(student)[0])


def table_of_checks() -> str:
    """What a synthesis step should take on the CPU, beside what it took."""
    rows = []
    for name, found in measured().items():
        took = min(
            row["seconds_per_image_and_step"]["median"]
            for row in found["rows"]
            if row["rival"] == "dfkd_jax"
        )
        per_step = found["operations_per_image_and_step"]
        calculated = per_step / (CPU_SHARE * found["matmul_operations_per_second"])
        rows.append(
            (
                f"`{name}`",
                _millions(per_step),
                f"{calculated * 1e6:,.1f}",
                f"{took * 1e6:,.1f}",
                f"{took / calculated:.2f}",
                f"{100 * CPU_SHARE * calculated / took:.0f} %",
            )
        )
    return markdown(
        (
            "network",
            "operations, millions",
            "calculated, µs",
            "measured, µs",
            "measured ÷ calculated",
            "share of peak, measured",
        ),
        rows,
    )


def table_of_runs() -> str:
    """A row a config and variant."""
    rows = []
    for name, config in runs().items():
        found, shape = operations(config), steps(config)
        total = sum(found.values())
        rows.append(
            (
                f"`{name}`",
                shape.get("synthesis", ""),
                shape.get("distillation") or shape["training"],
                _quadrillions(found.get("synthesis", 0)),
                _quadrillions(total - found.get("synthesis", 0)),
                progress.duration(cpu_seconds(total)),
                progress.duration(total / (GPU_SHARE * GPU_PEAK)),
            )
        )
    return markdown(
        (
            "run",
            "synthesis: images × steps",
            "training: steps × batch",
            "synthesis, 10¹⁵",
            "training, 10¹⁵",
            "CPU, calculated",
            "GPU, calculated",
        ),
        rows,
    )


def table_of_made() -> str:
    """Runs with committed results: what a stage should have taken, and what it took."""
    rows = []
    for path in sorted(RESULTS.glob("cifar10_*/*/seed0.json")):
        run = json.loads(path.read_text())
        for stage, count in operations(ConfigDict(run["config"])).items():
            if not count:
                continue
            calculated, took = cpu_seconds(count), run["seconds"][stage]
            rows.append(
                (
                    f"`{path.parent.relative_to(RESULTS).as_posix()}`",
                    stage,
                    _quadrillions(count),
                    progress.duration(calculated),
                    progress.duration(took),
                    f"{took / calculated:.2f}",
                )
            )
    return markdown(
        (
            "results",
            "stage",
            "operations, 10¹⁵",
            "calculated",
            "measured",
            "measured ÷ calculated",
        ),
        rows,
    )


def machines() -> str:
    """What the seconds are calculated with."""
    return markdown(
        ("", "peak, 10¹² operations a second", "share assumed"),
        [
            (
                "CPU: two cores, float32",
                f"{cpu_peak() / 1e12:.3f}, measured",
                f"{100 * CPU_SHARE:.0f} %",
            ),
            (
                "GPU: one H100 SXM, bfloat16",
                f"{GPU_PEAK / 1e12:.0f}, by its data sheet",
                f"{100 * GPU_SHARE:.0f} %, a guess",
            ),
        ],
    )


def _millions(count):
    return f"{count / 1e6:,.1f}"


def _quadrillions(count):
    return f"{float(f'{count / 1e15:.3g}'):,g}" if count else ""


TABLES: Mapping[str, Callable[[], str]] = {
    "networks": table_of_networks,
    "machines": machines,
    "checks": table_of_checks,
    "runs": table_of_runs,
    "made": table_of_made,
}


if __name__ == "__main__":
    main()
