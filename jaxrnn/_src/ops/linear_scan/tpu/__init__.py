"""The linear recurrence on a TPU: one Pallas kernel, which moves each array once.

So memory is what bounds it: by the compiler's schedule for a v6e the arithmetic takes a seventh to
0.6 of the time that memory does, forward and backward, in float32, bfloat16 and complex64 at
1, 8 and 64 rows of 1024 and 1536 channels; a single row in bfloat16 takes about as long. XLA's
own programs move the arrays several times over, or wait for memory at every step.
"""

import jax
import jax.numpy as jnp

from jaxrnn._src.ops import pallas_tpu
from jaxrnn._src.ops.linear_scan import xla
from jaxrnn._src.ops.linear_scan.problem import keeps
from jaxrnn._src.ops.linear_scan.tpu import layout

_TYPES = ("float32", "bfloat16", "complex64")


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    return pallas_tpu.unsupported(
        problem,
        target,
        sizes=operands.b.shape,
        known=_TYPES,
        types=(operands.b.dtype.name, operands.factor_dtype.name, operands.h0.dtype.name),
        specs="in_specs=P(None, 'batch'), out_specs=(P('batch'), P(None, 'batch'))",
    )


def forward(problem, operands, wanted, save, target):
    """Returns (final state, hs), then the states before each step if a backward needs them."""
    from jaxrnn._src.ops.linear_scan.tpu import kernel

    if operands.h0.size == 0:  # no row, no grid
        return xla.forward(problem, operands, wanted, save, target)
    place = _place(operands)
    ins = _factor(place, operands)
    ins |= {"b": place.timed(operands.b), "h0": place.state(operands.h0)}
    outs = {"final": operands.h0}
    if wanted[1]:
        outs["hs"] = operands.b
    if save and keeps(operands):
        outs["kept"] = jax.ShapeDtypeStruct(operands.b.shape, operands.h0.dtype)
    out = kernel.forward(place, ins, _types(outs), _flags(operands), reverse=problem.reverse)
    found = {name: layout.joined(out[name], like) for name, like in outs.items()}
    return [found.pop("final"), found.pop("hs", None), *found.values()]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    from jaxrnn._src.ops.linear_scan.tpu import kernel

    if operands.h0.size == 0:
        return xla.backward(problem, operands, outputs, residuals, cotangents, wanted, target)
    place, (d_final, d_hs) = _place(operands), cotangents
    ins = _factor(place, operands)
    ins["d_final"] = place.state(jnp.zeros_like(operands.h0) if d_final is None else d_final)
    if d_hs is not None:
        ins["d_hs"] = place.timed(d_hs)
    outs = {"d_h0": operands.h0}
    if wanted.b:
        outs["d_b"] = operands.b
    if wanted.a:
        outs["d_a"] = operands.a
    if wanted.constant:
        outs["d_constant"] = operands.h0
    if wanted.a or wanted.constant:
        if residuals:
            ins["kept"] = place.timed(residuals[0])
        else:
            ins |= {"hs": place.timed(outputs[1]), "h0": place.state(operands.h0)}
    out = kernel.backward(place, ins, _types(outs), _flags(operands), reverse=problem.reverse)
    found = {
        name.removeprefix("d_"): layout.joined(out[name], like) for name, like in outs.items()
    }
    if wanted.constant:
        by_row = found["constant"].reshape(-1, *operands.constant.shape)
        found["constant"] = by_row.sum(0).astype(operands.constant.dtype)
    return operands._replace(**found)


def _place(operands):
    widths = layout.parts_of(operands.b.dtype), layout.parts_of(operands.factor_dtype)
    return layout.of(operands.b.shape, min(types[0].itemsize for types in widths))


def _factor(place, operands):
    if operands.a is not None:
        return {"a": place.timed(operands.a)}
    return {"constant": place.constant(operands.constant)}


def _flags(operands):
    flags = {"mask": operands.mask, "starts": operands.starts}
    return {name: flag for name, flag in flags.items() if flag is not None}


def _types(outs):
    return {name: layout.parts_of(like.dtype) for name, like in outs.items()}
