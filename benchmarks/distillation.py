"""The distillation step: seconds an image, beside eager PyTorch.

    python -m benchmarks.distillation
    python -m benchmarks.distillation --networks=lenet5 --runs=15

A step is: batch to the devices, augmentation, the teacher asked about every image,
gradient and update of the student. Ours is the package's own, data-parallel on all
devices; PyTorch's is benchmarks/torch_reference.py. LeNet-5 to its half has the
settings of configs/mnist.py:first and comes twice, with its augmentation and without;
the others have plain settings. Rivals take turns within one run. A batch size belongs
to the recipe, so that the ratio is of equal batches; the ratio of the best is beside
it.

About 2 minutes on two cores. Without PyTorch its rows are left out.
"""

import dataclasses
import statistics

from benchmarks import measure, networks
from benchmarks.synthesis import say_ratios, torch_facts
from dfkd_jax.runtime import parallel

# For each backend and teacher: batch sizes over all devices, and batches in a call.
SIZES = {
    "cpu": {
        "lenet5": ((128, 256, 512), 20),
        "cnn": ((128, 256), 10),
        "cnn_wide": ((128, 256), 5),
        "alexnet": ((64, 128), 2),
        "resnet34": ((16, 32), 1),
    },
    "gpu": {
        "lenet5": ((128, 1_024, 8_192), 20),
        "cnn": ((128, 1_024), 20),
        "cnn_wide": ((128, 1_024), 20),
        "alexnet": ((256, 2_048), 10),
        "resnet34": ((128, 512), 5),
    },
}
QUICK = ((8,), 1)
# Batch normalization in training carries a ReLU that sits at 0 but for rounding into
# all gradients; among a ResNet's millions there are always some.
GRADIENT_TOLERANCE = {"resnet34": 1e-2}


