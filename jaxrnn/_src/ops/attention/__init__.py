"""Exact attention in memory linear in T: one contract, and its implementations.

A query sees a key of its own episode that is not later than itself, and at most ``window - 1``
positions earlier.
"""

from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.attention import blockwise, cpu, cudnn, reference
from jaxrnn._src.ops.attention.over_time import attend_over_time
from jaxrnn._src.ops.attention.problem import Operands, Problem
from jaxrnn._src.ops.attention.ring import attend_ring
from jaxrnn._src.ops.operation import Implementation, Operation

# The best first.
IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu, "gpu": cudnn, "xla": blockwise}


def attend(q, k, v, q_place=None, k_place=None, *, window=None, implementation=None):
    """Softmax attention of queries over keys that are not later.

    B any batch axes, T queries, S keys, N heads, D their width.

    Args:
      q: [B, T, N, D].
      k, v: [B, S, N, D], in the type of ``q``.
      q_place: position and episode of each query, int32 [B, T]; None if queries and keys are the
        same steps 0, 1, 2, ... of one episode.
      k_place: the same of each key, [B, S]. No query sees a key of episode -1.
      window: how many positions back a query sees, itself included; None for all.
      implementation: "cpu", "gpu" (cuDNN), "xla", "reference", or None for the best that can run.

    Returns:
      ys [B, T, N, D]; zero for a query that sees no key.
    """
    operands = varying(Operands(q, k, v, q_place, k_place))
    problem = Problem(window, q_place is None, implementation)
    run = _operation.chosen(_describe(operands), problem, operands)
    return run(problem, operands)[0]


def _describe(operands):
    *batch, steps, heads, width = operands.q.shape
    sizes = f"T={steps} B={tuple(batch)} S={operands.k.shape[-3]} N={heads} D={width}"
    return f"attend {sizes} {operands.q.dtype}"


_operation = Operation(
    "attend",
    IMPLEMENTATIONS,
    reference=reference.run,
    operand_axes=dict.fromkeys(Operands._fields, 0),
    output_axes=lambda problem: (0,),
    residual_axis=0,
    reads=lambda problem, operands: (True,),
)
