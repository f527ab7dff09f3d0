"""What more devices, processes and images cost.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --parts=memory --million
    python -m benchmarks.scaling --parts=processes

Every measurement is a process of its own.

- devices: throughput of both LeNet-5 steps on 1, 2, 4 and 8 devices of a CPU, as
  `benchmarks.synthesis` and `benchmarks.distillation` measure it, and their efficiency
  against one device. More devices than cores can only show what splitting costs. On a
  GPU or TPU the part is left out.
- processes: seconds of one small job in 1 and in 2 processes on loopback, both with the
  same number of devices in all, by the flags --coordinator, --num_processes and
  --process_id of main.
- memory: peak memory of synthesis and of a whole job by the number of images (two steps
  an image). The transfer set streams, so that the peak should not grow with it.
  --million adds 1,000,000 images, which need 3.2 GB of disk.

About 10 minutes on two cores.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import measure
from benchmarks.stages import observe
from dfkd_jax.runtime import progress

PARTS = ("devices", "processes", "memory")
DEVICES = (1, 2, 4, 8)
IMAGES = (1_000, 10_000, 50_000, 200_000)
# Two steps an image and few for the student, so that mostly images are moved.
SMALL_JOB = (
    "--config=configs/mnist.py:smoke",
    "--config.synthesis.num_steps=2",
    "--config.synthesis.steps_per_call=2",
    "--config.distillation.num_steps=400",
    "--config.distillation.log_every=100",
    "--config.distillation.checkpoint_every=400",
)


def main() -> None:
    parser = measure.parser("scaling", __doc__)
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="which; default: %(default)s"
    )
    parser.add_argument("--million", action="store_true", help="a million images too")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs = 1
    backend = probe()
    results, ratios = {"facts": measure.facts(backend)}, {}
    for part in arguments.parts.split(","):
        results[part], found = {
            "devices": scale_devices,
            "processes": scale_processes,
            "memory": scale_memory,
        }[part](arguments, backend)
        ratios |= found
    measure.report("scaling", arguments, results, backend["backend"], ratios=ratios)


def probe():
    """The machine as a process sees it that is gone then: devices are set once."""
    code = (
        "import json; from dfkd_jax.runtime import parallel; "
        "parallel.configure(cpu_devices=0); print(json.dumps(parallel.describe()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return json.loads(done.stdout)


def scale_devices(arguments, machine):
    """Throughput by number of CPU devices; rounds of all counts take turns."""
    if machine["backend"] != "cpu":
        progress.say(f"devices: left out, the backend is {machine['backend']}")
        return None, {}
    devices = DEVICES[:2] if arguments.quick else DEVICES
    steps = ("synthesis", "distillation")
    rates = {(step, count): [] for step in steps for count in devices}
    for _ in range(arguments.runs):
        for step, count in rates:
            rates[step, count].append(throughput(step, count, quick=arguments.quick))
    rows = [
        {
            "step": step,
            "devices": count,
            "images_per_second": measure.spread(values),
            "speed_up": measure.ratio(values, rates[step, 1]),
            "efficiency": statistics.median(values)
            / statistics.median(rates[step, 1])
            / count,
        }
        for (step, count), values in rates.items()
    ]
    measure.table(
        f"Devices of a CPU with {measure.cores()} cores",
        ("step", "devices", "images/s", "speed-up", "efficiency, %"),
        [
            (
                row["step"],
                row["devices"],
                row["images_per_second"]["median"],
                row["speed_up"]["median"],
                100 * row["efficiency"],
            )
            for row in rows
        ],
    )
    return rows, {
        f"{row['step']}: rate of {row['devices']} devices / 1": row["speed_up"]
        for row in rows
    }


def throughput(step, devices, *, quick):
    """Images (and steps) per second of one process with so many devices."""
    code = (
        "from dfkd_jax.runtime import parallel; "
        f"parallel.configure(cpu_devices={devices}); "
        f"from benchmarks import scaling; scaling.print_throughput({step!r}, {quick})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def print_throughput(step, quick):
    """In a process of its own: median of a few calls, warmed up."""
    from benchmarks import cases

    case = cases.case("lenet5")
    if step == "synthesis":
        num_steps = 2 if quick else 50
        ours = cases.Synthesis(
            case, per_device=8 if quick else 100, num_steps=num_steps
        )
        work = ours.num_images * num_steps
    else:
        student, variables = cases.student(case)
        batches = cases.batches(case, 128, count=1 if quick else 50)
        ours = cases.Distillation(
            case, student=student, variables=variables, batches=batches
        )
        work = 128 * len(batches)
    (seconds,) = measure.alternate({step: ours.run}, runs=1 if quick else 3).values()
    print(work / statistics.median(seconds))  # For the parent process.


def scale_processes(arguments, machine):
    """Seconds of a small job in one process and in two, with two devices in all."""
    counts, seconds = (1, 2), {1: [], 2: []}
    if machine["backend"] != "cpu":
        progress.say(f"processes: left out, the backend is {machine['backend']}")
        return None, {}
    for _ in range(arguments.runs):
        for count in counts:
            seconds[count].append(run_processes(count, quick=arguments.quick))
    rows = [
        {
            "processes": count,
            "devices_of_each": 2 // count,
            "seconds": measure.spread(seconds[count]),
            "slow_down": measure.ratio(seconds[count], seconds[1]),
        }
        for count in counts
    ]
    measure.table(
        "Processes on loopback, a small job with two devices in all",
        ("processes", "devices of each", "seconds", "times as long"),
        [
            (
                row["processes"],
                row["devices_of_each"],
                row["seconds"]["median"],
                row["slow_down"]["median"],
            )
            for row in rows
        ],
    )
    return rows, {"seconds of 2 processes / 1": rows[1]["slow_down"]}


def run_processes(count, *, quick):
    """Seconds until all processes of a job are done."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        command = [
            *(sys.executable, "-m", "dfkd_jax.main", *SMALL_JOB),
            f"--config.synthesis.num_images={200 if quick else 10_000}",
            f"--config.cpu_devices={2 // count}",
            f"--workdir={folder}/job",
        ]
        several = [f"--coordinator={address}", f"--num_processes={count}"]
        start = time.perf_counter()
        jobs = []
        for index in range(count):
            flags = [*several, f"--process_id={index}"] if count > 1 else []
            with open(f"{folder}/log{index}", "w") as log:
                jobs.append(
                    subprocess.Popen([*command, *flags], stdout=log, stderr=log)
                )
        statuses = [job.wait() for job in jobs]
        seconds = time.perf_counter() - start
        if not set(statuses) <= {0, 3}:
            sys.exit(
                "\n".join(
                    pathlib.Path(f"{folder}/log{index}").read_text()
                    for index in range(count)
                )
            )
        return seconds


