"""A command of the package, run as it is, with compilation and memory noted.

    python -m benchmarks.observed NOTES.json dfkd_jax.main --config=configs/mnist.py

For the other benchmarks. NOTES.json gets the seconds in which JAX traced, compiled or
read the compilation cache: `compile` in all, `compile_in` by stage, `compiled` by
function (tracing within tracing counts twice there); and `peak_memory`, in bytes.
"""

import collections
import json
import pathlib
import resource
import runpy
import sys
import time

import jax.monitoring

from dfkd_jax.runtime import writers

Span = tuple[float, float]


def main() -> None:
    notes, module, *arguments = sys.argv[1:]
    compiling: list[Span] = []
    functions: dict[str, float] = collections.Counter()
    stages: dict[str, list[Span]] = collections.defaultdict(list)

    def note(event, start, end, fun_name="", **_):
        if event.startswith("/jax/core/compile"):
            compiling.append((start, end))
            functions[fun_name] += end - start

    class Stopwatch(writers.Stopwatch):
        """Knows when a stage was, not only how long it took."""

        def add(self, stage, seconds):
            stages[stage].append((time.time() - seconds, time.time()))
            super().add(stage, seconds)

    writers.Stopwatch = Stopwatch
    jax.monitoring.register_event_time_span_listener(note)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        unit = 1 if sys.platform == "darwin" else 1_024  # Linux counts kibibytes.
        found = {
            "compile": covered(compiling),
            "compile_in": {
                stage: sum(covered(compiling, within=span) for span in spans)
                for stage, spans in stages.items()
            },
            "compiled": dict(functions.most_common(20)),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        }
        pathlib.Path(notes).write_text(json.dumps(found))


def covered(spans: list[Span], within: Span = (0.0, float("inf"))) -> float:
    """Length of the union of spans, within a span: tracing nests."""
    total, reached = 0.0, within[0]
    for start, end in sorted(spans):
        end = min(end, within[1])
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    main()
