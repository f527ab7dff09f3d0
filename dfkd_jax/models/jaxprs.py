"""Programs of JAX as lists of equations: traced, laid open, run in part or otherwise.

`jax.extend` promises nothing between releases: no other module may look into jaxprs by
it, and the tests run on every supported JAX.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
from jax.extend import core

# Calls whose insides are laid open. Rematerialization is given up by that.
_INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


def run(function: Callable, arguments: Any, *, plan: Callable | None = None) -> Any:
    """What the function returns, with some of its equations computed otherwise."""
    if plan is None:
        return function(*arguments)
    leaves, tree = jax.tree.flatten(arguments)
    avals = tuple(map(aval_of, leaves))
    closed, out_tree = traced(function, tree, avals)
    env = dict(zip(closed.jaxpr.invars, leaves, strict=True))
    env |= dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    jaxpr = closed.jaxpr
    return out_tree.unflatten(interpret(jaxpr.eqns, env, jaxpr.outvars, plan=plan))


def ahead(function: Callable, constants: Any, *arguments: Any) -> Callable:
    """`function(constants, *arguments)`, what is of constants alone computed now.

    A loop whose body is made so does not turn round the kernels of a frozen network,
    say, in every step; XLA would. Nothing is kept that is larger than what it is of.

    Args:
        function: Of constants and arguments.
        constants: A tree of arrays.
        *arguments: Trees of arrays; their shapes and dtypes are all that is read.

    Returns:
        A function of `arguments`.
    """
    leaves, tree = jax.tree.flatten((constants, *arguments))
    closed, out_tree = _trace(function, tree, tuple(map(aval_of, leaves)))
    jaxpr, num_constants = closed.jaxpr, len(jax.tree.leaves(constants))
    given = zip(jaxpr.invars[:num_constants], leaves[:num_constants], strict=True)
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(given)
    known, now = set(env), []
    for eqn in jaxpr.eqns:
        if not eqn.effects and known.issuperset(variables(eqn.invars)):
            known.update(eqn.outvars)
            now.append(eqn)
    read, made, later = set(variables(jaxpr.outvars)), set(), []
    for eqn in reversed(jaxpr.eqns):
        is_kept = known.issuperset(eqn.outvars) and not _grows(eqn)
        if not is_kept and not read.isdisjoint(eqn.outvars):
            read.update(variables(eqn.invars))
            made.update(eqn.outvars)
            later.insert(0, eqn)
    kept = [var for eqn in now for var in eqn.outvars if var in read - made]
    env |= dict(zip(kept, interpret(now, env, kept), strict=True))

    def run(*arguments):
        leaves = jax.tree.leaves(arguments)
        changing = zip(jaxpr.invars[num_constants:], leaves, strict=True)
        outputs = interpret(later, env | dict(changing), jaxpr.outvars)
        return out_tree.unflatten(outputs)

    return run


def _grows(eqn):
    """Whether more numbers come out than go in."""
    sizes = [
        sum(var.aval.size for var in variables(atoms))
        for atoms in (eqn.invars, eqn.outvars)
    ]
    return sizes[0] < sizes[1]


class Step(NamedTuple):
    """What is computed in place of equations.

    Attributes:
        function: Of the inputs' values.
        inputs: Variables or literals.
        output: Variable.
        covers: Places of the equations that need not be run.
    """

    function: Callable
    inputs: tuple[Any, ...]
    output: Any
    covers: tuple[int, ...]


def interpret(
    eqns: Sequence[Any],
    env: Mapping[Any, Any],
    outvars: Sequence[Any],
    *,
    plan: Callable | None = None,
) -> list[Any]:
    """Runs equations; returns the values of `outvars`.

    Args:
        eqns: In an order in which they can be run.
        env: Values of what no equation makes.
        outvars: What is returned.
        plan: Takes `eqns` and `outvars`; returns, for places of equations, a `Step`
            that is run there in place of several equations.
    """
    env = dict(env)
    steps = plan(eqns, outvars) if plan else {}
    covered = {place for step in steps.values() for place in step.covers}
    for place, eqn in enumerate(eqns):
        if place in steps:
            step = steps[place]
            env[step.output] = step.function(*(_read(env, var) for var in step.inputs))
        elif place not in covered:
            values = _bind(eqn, [_read(env, var) for var in eqn.invars], plan)
            env.update(zip(eqn.outvars, values, strict=True))
    return [_read(env, var) for var in outvars]


def is_literal(var: Any) -> bool:
    """Whether it is a number in the program's text."""
    return isinstance(var, core.Literal)


def literal(var: Any) -> Any:
    """The number of a literal; None for a variable."""
    return var.val if is_literal(var) else None


def _read(env, var):
    return var.val if isinstance(var, core.Literal) else env[var]


def _bind(eqn, values, plan=None):
    """Runs one equation, as a program of its own."""
    if plan is not None:
        eqn = _replanned(eqn, plan)
    pairs = [
        (var, value)
        for var, value in zip(eqn.invars, values, strict=True)
        if not isinstance(var, core.Literal)
    ]
    known = dict(pairs)
    jaxpr = _empty().replace(
        invars=list(known), outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects
    )
    return jax.core.eval_jaxpr(jaxpr, (), *known.values())