def scale_memory(arguments, machine):
    """Peak memory of synthesis, and of distillation after it, by images."""
    del machine
    images = (200, 400) if arguments.quick else IMAGES
    if arguments.million:
        images += (1_000_000,)
    rows = []
    for count in images:
        with tempfile.TemporaryDirectory() as folder:
            flags = [
                *SMALL_JOB,
                f"--config.synthesis.num_images={count}",
                f"--workdir={folder}/job",
            ]
            # With one step the student costs next to nothing: synthesis alone.
            first = ["--config.distillation.num_steps=1"]
            first += ["--config.distillation.warmup_steps=0"]
            _, alone = observe(
                "dfkd_jax.main",
                [*flags, *first, f"--workdir={folder}/alone"],
                dict(os.environ),
            )
            _, both = observe("dfkd_jax.main", flags, dict(os.environ))
        rows.append(
            {
                "images": count,
                "synthesis_bytes": alone["peak_memory"],
                "whole_job_bytes": both["peak_memory"],
            }
        )
    base = next((row for row in rows if row["images"] == 10_000), rows[0])
    measure.table(
        "Peak memory by number of images",
        ("images", "synthesis, MB", "growth, %", "whole job, MB", "growth, %"),
        [
            (
                row["images"],
                *(
                    value
                    for key in ("synthesis_bytes", "whole_job_bytes")
                    for value in (
                        row[key] / 1e6,
                        100 * (row[key] / base[key] - 1),
                    )
                ),
            )
            for row in rows
        ],
    )
    return rows, {
        f"{key} of {row['images']:,} images / {base['images']:,}": measure.spread(
            [row[key] / base[key]]
        )
        for row in rows
        for key in ("synthesis_bytes", "whole_job_bytes")
    }


if __name__ == "__main__":
    main()
