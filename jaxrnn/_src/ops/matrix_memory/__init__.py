"""A matrix memory with scalar gates: one contract, and its implementations.

    C_t = f_t C_{t-1} + i_t k_t v_t'      y_t = C_t' q_t

Gates are given as logarithms, and may be of any size: with ``stabilised`` the memory is kept
divided by exp(m),

    m_t = max(log f_t + m_{t-1}, log i_t)

and so is what is read from it.
"""

from jaxrnn._src.core import time_division
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.core.time_axis import resets
from jaxrnn._src.ops.matrix_memory import chunked, cpu, gpu, over_time, reference
from jaxrnn._src.ops.matrix_memory.problem import Operands, Problem
from jaxrnn._src.ops.matrix_memory.reference import step as one  # noqa: F401, for cells
from jaxrnn._src.ops.operation import Implementation, Operation

# The best first; `reference` runs only if asked.
IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu, "gpu": gpu, "xla": chunked}


def matrix_memory(
    q,
    k,
    v,
    log_f,
    log_i,
    state,
    *,
    stabilised,
    mask=None,
    starts=None,
    reverse=False,
    implementation=None,
):
    """Runs the memory over time.

    T time, B any batch axes, N heads, D the width of a key, E of a value.

    Args:
      q, k: [T, B, N, D], in the type of the products' factors.
      v: [T, B, N, E], in the same.
      log_f, log_i: the gates' logarithms [T, B, N], in the type of the arithmetic.
      state: ``(C, m)``, [B, N, D, E] and [B, N], in the type of the arithmetic.
      stabilised: whether ``log_i`` may be above 0; without, m is 0, and has no gradient of use.
      mask: bool [T, B], true at a real step; at others the state is held and y and m are 0.
      starts: bool [T, B], true where a new episode begins: C and m are zero there.
      reverse: from the last step to the first.
      implementation: "cpu", "gpu", "xla", "reference", or None for the best that can run.

    Returns:
      ``(state, (ys, ms))``: ys [T, B, N, E], divided by exp(m) as C is, and ms [T, B, N].
    """
    starts = resets(starts, mask, reverse)
    operands = varying(Operands(q, k, v, log_f, log_i, state, mask, starts))
    problem = Problem(stabilised, reverse, implementation)
    run = _operation.chosen(_describe(operands), problem, operands)

    def whole(operands):
        *state, ys, ms = run(problem, operands)
        return tuple(state), (ys, ms)

    axis = time_division.axis()
    if axis is None:
        return whole(operands)
    with time_division.divided(None):  # what it goes on from is known
        return over_time.run(whole, operands, axis, reverse, stabilised)


_operation = Operation(
    "matrix_memory",
    IMPLEMENTATIONS,
    reference=reference.run,
    operand_axes=dict.fromkeys(Operands._fields, 1) | {"state": 0},
    output_axes=lambda problem: (0, 0, 1, 1),
    residual_axis=1,
    reads=lambda problem, operands: (False,) * 4,
)


def _describe(operands):
    steps, *batch, heads, width = operands.q.shape
    sizes = f"T={steps} B={tuple(batch)} N={heads} D={width} E={operands.v.shape[-1]}"
    return f"matrix_memory {sizes} {operands.q.dtype}"
