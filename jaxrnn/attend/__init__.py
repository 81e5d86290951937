"""Exact attention in memory linear in T: one contract, and its implementations.

A query sees a key of its own episode that is not later than itself, and at most ``window - 1``
positions earlier.
"""

from jaxrnn import choice
from jaxrnn.attend import cpu, cudnn, online, rows
from jaxrnn.attend.problem import Operands, Problem
from jaxrnn.attend.ring import attend_ring
from jaxrnn.once import once_each
from jaxrnn.operation import Operation
from jaxrnn.placement import varying, wants_devices

IMPLEMENTATIONS = {"cpu": cpu, "gpu": cudnn, "xla": online}  # the best first


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
    problem = Problem(window, q_place is None, implementation, wants_devices())
    choice.check(IMPLEMENTATIONS, implementation)
    choice.record(_describe(operands), IMPLEMENTATIONS, problem, operands)
    run = _reference if implementation == choice.REFERENCE else _operation
    return run(problem, operands)[0]


def _describe(operands):
    *batch, steps, heads, width = operands.q.shape
    sizes = f"T={steps} B={tuple(batch)} S={operands.k.shape[-3]} N={heads} D={width}"
    return f"attend {sizes} {operands.q.dtype}"


_reference = once_each(rows.run)
_operation = Operation(
    "attend",
    reference=rows.run,
    default=online,
    choose=lambda *case: choice.choose(IMPLEMENTATIONS, *case),
    operand_axes=dict.fromkeys(Operands._fields, 0),
    output_axes=lambda problem: (0,),
    residual_axis=0,
    reads=lambda problem, operands: (True,),
)
