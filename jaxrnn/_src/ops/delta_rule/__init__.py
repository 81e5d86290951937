"""A matrix memory with the delta rule: one contract, and its implementations.

    S_t = (diag(w_t) + a_t b_t') S_{t-1} + k_t v_t'      y_t = S_t' q_t, or S_{t-1}' q_t

The decay w is one number for the whole memory or one for each key, and is given as a logarithm.
With a and b the memory is also read at b before it decays, and what is read is written at a:

    linear attention          w = 1 or a constant    no a, b
    Mamba-2, GLA, RWKV, ...   w of each step         no a, b
    DeltaNet                  w = 1                  b = k, and beta k for k and -a
    KDA, Gated DeltaNet       w of each step         b = w k, and beta k for k and -a
    RWKV-7                    w of each step         a, b and k apart
"""

import functools

from jaxrnn._src.core import time_division
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.core.time_axis import resets
from jaxrnn._src.ops.delta_rule import cpu, over_time, reference, xla
from jaxrnn._src.ops.delta_rule.problem import Operands, Problem
from jaxrnn._src.ops.delta_rule.reference import step as one  # noqa: F401, for cells
from jaxrnn._src.ops.operation import Implementation, Operation

# The best first; `reference` runs only if asked.
IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu, "xla": xla}


def delta_rule(
    taken, state, *, before=False, mask=None, starts=None, reverse=False, implementation=None
):
    """Runs the memory over time.

    T time, B any batch axes, N heads, D the width of a key, E of a value. All arrays are in the
    type of the arithmetic.

    Args:
      taken: ``(q, k, v, log_w, a, b)``: q, k [T, B, N, D] and v [T, B, N, E]; log_w [T, B, N, D]
        or, one for all keys, [T, B, N, 1], at most 0, or None for no decay; a, b [T, B, N, D].
        Without a (None), a is -k; without both, nothing is removed.
      state: the memory [B, N, D, E].
      before: each step reads the memory that it finds, not the one that it leaves.
      mask: bool [T, B], true at a real step; at others the memory is held and y is 0.
      starts: bool [T, B], true where a new episode begins: the memory is zero there.
      reverse: from the last step to the first.
      implementation: "cpu", "xla", "reference", or None for the best that can run.

    Returns:
      ``(state, ys)``: ys [T, B, N, E].
    """
    starts = resets(starts, mask, reverse)
    operands = varying(Operands._make((*taken, state, mask, starts)))
    problem = Problem(before, reverse, implementation)
    run = _operation.chosen(_describe(operands), problem, operands)
    axis = time_division.axis()
    if axis is None:
        return tuple(run(problem, operands))
    with time_division.divided(None):  # what it goes on from is known
        return over_time.run(functools.partial(run, problem), operands, axis, reverse)


_operation = Operation(
    "delta_rule",
    IMPLEMENTATIONS,
    reference=reference.run,
    operand_axes=dict(q=1, k=1, v=1, log_w=1, a=1, b=1, state=0, mask=1, starts=1),
    output_axes=lambda problem: (0, 1),
    residual_axis=1,
    reads=lambda problem, operands: (False, False),
)


def _describe(operands):
    steps, *batch, heads, width = operands.q.shape
    sizes = f"T={steps} B={tuple(batch)} N={heads} D={width} E={operands.v.shape[-1]}"
    return f"delta_rule {sizes} {operands.q.dtype}"
