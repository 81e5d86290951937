"""The recurrence on a TPU: the whole sequence in one Pallas kernel, the weights in VMEM.

XLA's loop is several kernels a step, and leaves the recurrent weights in HBM to be read again at
every step, unless there is room for them by chance. Here they are loaded once (``kernel.py``).
The update is traced into the kernel, its derivative into the backward one: any elementwise update
runs there that Pallas can lower. The gradients of the weights are products over all steps, after
the loop, as in ``recurrence.xla``.
"""

import math

import jax
import jax.numpy as jnp

from jaxrnn._src.core.closures import bound
from jaxrnn._src.ops import pallas_tpu
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence import xla
from jaxrnn._src.ops.recurrence.packed import Packing
from jaxrnn._src.ops.recurrence.projected import in_pieces
from jaxrnn._src.ops.recurrence.residuals import first_kept, of_products, saved
from jaxrnn._src.ops.recurrence.tpu import layout, update
from jaxrnn._src.ops.row_partition import Argument, Batch, Result, call_mapped

_TYPES = ("float32", "bfloat16")


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    why = pallas_tpu.unsupported(
        problem,
        target,
        known=_TYPES,
        sizes=(*operands.xs.shape, *operands.r.shape, operands.w.shape[2]),
        types=(operands.xs.dtype.name, operands.state[0].dtype.name),
        specs="in_specs=(P(), P(None, 'batch')), out_specs=P(None, 'batch')",
    )
    if why is not None or operands.state[0].size == 0:
        return why
    if bound(problem.update):
        return "the update closes over an array of its units: give it as a weight, `unit=`"
    interpreted = pallas_tpu.interpreted(problem)
    error = None if interpreted else update.error(problem, tuple(operands.unit))
    if error is not None:
        return error
    return layout.too_large(problem, operands, target)


def forward(problem, operands, wanted, save, target):
    """Returns (*final state, ys), then what a backward needs (``residuals.py``)."""
    if operands.state[0].size == 0:  # no row, no grid
        return xla.forward(problem, operands, wanted, save, target)
    rows, alone = _Rows(operands), target._replace(devices=1)

    def run(operands):
        if layout.Layout(problem, operands, alone).projects:
            return _forward(problem, operands, wanted, save, alone)
        return in_pieces(_forward, problem, operands, wanted, save, alone)

    packing, (want_y, *after) = Packing(problem, operands.unit), wanted[problem.states :]
    sizes = packing.sizes if save and problem.residuals == "gates" else ()
    kept = (problem.states - first_kept(operands)) * save
    results = [
        [rows.state()] * problem.states,
        [rows.steps(1, operands.xs.dtype)] * want_y,
        [rows.steps(1)] * sum(after),
        [rows.steps(n) for n in sizes],
        [rows.steps(1)] * kept,
    ]
    final, ys, states, *kept = rows.call(run, rows.operands, results)
    states = iter(states)
    states = [next(states) if want else None for want in after]
    return [*final, *(ys or [None]), *states, *sum(kept, [])]


