"""What is known of an update before it is in a kernel."""

import functools

import jax
import jax.numpy as jnp

from jaxrnn._src.core.sharding import nowhere
from jaxrnn._src.ops.recurrence.elements import (
    Unknown,
    called,
    every_equation,
    held,
    of_any_size,
    said,
)
from jaxrnn._src.ops.recurrence.packed import Packing


def looks_at(problem, unit):
    """Of each state, whether the update or its derivative looks at it."""
    return _looks_at(*_key(problem, unit))


def error(problem, unit):
    """Why an update, or its derivative, cannot be in a kernel for a TPU; None if it can."""
    return _error(*_key(problem, unit))


def _key(problem, unit):
    """Only what counts here: sizes do not."""
    like = problem._replace(
        reverse=False,
        residuals="gates",
        implementation=None,
        batch_first=False,
        every=False,
    )
    return like, unit


def _with_rows(problem, unit, shape=(8, 128)):
    """The update with its derivative, and rows to call them with."""
    packing = Packing(problem, unit)
    row = jax.ShapeDtypeStruct(shape, jnp.float32)
    parts = [[row] * len(k) for k in (packing.summed, packing.apart, packing.apart)]
    state = (row,) * problem.states

    def both(state, parts, unit, d_new):
        new, pull = jax.vjp(packing.update_parts, state, parts, unit)
        return new, pull(d_new)

    return both, (state, parts, dict.fromkeys(unit, row), state)


@functools.lru_cache(1024)
def _looks_at(problem, unit):
    function, rows = _with_rows(problem, unit)
    with nowhere():
        jaxpr = jax.make_jaxpr(function)(*rows).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    read |= {id(v) for v in jaxpr.outvars[problem.states :]}  # a gradient may be a state itself
    return tuple(id(v) in read for v in jaxpr.invars[: problem.states])


@functools.lru_cache(1024)
def _error(problem, unit):
    from jax.experimental import pallas as pl

    function, _ = _with_rows(problem, unit)
    traced = lambda size: jax.make_jaxpr(function)(*_with_rows(problem, unit, (size,))[1])
    try:
        with nowhere():
            of_any_size(traced)  # a kernel's rows are not the layer's: no unit may know its place
            closed = traced(3)
    except Unknown as unknown:
        return f"the update has an operation that the kernel has not: {unknown}"
    except Exception as error:  # what JAX says where there is no derivative
        return f"the update has no derivative: {said(error)}"
    for eqn in every_equation(closed):
        if held(eqn) and called(eqn) is None:
            return f"the update has an operation that the kernel has not: {eqn.primitive.name}"
    function, rows = _with_rows(problem, unit)
    flat, tree = jax.tree.flatten(rows)
    results = jax.tree.leaves(jax.eval_shape(function, *rows))

    def kernel(*refs):
        out = function(*tree.unflatten([ref[...] for ref in refs[: len(flat)]]))
        for place, value in zip(refs[len(flat) :], jax.tree.leaves(out), strict=True):
            place[...] = value

    call = jax.jit(pl.pallas_call(kernel, out_shape=results))
    try:
        with nowhere():
            call.trace(*flat).lower(lowering_platforms=("tpu",))
    except Exception as error:
        return f"Pallas cannot lower the update: {said(error)}"
    return None