def main() -> None:
    parser = measure.parser("distillation", __doc__)
    parser.add_argument(
        "--networks",
        default=",".join(SIZES["cpu"]),
        help="teachers; default: %(default)s",
    )
    parser.add_argument(
        "--devices", type=int, default=0, help="CPU devices; default: one a core"
    )
    parser.add_argument("--runs", type=int, default=measure.RUNS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs = 2
    parallel.configure(cpu_devices=arguments.devices)
    torch = measure.import_torch()

    import jax

    from benchmarks import cases

    backend = jax.default_backend()
    results = {"facts": measure.facts(), "networks": {}}
    if torch is not None:
        results["torch"] = torch_facts(torch)
    for name in arguments.networks.split(","):
        sizes, count = (
            QUICK
            if arguments.quick
            else SIZES["cpu" if backend == "cpu" else "gpu"][name]
        )
        case = cases.case(name)
        for title, variant in {
            f"{name} to {networks.STUDENTS[name]}": case,
            f"{name} to {networks.STUDENTS[name]}, without augmentation": plain(case),
        }.items():
            if variant is case and case.distillation == plain(case).distillation:
                continue
            results["networks"][title] = measure_network(
                title,
                variant,
                sizes,
                count,
                torch=torch,
                matmul=64 if arguments.quick else 2_048,
                runs=arguments.runs,
            )
    ratios = measure.take_ratios(results["networks"])
    measure.report("distillation", arguments, results, backend, ratios=ratios)


def plain(case):
    """The same without augmentation."""
    off = dict.fromkeys(("mixup", "cutmix", "shift", "affine", "elastic"), 0.0)
    return dataclasses.replace(
        case, distillation=dataclasses.replace(case.distillation, **off)
    )


def measure_network(title, case, sizes, count, *, torch, matmul, runs):
    """Times of both sides on one pair of networks; prints its table."""
    from benchmarks import cases

    student, variables = cases.student(case)
    same_work = None
    if torch is not None:
        same_work = cases.check_same_work(
            compare(plain(case)), gradient=GRADIENT_TOLERANCE.get(case.name, 1e-4)
        )
    rivals, work = {}, {}
    rivals["matmul"], work["matmul"] = measure.matmul(size=matmul)
    for size in sizes:
        batches = cases.batches(case, size, count=count)
        ours = cases.Distillation(
            case, student=student, variables=variables, batches=batches
        )
        rivals["dfkd_jax", size] = ours.run
        if torch is not None:
            rivals["PyTorch eager", size] = torch_run(
                torch_rival(case, variables), batches
            )
        for rival in ("dfkd_jax", "PyTorch eager"):
            work[rival, size] = size * count
    seconds = {
        key: [s / work[key] for s in values]
        for key, values in measure.alternate(rivals, runs=runs).items()
    }
    peak = 1 / statistics.median(seconds.pop("matmul"))
    ratios = {}
    if torch is not None:
        first = sizes[0]
        ratios[f"PyTorch eager at batches of {first}"] = measure.ratio(
            seconds["PyTorch eager", first], seconds["dfkd_jax", first]
        )
        mine, theirs = (
            measure.best(seconds, [key for key in seconds if key[0] == rival])
            for rival in ("dfkd_jax", "PyTorch eager")
        )
        ratios["PyTorch eager at its best batch"] = measure.ratio(
            seconds[theirs], seconds[mine]
        )

    teacher = measure.multiply_adds(
        case.teacher.model, case.teacher.variables, case.image_shape
    )
    learner = measure.multiply_adds(student, variables, case.image_shape)
    operations = measure.distillation_operations(teacher, learner)
    rows = [
        {
            "rival": key[0],
            "batch": key[1],
            "seconds_per_image": measure.spread(values),
            "images_per_second": 1 / statistics.median(values),
            "share_of_peak": operations / statistics.median(values) / peak,
        }
        for key, values in seconds.items()
    ]
    measure.table(
        f"Distillation step, {title}: {operations / 1e6:,.1f} MFLOP; times are of an "
        "image",
        ("rival", "batch", "µs", "from", "to", "per second", "% of peak"),
        [
            (
                row["rival"],
                row["batch"],
                *(row["seconds_per_image"][k] * 1e6 for k in ("median", "min", "max")),
                row["images_per_second"],
                100 * row["share_of_peak"],
            )
            for row in rows
        ],
    )
    say_ratios(ratios)
    return {
        "settings": dataclasses.asdict(case.distillation),
        "operations_per_image": operations,
        "matmul_operations_per_second": peak,
        "rows": rows,
        "ratios": ratios,
        "same_work": same_work,
    }


def torch_rival(case, variables, *, optimizer=None, **arguments):
    """PyTorch's side, its student starting where ours does."""
    import torch

    from benchmarks import torch_reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = {"channels": case.image_shape[-1], "device": device}
    return torch_reference.Distillation(
        torch_reference.network(
            networks.STUDENTS[case.name], variables, **where, **arguments
        ),
        torch_reference.network(case.name, case.teacher.variables, **where),
        config=case.distillation,
        device=device,
        optimizer=optimizer,
    )


def torch_run(rival, batches):
    """A call of a step a batch that ends when they are done."""

    def run():
        for batch in batches:
            loss, _ = rival.step(batch["images"], batch["others"])
        return float(loss)  # Waits for a GPU.

    return run


def compare(case, *, per_device=8):
    """Relative differences of loss and gradient, from one step of plain descent.

    Without dropout, which the two sides draw differently. Every device gets the same
    images: batch normalization has statistics of a device. Of the gradients the median
    over tensors; see `GRADIENT_TOLERANCE`.
    """
    import numpy as np
    import optax
    import torch
    from flax import traverse_util

    from benchmarks import cases

    still = {"dropout_rate": 0.0} if case.name.startswith("alexnet") else {}
    student, variables = cases.student(case, **still)
    (batch,) = cases.batches(case, per_device, count=1)
    count = parallel.device_count()
    ours = cases.Distillation(
        case,
        student=student,
        variables=variables,
        batches=[
            {
                key: np.tile(value, (count,) + (1,) * (value.ndim - 1))
                for key, value in batch.items()
            }
        ],
        optimizer=optax.sgd(1.0),
    )
    loss = float(ours.run()["loss"])
    rival = torch_rival(
        case,
        variables,
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        **still,
    )
    torch_loss = float(rival.step(batch["images"], batch["others"])[0])
    flat = [
        traverse_util.flatten_dict(tree)
        for tree in (variables["params"], ours.params())
    ]
    # Biases before batch normalization get no gradient but rounding: left out.
    kernels = [key for key in flat[0] if key[-1] == "kernel"]
    gradients = [flat[0][key] - flat[1][key] for key in kernels]
    after = dict(rival.student.named_parameters())
    torch_gradients = [
        flat[0][key]
        - _kernel(after[".".join(key[:-1]) + ".weight"], rival.student, key)
        for key in kernels
    ]
    return {
        "loss": abs(torch_loss - loss) / abs(loss),
        "gradient": statistics.median(
            cases.relative_errors(gradients, torch_gradients)
        ),
    }


def _kernel(weight, module, key):
    """PyTorch's weight laid out as linen's kernel."""
    array = weight.detach().cpu().numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if key[0] == "dense_1":
        array = array.reshape(-1, *module.flat).transpose(0, 2, 3, 1)
        array = array.reshape(len(array), -1)
    return array.T


if __name__ == "__main__":
    main()
