"""The synthesis step: seconds an image and step, beside eager PyTorch.

    python -m benchmarks.synthesis
    python -m benchmarks.synthesis --networks=lenet5,alexnet --compile=lenet5

Ours is the package's own step on all devices, with the settings of
configs/mnist.py:first for LeNet-5 and plain ones for the others. PyTorch's is
benchmarks/torch_reference.py; that both compute the same loss and gradient is checked
first. Rivals take turns within one run; each is given several batch sizes and judged by
its best. "Of peak" is the share of a big float32 matrix product's rate, with forward
pass and gradient of the images counted, and nothing but convolutions and dense layers.

About 3 minutes on two cores. Without PyTorch its rows are left out.
"""

import dataclasses
import statistics
from typing import Any

from benchmarks import measure
from dfkd_jax.runtime import parallel, progress

# For each backend and network: images a device for us, images for PyTorch, and steps in
# a call, for us and PyTorch.
SIZES = {
    "cpu": {
        "lenet5": ((50, 100, 200), (50, 100, 200, 400), (50, 10)),
        "cnn": ((50, 100, 200), (50, 100, 200, 400), (20, 10)),
        "cnn_wide": ((25, 50, 100), (50, 100, 200), (10, 5)),
        "alexnet": ((16, 32, 64), (16, 32, 64, 128), (4, 2)),
        "alexnet_wang": ((32, 64, 128), (64, 128, 256), (4, 2)),
        "resnet34": ((8, 16), (16, 32), (5, 1)),
    },
    "gpu": {
        "lenet5": ((1_000, 4_000, 16_000), (1_000, 4_000, 16_000), (50, 20)),
        "cnn": ((1_000, 4_000), (1_000, 4_000), (50, 20)),
        "cnn_wide": ((1_000, 4_000), (1_000, 4_000), (50, 20)),
        "alexnet": ((256, 1_024, 4_096), (256, 1_024, 4_096), (10, 10)),
        "alexnet_wang": ((256, 1_024, 4_096), (256, 1_024, 4_096), (10, 10)),
        "resnet34": ((64, 256, 512), (64, 256, 512), (5, 5)),
    },
}
QUICK = ((2,), (4,), (2, 1))