def _forward(problem, operands, wanted, save, target):
    from jaxrnn._src.ops.recurrence.tpu import kernel

    lay = layout.Layout(problem, operands, target)
    starts, spread = operands.starts is not None, lay.lanes.spread
    padded = operands._replace(w=spread(operands.w), b=spread(operands.b))
    arrays = lay.shared(lay.forward) | {
        "r": [lay.lanes.recurrent(operands.r).astype(lay.product)],
        "state": [lay.flat_rows(s) for s in operands.state],
        "initial": [lay.flat_rows(s) for s in operands.initial] if starts else [],
    }
    xs = lay.flat(operands.xs)
    if lay.projects:
        weights = p.flat(padded.w).astype(lay.product), padded.b.reshape(1, -1).astype(lay.total)
        arrays |= {"x": [xs], "w": list(weights)}
    else:
        arrays |= {"x": [p.project(xs, padded)], "w": []}
    want_y, *after = wanted[problem.states :]
    out = kernel.forward(
        lay.plan(lay.forward),
        arrays,
        operands.xs.dtype if want_y else None,
        after=after,
        save=problem.residuals if save else None,
        first_kept=first_kept(operands),
    )
    found = {name: map(lay.unflat, out[name]) for name in kernel.OUT_OVER_TIME}
    return [
        *map(lay.unflat_rows, out["final"]),
        next(found["ys"], None),
        *(next(found["after"]) if want else None for want in after),
        *found["gates"],
        *found["states"],
    ]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    from jaxrnn._src.ops.recurrence.tpu import kernel

    if operands.state[0].size == 0:
        return xla.backward(problem, operands, outputs, residuals, cotangents, wanted, target)
    del wanted  # what nobody uses, XLA removes
    rows, packing = _Rows(operands), Packing(problem, operands.unit)
    packed, before = saved(packing, operands, outputs, residuals)
    d_final, (d_ys, *d_after) = cotangents[: problem.states], cotangents[problem.states :]
    zero = jnp.zeros_like(operands.state[0])
    used = update.looks_at(problem, tuple(operands.unit))
    after = [d is not None for d in d_after]
    starts, alone = operands.starts is not None, target._replace(devices=1)

    def run(given):
        operands, gates, states, d_ys, d_after, d_state = given
        lay = layout.Layout(problem, operands, alone)
        out = kernel.backward(
            lay.plan(lay.backward),
            lay.shared(lay.backward)
            | {
                "gates": [lay.spread(part) for part in gates],
                "states": [lay.spread(s) for s in states],
                "r": [lay.lanes.transposed(operands.r).astype(lay.product)],
                "d_ys": [lay.spread(d) for d in d_ys],
                "d_after": [lay.spread(d) for d in d_after],
                "d_state": [lay.flat_rows(d) for d in d_state],
            },
            starts=starts,
            used=used,
            after=after,
        )
        by_row = [out[name] for name in ("d_state", "d_initial", "d_unit")]
        return jax.tree.map(lay.unflat_rows, by_row), list(map(lay.unflat, out["d_gates"]))

    arguments = (
        rows.operands,
        list(map(rows.timed, jax.tree.leaves(packed))),
        [rows.timed(s) for s, u in zip(before, used, strict=True) if u],
        [] if d_ys is None else [rows.timed(d_ys)],
        [rows.timed(d) for d in d_after if d is not None],
        [rows.rows(zero if d is None else d) for d in d_final],
    )
    product = layout.Layout(problem, operands, alone).product
    results = [
        [rows.state()] * problem.states,
        [rows.state()] * (problem.states * starts),
        [rows.state()] * len(operands.unit),
        [rows.steps(n, product) for n in packing.sizes],
    ]
    d_state, d_initial, d_unit, d_gates = rows.call(run, arguments, results)
    d_packed, _ = packing.unflatten(d_gates)
    one = target.devices == 1
    gradients = of_products(packing, d_packed, before[0], operands, merge=one)
    gradients = gradients._replace(
        unit=dict(zip(sorted(operands.unit), map(p.over_rows, d_unit), strict=True)),
        state=tuple(d_state),
        initial=tuple(d_initial) or None,
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


class _Rows:
    """A problem's arrays with one batch axis, which XLA divides over devices.

    Attributes:
      operands: those of the problem, an ``Argument`` each.
    """

    def __init__(self, operands):
        self.time, *batch, _ = operands.xs.shape
        self.batch = Batch(batch)
        self.hidden, self.total = operands.w.shape[2], operands.state[0].dtype
        weight = lambda a: Argument(a, None)
        self.operands = operands._replace(
            xs=self.timed(operands.xs),
            **{k: jax.tree.map(weight, getattr(operands, k)) for k in ("w", "b", "r", "unit")},
            **{k: jax.tree.map(self.rows, getattr(operands, k)) for k in ("state", "initial")},
            **{k: jax.tree.map(self.timed, getattr(operands, k)) for k in ("mask", "starts")},
        )

    def timed(self, a):
        """[T, *batch, ...]"""
        return self.batch.flat(a, 1)

    def rows(self, a):
        """[*batch, H]"""
        return self.batch.flat(a, 0)

    def state(self):
        return Result((None, self.hidden), self.total)

    def steps(self, count, dtype=None):
        return Result((self.time, None, count * self.hidden), dtype or self.total)

    def call(self, function, arguments, results):
        """``function`` of a tree of arrays, on each device: lists like ``results``."""
        flat, tree = jax.tree.flatten(arguments, is_leaf=lambda a: isinstance(a, Argument))

        def run(*arrays):
            return jax.tree.leaves(function(tree.unflatten(arrays)))

        out = iter(call_mapped(run, flat, sum(results, [])))
        unflat = lambda a: self.batch.unflat(a, a.ndim - 2)
        return [[unflat(next(out)) for _ in some] for some in results]
