"""The memory on a CPU: the whole sequence in one call of C++ (``native/cpu/``).

Step after step, as the reference: a part of a memory stays in the fastest cache for a chunk of
steps. The gradient begins from the memories that ``xla`` saves too.
"""

import numpy as np

from jaxrnn._src.core import dispatch
from jaxrnn._src.ops import native
from jaxrnn._src.ops.delta_rule.xla import chunk_size
from jaxrnn._src.ops.heads import Heads
from jaxrnn._src.ops.row_partition import Batch

_TYPES = ("float32", "float64")
EXPORTED = dispatch.ON_REQUEST  # else an exported program runs where this library is not


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    del problem
    why = native.unsupported(target)
    if why is not None:
        return why
    if not all(isinstance(n, int) for n in (*operands.q.shape, *operands.v.shape)):
        return "a size is symbolic"
    if operands.state.dtype.name not in _TYPES:
        return f"the memory has the type {operands.state.dtype}; the kernel knows {_TYPES}"
    return None


def forward(problem, operands, wanted, save, target):
    """Returns (final state, ys), then the memory before each chunk."""
    del target
    heads, state, ys = _heads(operands), operands.state, wanted[1]
    out = {
        "state": heads.state(state),
        "ys": heads.steps(operands.v) if ys else None,
        "saved": heads.chunks(state) if save else None,
    }
    out = _call("forward", problem, operands, heads, out, (), (state,), ys=ys, save=save)
    return [out["state"], out["ys"], *([out["saved"]] if save else ())]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted, target  # all of them are made at once
    heads, (d_final, d_ys) = _heads(operands), cotangents
    out = {"state": heads.state(operands.state)}
    out |= {n: None if a is None else heads.steps(a) for n, a in _taken(operands).items()}
    has = dict(d_final=d_final is not None, d_ys=d_ys is not None)
    timed = *residuals, d_ys
    return operands._replace(
        **_call("backward", problem, operands, heads, out, timed, (d_final,), **has)
    )


def _heads(operands):
    steps, *batch, _, _ = operands.q.shape
    return Heads(steps, chunk_size(steps), Batch(batch))


def _taken(operands):
    return {name: getattr(operands, name) for name in ("q", "k", "v", "log_w", "a", "b")}


def _call(name, problem, operands, heads, out, timed, states, **has):
    has = dict.fromkeys(("ys", "save", "d_final", "d_ys"), False) | has
    return heads.call(
        f"delta_rule_{name}",
        out,
        (*_taken(operands).values(), *timed),
        states,
        {"mask": operands.mask, "starts": operands.starts},
        decay=operands.log_w is not None,
        a=operands.a is not None,
        b=operands.b is not None,
        before=problem.before,
        reverse=problem.reverse,
        chunk=np.int32(heads.chunk),
        **has,
    )