def main() -> None:
    parser = measure.parser("synthesis", __doc__)
    parser.add_argument(
        "--networks", default=",".join(SIZES["cpu"]), help="default: %(default)s"
    )
    parser.add_argument(
        "--compile",
        default="lenet5,alexnet",
        help="networks for which torch.compile is tried; default: %(default)s",
    )
    parser.add_argument(
        "--devices", type=int, default=0, help="CPU devices; default: one a core"
    )
    parser.add_argument("--runs", type=int, default=measure.RUNS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.compile = 2, ""
    parallel.configure(cpu_devices=arguments.devices)
    torch = measure.import_torch()

    import jax

    backend = jax.default_backend()
    results = {"facts": measure.facts(), "networks": {}}
    if torch is not None:
        results["torch"] = torch_facts(torch)
    for name in arguments.networks.split(","):
        sizes = SIZES["cpu" if backend == "cpu" else "gpu"][name]
        results["networks"][name] = measure_network(
            name,
            *(QUICK if arguments.quick else sizes),
            torch=torch,
            compiled=name in arguments.compile.split(","),
            matmul=64 if arguments.quick else 2_048,
            runs=arguments.runs,
        )
    ratios = measure.take_ratios(results["networks"])
    measure.report("synthesis", arguments, results, backend, ratios=ratios)


def torch_facts(torch: Any) -> dict[str, Any]:
    """Device, threads and what PyTorch may do with float32."""
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def measure_network(
    name, per_device, torch_batches, num_steps, *, torch, compiled, matmul, runs
):
    """Times of both sides on one network; prints its table."""
    from benchmarks import cases

    case = cases.case(name)
    our_steps, torch_steps = num_steps
    rivals, work, same_work, note = {}, {}, None, None
    rivals["matmul"], work["matmul"] = measure.matmul(size=matmul)
    for size in per_device:
        ours = cases.Synthesis(case, per_device=size, num_steps=our_steps)
        key = ("dfkd_jax", ours.num_images)
        rivals[key], work[key] = ours.run, ours.num_images * our_steps
    if torch is not None:
        same_work = cases.check_same_work(compare(case, per_device=4))
        for size in torch_batches:
            key = ("PyTorch eager", size)
            rivals[key] = torch_run(torch, torch_rival(case, size), torch_steps)
            work[key] = size * torch_steps

    def timed(rivals):
        seconds = measure.alternate(rivals, runs=runs)
        return {key: [s / work[key] for s in seconds[key]] for key in rivals}

    seconds = timed(rivals)
    peak = 1 / statistics.median(seconds.pop("matmul"))
    mine = measure.best(seconds, [key for key in seconds if key[0] == "dfkd_jax"])
    ratios = {}
    if torch is not None:
        eager = measure.best(seconds, [k for k in seconds if k[0] == "PyTorch eager"])
        ratios["PyTorch eager at its best batch"] = measure.ratio(
            seconds[eager], seconds[mine]
        )
        if compiled:
            key = ("torch.compile", eager[1])
            work[key] = eager[1] * torch_steps
            rival = torch_rival(case, eager[1])
            torch.compiler.reset()  # Of what it learned from other networks.
            rival.objective = torch.compile(rival.loss)
            call = torch_run(torch, rival, torch_steps)
            try:
                # Beside the best of ours, in turns again.
                again = timed({mine: rivals[mine], key: call})
                seconds[key] = again[key]
                ratios["torch.compile at that batch"] = measure.ratio(
                    again[key], again[mine]
                )
            except Exception as error:  # Whatever keeps it from working is the result.
                note = f"torch.compile does not work here: {type(error).__name__}"
                progress.warn(f"{note}: {error}")

    operations = measure.synthesis_operations(
        measure.multiply_adds(
            case.teacher.model, case.teacher.variables, case.image_shape
        )
    )
    rows = [
        {
            "rival": key[0],
            "batch": key[1],
            "seconds_per_image_and_step": measure.spread(values),
            "images_and_steps_per_second": 1 / measure.spread(values)["median"],
            "share_of_peak": operations / measure.spread(values)["median"] / peak,
        }
        for key, values in seconds.items()
    ]
    measure.table(
        f"Synthesis step, {name}: {operations / 1e6:,.1f} MFLOP; times are of an image "
        "and step",
        ("rival", "batch", "µs", "from", "to", "per second", "% of peak"),
        [
            (
                row["rival"],
                row["batch"],
                *(
                    row["seconds_per_image_and_step"][k] * 1e6
                    for k in ("median", "min", "max")
                ),
                row["images_and_steps_per_second"],
                100 * row["share_of_peak"],
            )
            for row in rows
        ],
    )
    say_ratios(ratios)
    return {
        "image_shape": case.image_shape,
        "settings": dataclasses.asdict(case.synthesis),
        "operations_per_image_and_step": operations,
        "matmul_operations_per_second": peak,
        "steps_per_call": {"dfkd_jax": our_steps, "PyTorch": torch_steps},
        "rows": rows,
        "ratios": ratios,
        "same_work": same_work,
        "note": note,
    }


def say_ratios(ratios):
    """One line a rival."""
    for rival, found in ratios.items():
        progress.say(
            f"  {rival} takes {found['median']:.2f} times as long as ours "
            f"({found['min']:.2f} to {found['max']:.2f})"
        )


def torch_rival(case, batch, *, optimizer=None, grids=None):
    """PyTorch's side; starts from noise if not given `grids`."""
    import torch

    from benchmarks import cases, torch_reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    height, width, channels = case.image_shape
    if grids is None:
        grids = [
            cases.images(case, batch, seed=factor)[
                :, : -(-height // factor), : -(-width // factor)
            ]
            for factor in case.synthesis.grid_factors
        ]
    return torch_reference.Synthesis(
        torch_reference.network(
            case.name, case.teacher.variables, channels=channels, device=device
        ),
        grids=grids,
        labels=cases.labels(batch),
        config=case.synthesis,
        mean=case.teacher.description.mean,
        std=case.teacher.description.std,
        device=device,
        optimizer=optimizer,
    )


def torch_run(torch, rival, num_steps):
    """A call of `num_steps` steps that ends when they are done."""

    def run():
        for _ in range(num_steps):
            loss = rival.step()
        return float(loss)  # Waits for a GPU.

    return run


def compare(case, *, per_device):
    """Relative differences of loss and gradient, from one step of plain descent.

    Without the random shift, which the two sides draw differently. Of the gradients the
    median over images: where a ReLU sits at 0 but for rounding, one may differ.
    """
    import optax
    import torch

    from benchmarks import cases

    settings = dataclasses.replace(case.synthesis, max_shift=0)
    case = dataclasses.replace(case, synthesis=settings)
    ours = cases.Synthesis(
        case, per_device=per_device, num_steps=1, optimizer=optax.sgd(1.0)
    )
    before = ours.grids()
    loss = float(ours.run()["loss"].mean()) * ours.num_images
    gradients = [a - b for a, b in zip(before, ours.grids(), strict=True)]
    rival = torch_rival(
        case,
        ours.num_images,
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        grids=before,
    )
    torch_loss = float(rival.step())
    torch_gradients = [
        grid - param.detach().permute(0, 2, 3, 1).cpu().numpy()
        for grid, param in zip(before, rival.params, strict=True)
    ]
    return {
        "loss": abs(torch_loss - loss) / abs(loss),
        "gradient": statistics.median(
            error
            for ours, theirs in zip(gradients, torch_gradients, strict=True)
            for error in cases.relative_errors(list(ours), list(theirs))
        ),
    }


if __name__ == "__main__":
    main()
