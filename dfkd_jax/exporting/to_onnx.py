"""JAX functions as ONNX models, by jax2onnx and with two of its gaps closed.

jax2onnx replaces Flax's layers while it traces, with functions that take fewer forms of
arguments than Flax's own, and its treatment of nested functions depends on the release
of JAX. Neither happens when it is given nothing but a flat list of JAX's primitives,
so that is what it gets. Two primitives of image networks are rewritten: `pad`, which
it refuses for a batch of unknown size, and max pooling over NHWC, which it writes with
four spatial dimensions, one more than ONNX Runtime has.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from dfkd_jax.errors import ExportError
from dfkd_jax.models import jaxprs

PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
_NESTED = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


def convert(
    function: Callable[[jax.Array], jax.Array],
    inputs: jax.ShapeDtypeStruct,
    *,
    name: str,
    input_name: str,
    output_name: str,
    metadata: Mapping[str, str],
) -> bytes:
    """A serialized ONNX model that computes `function`.

    Args:
        function: Of one array, closed over its weights.
        inputs: Shape, with a symbolic batch, and type of its argument.
        name: Of the graph.
        input_name: Of its argument.
        output_name: Of its result.
        metadata: Kept in the model.

    Raises:
        ExportError: The packages are not installed, or an operation is not known.
    """
    check_installed()
    import onnx

    traced = jax.make_jaxpr(function)(inputs)

    def flat(argument):
        return _evaluate(traced.jaxpr, traced.consts, [argument])[0]

    try:
        with _silence():
            import jax2onnx  # It is heavy, and logs what it cannot use.

            model = jax2onnx.to_onnx(
                flat,
                [inputs],
                model_name=name,
                input_names=[input_name],
                output_names=[output_name],
            )
        _pool_in_two_dimensions(model)
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
    except Exception as error:
        # A converter without the operation raises nearly anything.
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"{name} cannot be written as ONNX ({type(error).__name__}: {reason}): use "
            "--format=stablehlo, or layers that ONNX has."
        ) from error
    return model.SerializeToString()


def load(model: bytes) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Runs a serialized model with ONNX Runtime: named inputs to the first output.

    Raises:
        ExportError: ONNX Runtime is not installed or cannot run it.
    """
    check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # What it logs as an error, it raises as well.

    def explained(function, *args) -> Any:
        try:
            return function(*args)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"ONNX Runtime cannot run the network ({reason}): use "
                "--format=stablehlo, or layers that ONNX Runtime has."
            ) from error

    session = explained(
        lambda: onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
    )
    return lambda inputs: explained(session.run, None, dict(inputs))[0]


def check_installed() -> None:
    """Raises ExportError, with the command to mend it, where packages are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX needs {', '.join(missing)}, not installed here: "
            'pip install ".[onnx]" in a clone of dfkd_jax.'
        )


@contextlib.contextmanager
def _silence():
    """Without the debug lines that jax2onnx prints and the warnings it logs."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """`jaxpr` primitive by primitive, with nested functions and `pad` resolved."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [v.val if jaxprs.is_literal(v) else values[v] for v in equation.invars]
        params, primitive = equation.params, equation.primitive
        if primitive.name in _NESTED:
            inner = params["jaxpr" if "jaxpr" in params else "call_jaxpr"]
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs)
        elif primitive.name == "pad":
            outputs = [_pad(*inputs, config=params["padding_config"])]
        else:
            outputs = primitive.bind(*inputs, **params)
            outputs = outputs if primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [v.val if jaxprs.is_literal(v) else values[v] for v in jaxpr.outvars]


def _pad(operand, value, *, config):
    """`lax.pad` as concatenations, where it only adds."""
    if any(low < 0 or high < 0 or between for low, high, between in config):
        return lax.pad(operand, value, config)
    for axis, (low, high, _) in enumerate(config):
        before, after = operand.shape[:axis], operand.shape[axis + 1 :]
        parts = [
            lax.full((*before, low, *after), value) if low else None,
            operand,
            lax.full((*before, high, *after), value) if high else None,
        ]
        if low or high:
            operand = lax.concatenate([p for p in parts if p is not None], axis)
    return operand


def _pool_in_two_dimensions(model: Any) -> None:
    """MaxPool over (1, 1, N, H, W, C), in place, as MaxPool over (N, C, H, W)."""
    from onnx import helper

    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        given = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
        window = list(given["kernel_shape"])
        if len(window) != 4 or window[0] != 1 or window[3] != 1:
            continue
        second = maker[pool.input[0]]
        first = maker[second.input[0]]
        [squeeze] = [node for node in graph.node if pool.output[0] in node.input]
        places = {"kernel_shape": [1, 2], "strides": [1, 2], "dilations": [1, 2]}
        places["pads"] = [1, 2, 5, 6]
        kept: dict[str, Any] = {
            key: [given[key][place] for place in places[key]]
            for key in places
            if key in given
        }
        turned, pooled = f"{pool.name}_nchw", f"{pool.name}_pooled"
        nodes = [
            helper.make_node("Transpose", first.input[:1], [turned], perm=[0, 3, 1, 2]),
            helper.make_node("MaxPool", [turned], [pooled], pool.name, **kept),
            helper.make_node("Transpose", [pooled], squeeze.output, perm=[0, 2, 3, 1]),
        ]
        position = list(graph.node).index(first)
        for node in (first, second, pool, squeeze):
            graph.node.remove(node)
        for offset, node in enumerate(nodes):
            graph.node.insert(position + offset, node)
    _drop_unused(graph)


def _drop_unused(graph):
    """Leaves out what replaced nodes read and wrote; ONNX Runtime warns of it."""
    read = {name for node in graph.node for name in node.input}
    for constant in [c for c in graph.initializer if c.name not in read]:
        graph.initializer.remove(constant)
    known = read | {name for node in graph.node for name in node.output}
    for value in [v for v in graph.value_info if v.name not in known]:
        graph.value_info.remove(value)
