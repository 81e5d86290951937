"""The matrix memory on a CPU: the whole sequence in one call of C++ (``native/cpu/``).

Step after step, as the reference: a memory fits into the cache, and a step of it is two products
with a vector. The gradient begins from the memories that ``chunked`` saves too.
"""

from jaxrnn._src.core import dispatch
from jaxrnn._src.ops import native
from jaxrnn._src.ops.matrix_memory.chunked import CHUNK
from jaxrnn._src.ops.matrix_memory.problem import Operands
from jaxrnn._src.ops.row_partition import Batch, Result

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
    plan, ys = _Plan(problem, operands), wanted[2]
    memory, m = operands.state
    out = {
        "memory": plan.state(memory),
        "m": plan.state(m),
        "ms": plan.steps(operands.log_f),
        "ys": plan.steps(operands.v, memory.dtype) if ys else None,
        "saved": plan.chunks(memory) if save else None,
        "saved_m": plan.chunks(m) if save else None,
    }
    out = plan.call("forward", out, operands.state, (), ys=ys, save=save)
    saved = (out["saved"], out["saved_m"]) if save else ()
    return [out["memory"], out["m"], out["ys"], out["ms"], *saved]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted, target  # all of them are made at once
    plan = _Plan(problem, operands)
    memory, m = operands.state
    out = {"d_memory": plan.state(memory), "d_m": plan.state(m)}
    out |= {name: plan.steps(getattr(operands, name)) for name in ("q", "k", "v")}
    out |= {name: plan.steps(getattr(operands, name)) for name in ("log_f", "log_i")}
    has = {name: d is not None for name, d in zip(_COTANGENTS, cotangents)}
    halves = cotangents[:2], cotangents[2:]
    d_state, d_steps = ([d for d in half if d is not None] for half in halves)
    out = plan.call("backward", out, d_state, (*residuals, *d_steps), **has)
    state = out.pop("d_memory"), out.pop("d_m")
    return operands._replace(state=state, **out)


class _Plan:
    """The problem as the kernel is told it: time, then one axis of rows, then heads.

    Heads do not see each other, as channels do not.
    """

    def __init__(self, problem, operands: Operands):
        self.problem, self.operands = problem, operands
        self.time, *batch, _ = operands.log_f.shape
        self.batch = Batch(batch)

    def state(self, a):
        return Result((None, *a.shape[len(self.batch.sizes) :]), a.dtype, 1)

    def steps(self, a, dtype=None):
        shape = (self.time, None, *a.shape[1 + len(self.batch.sizes) :])
        return Result(shape, dtype or a.dtype, 2)

    def chunks(self, a):
        shape = (-(-self.time // CHUNK), None, *a.shape[len(self.batch.sizes) :])
        return Result(shape, a.dtype, 2)

    def call(self, name, out, states, timed, **attributes):
        """The results by name, those that are None left out of the call."""
        operands = self.operands
        flags = {"mask": operands.mask, "starts": operands.starts}
        timed = [*operands[:5], *timed]
        args = [self.batch.flat(a, 1, 2) for a in timed]
        args += [self.batch.flat(a, 0, 1) for a in states]
        args += [self.batch.flat(a, 1) for a in flags.values() if a is not None]
        has = dict.fromkeys(("ys", "save", *_COTANGENTS), False) | attributes
        has |= {f: value is not None for f, value in flags.items()}
        has |= dict(stabilised=self.problem.stabilised, reverse=self.problem.reverse)
        results = [result for result in out.values() if result is not None]
        made = iter(native.call(f"matrix_memory_{name}", args, results, **has))
        return {
            n: None if r is None else self.batch.unflat(next(made), r.shape.index(None))
            for n, r in out.items()
        }
