"""The loop on a CPU: the whole sequence in one call of C++ (``native/``).

The body of the loop, forward or backward, is handed over as parts: products, sums over a row, and
elementwise programs. So any step runs there that is made of these, whatever its products depend
on. The weights' gradients are products after the loop, XLA's.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.sharding import nowhere
from jaxrnn._src.ops import native
from jaxrnn._src.ops.recurrence.program import Unknown
from jaxrnn._src.ops.row_partition import Argument, Batch, Result
from jaxrnn._src.ops.step_loop import body, parts
from jaxrnn._src.ops.step_loop import problem as p

EXPORTED = dispatch.ON_REQUEST  # else an exported program runs where this library is not


# What an input has beside its features; the kernel knows them by these numbers.
_UNITS, _ROWS, _STEPS = range(3)


class _Save(NamedTuple):
    """What a forward gives beside the final state: residuals, ys."""

    residuals: bool
    ys: bool


class _Wanted(NamedTuple):
    """Which gradients a backward gives beside those of the states."""

    xs: bool
    weights: bool
    others: bool


class _Inputs(NamedTuple):
    """What a body is given beside what it carries: for each step and row, a row, or all."""

    xs: Any
    mask: Any
    starts: Any
    kept: Any  # backward: what a forward saved, and the cotangents of ys
    d_ys: Any
    initial: Any
    others: Any


class _Traced(NamedTuple):
    """A body as the kernel runs it, and as JAX sees it, of ``parts.ROWS`` rows.

    Attributes:
      parts: ``Parts``.
      made: what a step gives beside what is carried.
      names: of a backward, those of the products.
    """

    parts: parts.Parts
    made: Any
    names: tuple[str, ...]


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    why = native.unsupported(target)
    if why is not None:
        return why
    if problem.bilinear is not None:
        return "its products are not matrix products"
    if any(w.ndim > 3 for w in operands.weights.values()):
        return "a weight is block-diagonal"
    numbers = operands.xs, operands.others, operands.state
    shapes = [a.shape for a in jax.tree.leaves((numbers, operands.weights))]
    if not all(isinstance(n, int) for shape in shapes for n in shape):
        return "a size is symbolic"
    dtypes = {a.dtype.name for a in jax.tree.leaves(numbers)}
    if len(dtypes) != 1 or not dtypes <= {"float32", "float64"}:
        return f"states and inputs are of {sorted(dtypes)}; want float32 or float64, for all"
    try:  # both, of a forward alone too: `explain` says what runs, and not of which of them
        ys, kept = _by_row(_forward(problem, operands, _Save(True, True)).made, 1)
        _backward(problem, operands, kept, ys, _Wanted(True, True, True))
    except Unknown as unknown:
        return f"the step has something that its parts have not: {unknown}"
    return None


def forward(problem, operands, wanted, save, target):
    """Returns (*final state, ys), then states before each step and what products gave."""
    del target
    traced = _forward(problem, operands, _Save(save, wanted[-1]))
    inputs = _inputs(operands)
    # A backward takes the first factors of all steps from what is kept of them.
    how = dict(reverse=problem.reverse, whole=save)
    final, (ys, kept) = _call(traced, problem, operands, operands.state, inputs, **how)
    return [*jax.tree.leaves(final), ys, *jax.tree.leaves(kept)]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, target
    *d_final, d_ys = cotangents
    tree = jax.tree.structure(operands.state)
    kept = tree.unflatten(residuals[: problem.states]), list(residuals[problem.states :])
    of_steps = functools.partial(_by_row, lead=1 + _batch(problem, operands))
    any_of = lambda name: any(jax.tree.leaves(getattr(wanted, name)))
    wants = _Wanted(*map(any_of, _Wanted._fields))
    traced = _backward(problem, operands, of_steps(kept), of_steps(d_ys), wants)
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    carry = (
        body.cotangents_of_state(operands, d_final),
        None if operands.initial is None else zeros(operands.state),
        zeros(p.of_rows(problem, operands)) if wants.others else None,
    )
    inputs = _inputs(operands, kept, d_ys)
    how = dict(reverse=not problem.reverse, whole=False)
    carry, made = _call(traced, problem, operands, carry, inputs, **how)
    (d_state, d_initial, d_others), (d_xs, factors, d_moves) = carry, made
    gradients = operands._replace(state=d_state, initial=d_initial)  # what is not wanted: any
    if wants.xs:
        gradients = gradients._replace(xs=d_xs)
    if wants.weights:
        kind = p.kind(problem, operands)
        weights = p.gradients(operands.weights, traced.names, factors, d_moves, *kind)
        gradients = gradients._replace(weights=weights)
    if wants.others:
        gradients = gradients._replace(others=p.of_all_rows(d_others, operands))
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


def _inputs(operands, kept=None, d_ys=None):
    xs, mask, starts, initial = operands.xs, operands.mask, operands.starts, operands.initial
    return _Inputs(xs, mask, starts, kept, d_ys, initial, operands.others)


def _batch(problem, operands):
    """How many batch axes there are."""
    return jax.tree.leaves(operands.state)[0].ndim - problem.features


def _by_row(tree, lead):
    """The shapes of arrays with so many axes before their features, of ``parts.ROWS`` rows."""
    aval = lambda a: jax.ShapeDtypeStruct((parts.ROWS, *a.shape[lead:]), a.dtype)
    return jax.tree.map(aval, tree)


def _kind(name):
    """What the arrays of a field of ``_Inputs`` have beside their features."""
    return {"others": _UNITS, "initial": _ROWS}.get(name, _STEPS)


def _shapes(operands, batch):
    lead = {_UNITS: 0, _ROWS: batch, _STEPS: 1 + batch}
    given = _inputs(operands)
    return _Inputs(*(_by_row(a, lead[_kind(n)]) for n, a in zip(given._fields, given)))


def _forward(problem, operands, save):
    batch = _batch(problem, operands)
    given = _shapes(operands, batch)
    return _trace(problem, operands, save, _by_row(operands.state, batch), given)


def _backward(problem, operands, kept, d_ys, wants):
    """``kept`` and ``d_ys`` are shapes by row."""
    batch = _batch(problem, operands)
    given = _shapes(operands, batch)._replace(kept=kept, d_ys=d_ys)
    state = _by_row(operands.state, batch)
    d_initial = None if operands.initial is None else state
    carry = state, d_initial, given.others if wants.others else None
    return _trace(problem, operands, wants, carry, given)


def _trace(problem, operands, how, carry, inputs):
    weights = tuple((name, w.shape) for name, w in sorted(operands.weights.items()))
    total = p.kind(problem, operands)[1]
    problem = problem._replace(product=total, reverse=False, implementation=None)
    leaves, tree = jax.tree.flatten((carry, inputs))
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    operations = native.library().operations
    found = _traced(problem, weights, how, tuple(leaves), tree, operations, x64)
    if isinstance(found, Unknown):
        raise Unknown(*found.args)
    return found


@functools.lru_cache(256)
def _traced(problem, weights, how, leaves, tree, operations, x64):
    """``_Traced``, or why not: an error that was raised would not be kept, and be found again."""
    del x64  # what types are inside of a step depends on it
    shapes, names = dict(weights), []

    def dot(name, a):
        width = math.prod(shapes[name][1:])
        return parts.product.bind(a, name=name, transposed=False, width=width)

    def back(name, d, a):
        del a
        return parts.product.bind(d, name=name, transposed=True, width=shapes[name][0])

    def run(carry, given):
        flags = given.mask, given.starts
        if isinstance(how, _Save):
            step = body.forward(problem, dot, given.others, given.initial, *how)
            return step(carry, (given.xs, *flags))
        step = body.backward(problem, back, given.others, names)
        carry, (d_xs, *of_weights) = step(carry, (*given.kept, given.xs, given.d_ys, *flags))
        return carry, (d_xs if how.xs else None, *(of_weights if how.weights else (None, None)))

    carry, given = tree.unflatten(leaves)
    with nowhere():
        closed, (_, made) = jax.make_jaxpr(run, return_shape=True)(carry, given)
    fields = zip(given._fields, given, strict=True)
    steps = [_kind(name) == _STEPS for name, one in fields for _ in jax.tree.leaves(one)]
    count = len(jax.tree.leaves(carry))
    try:
        compiled = parts.compiled(closed, count, steps, operations)
    except Unknown as unknown:
        return Unknown(*unknown.args)
    return _Traced(compiled, made, tuple(names))


def _call(traced, problem, operands, carry, inputs, *, reverse, whole):
    """Runs a body over all steps: what is carried in the end, and what all steps gave.

    If it need not be ``whole``, steps that are real in no row, and reset none, give zeros.
    """
    compiled, lead = traced.parts, _batch(problem, operands)
    steps, *batch = jax.tree.leaves(inputs.xs)[0].shape[: 1 + lead]
    batch, (carried, tree) = Batch(batch), jax.tree.flatten(carry)
    dtype = carried[0].dtype

    def argument(a, kind):
        """[(T,) *batch, ...] as [(T,) R, W], or an array without rows as [W]."""
        a = a.astype(dtype)
        if kind == _UNITS:
            return Argument(a.reshape(-1), None)
        flat, rows = batch.flat(a, kind - 1).array, kind - 1
        return Argument(flat.reshape(*flat.shape[:kind], math.prod(flat.shape[kind:])), rows)

    fields = zip(inputs._fields, inputs, strict=True)
    kinds = [_kind(name) for name, one in fields for _ in jax.tree.leaves(one)]
    arrays = jax.tree.leaves(inputs)
    weights = [operands.weights[name].astype(dtype) for name in compiled.weights]
    args = [
        *(Argument(w.reshape(w.shape[0], math.prod(w.shape[1:])), None) for w in weights),
        *(argument(a, _ROWS) for a in carried),
        *map(argument, arrays, kinds),
    ]
    first = len(jax.tree.leaves(inputs.xs))
    mask = -1 if whole or inputs.mask is None else first
    starts = -1 if inputs.starts is None else first + (inputs.mask is not None)
    width = lambda a: math.prod(a.shape[lead:])
    out = [
        *(Result((None, width(a)), dtype) for a in carried),
        *(Result((steps, None, n), dtype) for n in compiled.made),
    ]
    numbers = lambda rows: np.array(rows, np.int32).reshape(-1)
    programs = compiled.programs
    found = native.call(
        "loop",
        args,
        out,
        steps=np.int64(steps),
        reverse=np.int32(reverse),
        kinds=numbers(kinds),
        mask=np.int32(mask),
        starts=np.int32(starts),
        weights=np.int32(len(weights)),
        widths=numbers(compiled.widths),
        carry=numbers(compiled.carry),
        parts=numbers(compiled.parts),
        sizes=numbers([_sizes(program) for program in programs]),
        programs=numbers([n for program in programs for n in program.instructions]),
        outputs=numbers([n for program in programs for n in program.outputs]),
        constants=np.array([n for program in programs for n in program.constants], np.float64),
    )
    final = [batch.unflat(a, 0).reshape(like.shape) for a, like in zip(found, carried)]
    made = [batch.unflat(a, 1) for a in found[len(carried) :]]
    like, made_tree = jax.tree.flatten(traced.made)
    every = [
        (arrays[which] if kind == parts.INPUT else made[which])
        .reshape(steps, *batch.sizes, *a.shape[1:])
        .astype(a.dtype)
        for (kind, which), a in zip(compiled.outputs, like, strict=True)
    ]
    return tree.unflatten(final), made_tree.unflatten(every)


def _sizes(program):
    """How much of the joined lists is one program's, as the kernel reads them."""
    lists = program.instructions, program.outputs, program.constants
    return program.registers, program.inputs, *map(len, lists)
