"""Attention on a CPU: all blocks of queries and keys in one call of C++ (``native/cpu/``).

Forward and backward as in ``blockwise``, whose residual it keeps. Time comes first in memory, as
cells have it, so that nothing is transposed for the call.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.ops import native
from jaxrnn._src.ops.row_partition import Batch, Result

_STORED = ("float32", "float64", "bfloat16", "float16")
_ALL = np.iinfo(np.int32).max  # a window that hides nothing
EXPORTED = dispatch.ON_REQUEST  # else an exported program runs where this library is not


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    del problem
    why = native.unsupported(target)
    if why is not None:
        return why
    if not all(isinstance(n, int) for n in (*operands.q.shape, operands.k.shape[-3])):
        return "a size is symbolic"
    if operands.q.dtype.name not in _STORED:
        return f"q has the type {operands.q.dtype}; the kernel knows {_STORED}"
    return None


def forward(problem, operands, wanted, save, target):
    """Returns (ys,), [B, T, N, D], then the logarithm of each row's sum, [B, T, N]."""
    del wanted, target
    plan = _Plan(problem, operands)
    out = [plan.result(operands.q), *[plan.sums()] * save]
    out = plan.call("attend_forward", out, plan.arguments(*operands[:3]), save=save)
    return [plan.unflat(a) for a in out]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del wanted, target  # what nobody uses is a fifth of the work at most
    plan = _Plan(problem, operands)
    out = [plan.result(a) for a in operands[:3]]
    args = [*plan.arguments(*operands[:3]), *map(plan.flat, (*outputs, *residuals, *cotangents))]
    q, k, v = map(plan.unflat, plan.call("attend_backward", out, args, save=False))
    return operands._replace(q=q, k=k, v=v)


class _Plan:
    """The problem as the kernel is told it: time first, then one batch axis, then heads.

    Heads do not see each other, as channels do not.
    """

    def __init__(self, problem, operands):
        self.problem, self.operands = problem, operands
        *batch, self.time, self.heads, _ = operands.q.shape
        self.batch = Batch(batch)

    def flat(self, a):
        """[*batch, T, ...] -> [T, B, ...]."""
        return self.batch.flat(jnp.moveaxis(a, len(self.batch.sizes), 0), 1, 2)

    def unflat(self, a):
        """The inverse."""
        return jnp.moveaxis(self.batch.unflat(a, 1), 0, len(self.batch.sizes))

    def arguments(self, q, k, v):
        places = jax.tree.leaves((self.operands.q_place, self.operands.k_place))
        return [*map(self.flat, (q, k, v)), *(self.batch.flat(p, 0) for p in places)]

    def result(self, a):
        *_, steps, heads, width = a.shape
        return Result((steps, None, heads, width), a.dtype, 2)

    def sums(self):
        dtype = promoted(self.operands.q.dtype, jnp.dtype("float32"))
        return Result((self.time, None, self.heads), dtype, 2)

    def call(self, name, out, args, save):
        window = self.problem.window
        return native.call(
            name,
            args,
            out,
            window=np.int64(_ALL if window is None else min(window, _ALL)),
            placed=not self.problem.plain,
            save=save,
        )
