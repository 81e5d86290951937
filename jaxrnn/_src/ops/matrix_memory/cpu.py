"""The matrix memory on a CPU: the whole sequence in one call of C++ (``native/cpu/``).

Step after step, as the reference: a memory fits into the cache, and a step of it is two products
with a vector. The gradient begins from the memories that ``chunked`` saves too.
"""

from jaxrnn._src.core import dispatch
from jaxrnn._src.ops import native
from jaxrnn._src.ops.heads import Heads
from jaxrnn._src.ops.matrix_memory.chunked import CHUNK
from jaxrnn._src.ops.row_partition import Batch

_STORED = ("float32", "float64", "bfloat16", "float16")
_COTANGENTS = ("d_final", "d_final_m", "d_ys", "d_ms")
EXPORTED = dispatch.ON_REQUEST  # else an exported program runs where this library is not


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    del problem
    why = native.unsupported(target)
    if why is not None:
        return why
    if not all(isinstance(n, int) for n in (*operands.q.shape, *operands.v.shape)):
        return "a size is symbolic"
    if operands.q.dtype.name not in _STORED:
        return f"q has the type {operands.q.dtype}; the kernel knows {_STORED}"
    return None


def forward(problem, operands, wanted, save, target):
    """Returns (C, m, ys, ms), then the C and m before each chunk."""
    del target
    heads, ys = _heads(operands), wanted[2]
    memory, m = operands.state
    out = {
        "memory": heads.state(memory),
        "m": heads.state(m),
        "ms": heads.steps(operands.log_f),
        "ys": heads.steps(operands.v, memory.dtype) if ys else None,
        "saved": heads.chunks(memory) if save else None,
        "saved_m": heads.chunks(m) if save else None,
    }
    out = _call("forward", problem, operands, heads, out, (), operands.state, ys=ys, save=save)
    saved = (out["saved"], out["saved_m"]) if save else ()
    return [out["memory"], out["m"], out["ys"], out["ms"], *saved]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted, target  # all of them are made at once
    heads, (memory, m) = _heads(operands), operands.state
    out = {"d_memory": heads.state(memory), "d_m": heads.state(m)}
    taken = ("q", "k", "v", "log_f", "log_i")
    out |= {name: heads.steps(getattr(operands, name)) for name in taken}
    has = {name: d is not None for name, d in zip(_COTANGENTS, cotangents)}
    d_state, d_steps = cotangents[:2], cotangents[2:]
    out = _call("backward", problem, operands, heads, out, (*residuals, *d_steps), d_state, **has)
    state = out.pop("d_memory"), out.pop("d_m")
    return operands._replace(state=state, **out)


def _heads(operands):
    steps, *batch, _ = operands.log_f.shape
    return Heads(steps, CHUNK, Batch(batch))


def _call(name, problem, operands, heads, out, timed, states, **has):
    has = dict.fromkeys(("ys", "save", *_COTANGENTS), False) | has
    return heads.call(
        f"matrix_memory_{name}",
        out,
        (*operands[:5], *timed),
        states,
        {"mask": operands.mask, "starts": operands.starts},
        stabilised=problem.stabilised,
        reverse=problem.reverse,
        **has,
    )