@functools.cache
def _empty():
    return jax.make_jaxpr(lambda: ())().jaxpr


def _replanned(eqn, plan):
    """A loop or branch with a plan for its body."""
    if eqn.primitive.name not in ("scan", "while", "cond"):
        return eqn

    def replanned(closed):
        def run(*arguments):
            env = dict(zip(closed.jaxpr.invars, arguments, strict=True))
            env |= dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
            return interpret(closed.jaxpr.eqns, env, closed.jaxpr.outvars, plan=plan)

        closed = flat(closed)
        return jax.make_jaxpr(run)(*_avals(closed.jaxpr.invars))

    changed = {}
    for key, value in eqn.params.items():
        if isinstance(value, core.ClosedJaxpr):
            changed[key] = replanned(value)
        elif (
            isinstance(value, tuple)
            and value
            and isinstance(value[0], core.ClosedJaxpr)
        ):
            changed[key] = tuple(map(replanned, value))
    return eqn.replace(params=eqn.params | changed)


def _avals(variables):
    return [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in variables]


def aval_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, as JAX would keep it."""
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(leaf.shape, dtype)


def traced(function, tree, avals) -> tuple[Any, Any]:
    """`_trace`, kept where it can be."""
    return kept(_cached, function, tree, avals)


@functools.lru_cache(maxsize=32)
def _cached(function, tree, avals, context):
    del context  # Apart from the arguments, what a trace depends on.
    made = _trace(function, tree, avals)
    if depends_on_more(made[0]):
        raise Uncached(made)
    return made


def _trace(function, tree, avals) -> tuple[Any, Any]:
    """The function's flat jaxpr, and the tree of what it returns."""
    out_tree = None

    def leafwise(*leaves):
        nonlocal out_tree
        outputs, out_tree = jax.tree.flatten(function(*tree.unflatten(leaves)))
        return outputs

    return flat(jax.make_jaxpr(leafwise)(*avals)), out_tree


def depends_on_more(closed: Any) -> bool:
    """Whether a trace depends on more than the arguments' shapes: not to be kept."""
    return any(isinstance(const, jax.core.Tracer) for const in closed.consts) or any(
        map(_names_an_axis, closed.jaxpr.eqns)
    )


def _names_an_axis(eqn):
    """Whether it depends on how many devices there are."""
    names = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    names = names if isinstance(names, tuple) else (names,)
    return any(isinstance(name, str) for name in names) or any(
        _names_an_axis(one) for jaxpr in inner(eqn) for one in jaxpr.eqns
    )


class Uncached(Exception):
    """A trace that depends on more than the arguments' shapes: not to be kept."""


def kept(cached: Callable, function: Callable, *arguments: Any) -> Any:
    """What `cached` makes, which may say that it must not be kept."""
    config: Any = jax.config  # Its stub has no flags.
    context = (
        config.jax_default_matmul_precision,
        config.jax_enable_x64,
        jax.sharding.get_abstract_mesh(),  # A trace under one pmap is none of another.
    )
    try:
        hash(function)
    except TypeError:
        cached = cached.__wrapped__
    try:
        return cached(function, *arguments, context)
    except Uncached as found:
        return found.args[0]


def flat(closed: Any) -> Any:
    """The same program with calls inlined."""

    def run(jaxpr, consts, arguments):
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, arguments, strict=True))
        for eqn in jaxpr.eqns:
            values = [_read(env, var) for var in eqn.invars]
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if eqn.primitive.name in _INLINED and inner is not None:
                closed = isinstance(inner, core.ClosedJaxpr)
                inner, own = (inner.jaxpr, inner.consts) if closed else (inner, ())
                # So that whose equations they are is still to be read.
                with jax.named_scope(str(eqn.source_info.name_stack)):
                    made = run(inner, own, values)
            else:
                made = _bind(eqn, values)
            env.update(zip(eqn.outvars, made, strict=True))
        return [_read(env, var) for var in jaxpr.outvars]

    return jax.make_jaxpr(
        lambda *arguments: run(closed.jaxpr, closed.consts, arguments)
    )(*_avals(closed.jaxpr.invars))


def users(eqns: Sequence[Any], outvars: Sequence[Any]) -> dict[Any, list[Any]]:
    """Equations that read a variable; None stands for the program's outputs."""
    users = collections.defaultdict(list)
    for eqn in eqns:
        for var in set(variables(eqn.invars)):
            users[var].append(eqn)
    for var in variables(outvars):
        users[var].append(None)
    return users


def needed(
    eqns: Sequence[Any], outvars: Sequence[Any], known: Iterable[Any] = ()
) -> list[Any]:
    """The equations without which `outvars` cannot be computed."""
    wanted = set(variables(outvars)) - set(known)
    kept = []
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            kept.append(eqn)
            wanted.update(var for var in variables(eqn.invars) if var not in known)
    return kept[::-1]


def variables(atoms: Iterable[Any]) -> list[Any]:
    """Those that are no literals."""
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def inner(eqn: Any) -> Iterator[Any]:
    """Jaxprs in an equation's parameters."""
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
