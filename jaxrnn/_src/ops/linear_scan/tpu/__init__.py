"""The linear recurrence on a TPU: one Pallas kernel, which moves each array once.

So memory is what bounds it: by the compiler's schedule for a v6e the arithmetic takes a seventh to
0.6 of the time that memory does, forward and backward, in float32, bfloat16 and complex64 at
1, 8 and 64 rows of 1024 and 1536 channels; a single row in bfloat16 takes about as long. XLA's
own programs move the arrays several times over, or wait for memory at every step.
"""

import math

import jax.numpy as jnp

from jaxrnn._src.ops import pallas_tpu
from jaxrnn._src.ops.linear_scan import xla
from jaxrnn._src.ops.linear_scan.problem import keeps
from jaxrnn._src.ops.linear_scan.tpu import layout
from jaxrnn._src.ops.row_partition import Argument, Batch, Result, call_mapped

_STATES = ("h0", "final", "d_final", "d_h0", "d_constant")  # [*batch, D]; others have time too
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
    outs = {"final": operands.h0.dtype}
    if wanted[1]:
        outs["hs"] = operands.b.dtype
    if save and keeps(operands):
        outs["kept"] = operands.h0.dtype
    ins = _factor(operands) | {"b": operands.b, "h0": operands.h0}
    found = _on_each_device(kernel.forward, problem, operands, ins, outs)
    return [found.pop("final"), found.pop("hs", None), *found.values()]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    from jaxrnn._src.ops.linear_scan.tpu import kernel

    if operands.h0.size == 0:
        return xla.backward(problem, operands, outputs, residuals, cotangents, wanted, target)
    d_final, d_hs = cotangents
    ins = _factor(operands)
    ins["d_final"] = jnp.zeros_like(operands.h0) if d_final is None else d_final
    if d_hs is not None:
        ins["d_hs"] = d_hs
    outs = {"d_h0": operands.h0.dtype}
    if wanted.b:
        outs["d_b"] = operands.b.dtype
    if wanted.a:
        outs["d_a"] = operands.a.dtype
    if wanted.constant:
        outs["d_constant"] = operands.h0.dtype
    if wanted.a or wanted.constant:
        ins |= {"kept": residuals[0]} if residuals else {"hs": outputs[1], "h0": operands.h0}
    found = _on_each_device(kernel.backward, problem, operands, ins, outs)
    found = {name.removeprefix("d_"): d for name, d in found.items()}
    if wanted.constant:
        by_row = found["constant"].reshape(-1, *operands.constant.shape)
        found["constant"] = by_row.sum(0).astype(operands.constant.dtype)
    return operands._replace(**found)


def _factor(operands):
    return {"constant": operands.constant} if operands.a is None else {"a": operands.a}


def _on_each_device(kernel, problem, operands, ins, outs):
    """Runs a kernel on each device's rows and channels; its results, by the names of ``outs``."""
    steps, *batch, width = operands.b.shape
    batch = Batch(batch)
    widths = layout.parts_of(operands.b.dtype), layout.parts_of(operands.factor_dtype)
    itemsize = min(types[0].itemsize for types in widths)

    def argument(name, a):
        if name == "constant":
            return Argument(a, None, 0)
        if name in _STATES:
            return batch.flat(a, 0, 1)
        return batch.flat(a, 1, 2)

    def result(name, dtype):
        if name in _STATES:
            return Result((None, width), dtype, 1)
        return Result((steps, None, width), dtype, 2)

    flags = {"mask": operands.mask, "starts": operands.starts}
    flags = {name: flag for name, flag in flags.items() if flag is not None}
    arguments = {name: argument(name, a) for name, a in ins.items()}
    arguments |= {name: batch.flat(flag, 1) for name, flag in flags.items()}

    def run(*arrays):
        given = dict(zip(arguments, arrays, strict=True))
        own = {name: given.pop(name) for name in flags}
        place = layout.of((steps, *given["d_final" if "d_final" in ins else "h0"].shape), itemsize)
        kinds = {"constant": place.constant} | dict.fromkeys(_STATES, place.state)
        numbers = {name: kinds.get(name, place.timed)(a) for name, a in given.items()}
        types = {name: layout.parts_of(dtype) for name, dtype in outs.items()}
        found = kernel(place, numbers, types, own, reverse=problem.reverse)
        return [layout.joined(found[name]) for name in outs]

    results = [result(name, dtype) for name, dtype in outs.items()]
    found = zip(outs, call_mapped(run, list(arguments.values()), results), strict=True)
    return {name: batch.unflat(a, a.ndim - 2) for name, a in found}
