"""The linear recurrence on a CPU: the whole sequence in one call of C++ (``native/cpu/``).

Each array is read or written once, and the gradient as in ``xla``, whose residual it keeps.
"""

import numpy as np

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops import native
from jaxrnn._src.ops.linear_scan.problem import Operands, Problem, keeps
from jaxrnn._src.ops.row_partition import Argument, Batch, Result

EXPORTED = dispatch.ON_REQUEST  # else an exported program runs where this library is not


def unsupported(problem: Problem, operands: Operands, target: Target) -> str | None:
    """Why the kernel can't run the problem, or None."""
    del problem
    why = native.unsupported(target)
    if why is not None:
        return why
    if not all(isinstance(n, int) for n in operands.b.shape):
        return "a size is symbolic"
    return None


def forward(problem, operands, wanted, save, target):
    """Returns (final state, hs), then the states before each step if a backward needs them."""
    del target
    plan, hs, before = _Plan(problem, operands), wanted[1], save and keeps(operands)
    out = {
        "final": plan.state(),
        "hs": plan.steps(operands.b.dtype) if hs else None,
        "before": plan.steps() if before else None,
    }
    args = (plan.factors(), plan.flat(operands.b), plan.flat(operands.h0))
    out = plan.call("forward", out, args, hs=hs, before=before)
    return [out["final"], out["hs"], *([out["before"]] if before else [])]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del target
    plan, (d_final, d_hs) = _Plan(problem, operands), cotangents
    constant = operands.a is None
    want_a = wanted.constant if constant else wanted.a
    out = {
        "d_h0": plan.state(),
        "d_b": plan.steps(operands.b.dtype) if wanted.b else None,
        "d_a": (plan.state() if constant else plan.steps(operands.a.dtype)) if want_a else None,
    }
    states = (residuals or (operands.h0, outputs[1])) if want_a else ()
    given = (*states, *(d for d in (d_final, d_hs) if d is not None))
    out = plan.call(
        "backward",
        out,
        (plan.factors(), *map(plan.flat, given)),
        hs=len(states) == 2,
        before=len(states) == 1,
        d_final=d_final is not None,
        d_hs=d_hs is not None,
        d_a=want_a,
        d_b=wanted.b,
    )
    gradients = operands._replace(h0=out["d_h0"])  # what is not wanted may be anything
    if out["d_b"] is not None:
        gradients = gradients._replace(b=out["d_b"])
    d_a = out["d_a"]
    if d_a is None:
        return gradients
    if not constant:
        return gradients._replace(a=d_a)
    d_a = d_a.sum(tuple(range(len(plan.batch.sizes))))
    return gradients._replace(constant=d_a.astype(operands.factor_dtype))


class _Plan:
    """The problem as the kernel is told it: time, then one axis of rows, then channels."""

    def __init__(self, problem: Problem, operands: Operands):
        self.problem, self.operands = problem, operands
        self.time, *batch, self.width = operands.b.shape
        self.batch = Batch(batch)

    def flat(self, array):
        """[(T,) *batch, D] -> [(T,) R, D]."""
        before = array.ndim - len(self.batch.sizes) - 1
        return self.batch.flat(array, before, before + 1)

    def factors(self):
        a, constant = self.operands.a, self.operands.constant
        return self.flat(a) if constant is None else Argument(constant, None, 0)

    def state(self):
        return Result((None, self.width), self.operands.h0.dtype, 1)

    def steps(self, dtype=None):
        return Result((self.time, None, self.width), dtype or self.operands.h0.dtype, 2)

    def call(self, name, out, args, **attributes):
        """The results by name, those that are None left out of the call."""
        operands = self.operands
        flags = {"mask": operands.mask, "starts": operands.starts}
        args = [*args, *(self.batch.flat(f, 1) for f in flags.values() if f is not None)]
        attributes = dict(
            dict.fromkeys(("d_final", "d_hs", "d_a", "d_b"), False),
            **attributes,
        ) | {f: value is not None for f, value in flags.items()}
        attributes |= dict(
            steps=np.int64(self.time),
            constant=operands.a is None,
            reverse=self.problem.reverse,
        )
        asked = [result for result in out.values() if result is not None]
        made = iter(native.call(f"linear_scan_{name}", args, asked, **attributes))
        return {
            n: None if r is None else self.batch.unflat(next(made), r.shape.index(None))
            for n, r in out.items()
        }
