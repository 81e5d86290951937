"""The recurrence on a TPU: the whole sequence in one Pallas kernel, the weights in VMEM.

XLA's loop is several kernels a step, and leaves the recurrent weights in HBM to be read again at
every step, unless there is room for them by chance. Here they are loaded once (``kernel.py``).
The update is traced into the kernel, its derivative into the backward one: any elementwise update
runs there that Pallas can lower. The gradients of the weights are products over all steps, after
the loop, as in ``recurrence.xla``.
"""

import jax
import jax.numpy as jnp

from jaxrnn._src.core.closures import bound
from jaxrnn._src.ops import pallas_tpu
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence import xla
from jaxrnn._src.ops.recurrence.projected import in_pieces
from jaxrnn._src.ops.recurrence.tpu import layout, update

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
    """Returns (*final state, ys), then what ``xla.forward`` keeps."""
    if operands.state[0].size == 0:  # no row, no grid
        return xla.forward(problem, operands, wanted, save, target)
    if layout.Layout(problem, operands, target).projects:
        return _forward(problem, operands, wanted, save, target)
    return in_pieces(_forward, problem, operands, wanted, save, target)


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
        first_kept=xla.first_kept(operands),
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
    lay = layout.Layout(problem, operands, target)
    packed, before = xla.saved(lay.packing, operands, outputs, residuals)
    d_final, (d_ys, *d_after) = cotangents[: problem.states], cotangents[problem.states :]
    zero = jnp.zeros_like(operands.state[0])
    used = update.looks_at(problem, tuple(operands.unit))
    out = kernel.backward(
        lay.plan(lay.backward),
        lay.shared(lay.backward)
        | {
            "gates": [lay.spread(part) for part in jax.tree.leaves(packed)],
            "states": [lay.spread(s) for s, u in zip(before, used, strict=True) if u],
            "r": [lay.lanes.transposed(operands.r).astype(lay.product)],
            "d_ys": [] if d_ys is None else [lay.spread(d_ys)],
            "d_after": [lay.spread(d) for d in d_after if d is not None],
            "d_state": [lay.flat_rows(zero if d is None else d) for d in d_final],
        },
        starts=operands.starts is not None,
        used=used,
        after=[d is not None for d in d_after],
    )
    d_packed, _ = lay.packing.unflatten(map(lay.unflat, out["d_gates"]))
    gradients = xla.of_products(lay.packing, d_packed, before[0], operands, merge=True)
    d_unit = [p.over_rows(lay.unflat_rows(d)) for d in out["d_unit"]]
    gradients = gradients._replace(
        unit=dict(zip(sorted(operands.unit), d_unit, strict=True)),
        state=tuple(map(lay.unflat_rows, out["d_state"])),
        initial=tuple(map(lay.unflat_rows, out["d_initial"])) or None,
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)
