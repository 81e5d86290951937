"""The linear recurrence: one contract, and its implementations.

    h_t = a_t * h_{t-1} + b_t

Elementwise: no channel sees another.
"""

import functools
from typing import Any, Literal

from jaxrnn._src.core import time_division
from jaxrnn._src.core.sequence import resets
from jaxrnn._src.core.sharding import automatic, varying
from jaxrnn._src.core.time_axis import mapped, resets_over
from jaxrnn._src.core.typing import Array, InputArray
from jaxrnn._src.ops.linear_scan import cpu, gpu, over_time, reference, tpu, xla
from jaxrnn._src.ops.linear_scan.problem import Operands, Problem, completed, keeps
from jaxrnn._src.ops.operation import WEIGHT, Implementation, Operation

# The best first; `reference` runs only if asked.
IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu, "tpu": tpu, "gpu": gpu, "xla": xla}


def linear_scan(
    a: InputArray,
    b: InputArray,
    h0: InputArray | None = None,
    *,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    reverse: bool = False,
    time_axis: str | None = None,
    implementation: Literal["reference", "xla", "cpu", "tpu", "gpu"] | None = None,
) -> tuple[Array, Array]:
    """Runs the linear recurrence h_t = a_t * h_{t-1} + b_t, elementwise, over time.

    It is the core of the LRU (Orvieto et al. 2023, arXiv:2303.06349), S5 (Smith et al. 2023,
    arXiv:2208.04933) and others, which differ in how they make ``a`` and ``b``.

    T time, D channels.

    Args:
      a: the factors [T, ...batch, D]; or [D], the same at every step and row, which are then
        nowhere written out. Floating, or complex as ``b`` is.
      b: what is added, [T, ...batch, D], floating or complex.
      h0: the state before the first step processed, [...batch, D]; None for zero.
      mask: bool [T, ...batch], true at a real step. At any other the state is held and the output
        is zero; whatever stands there in ``a`` and ``b``, NaN included, changes nothing.
      starts: bool [T, ...batch], true where a new episode begins before this step: the state is
        zero there, and none crosses from the step before, whichever way the sequence is run.
      reverse: runs from the last step to the first. ``hs[t]`` still belongs to ``b[t]``.
      time_axis: the name of a mesh axis that time is divided over, or None. Inside of a
        ``jax.shard_map`` over it, the arrays are the device's stretch of the steps, and ``h0`` and
        the state are those of the whole sequence. Elsewhere they are whole, for the mesh that
        ``jax.set_mesh`` has set. Devices exchange one state and one product of factors for each
        row and channel, in about log2 of their number rounds.
      implementation: "cpu", "tpu", "gpu", "xla", "reference", or None for the best that can
        run. "gpu" has met no GPU yet, and runs on request only.

    Returns:
      ``(state, hs)`` as ``jax.lax.scan``. The state after the last step processed, [...batch, D],
      is in the type of the arithmetic: that of ``a`` and ``b``, float32 at least. The states after
      each step, [T, ...batch, D], are in the type of ``b``.

    Raises:
      ValueError, TypeError: at trace time, naming the argument, what came and what is wanted.

    >>> state, hs = jaxrnn.linear_scan(jnp.array([0.5]), jnp.ones((4, 1)))
    >>> hs[:, 0], state
    (Array([1.   , 1.5  , 1.75 , 1.875], dtype=float32), Array([1.875], dtype=float32))
    """
    operands = completed(a, b, h0, mask, starts, reverse)
    problem = Problem(reverse, implementation)
    time_axis = time_division.axis() if time_axis is None else time_axis
    if time_axis is not None:
        timed = {"b": operands.b, "a": operands.a, "mask": mask, "starts": starts}
        others = {"constant": operands.constant, "h0": operands.h0}

        def stretch(timed, others):
            with time_division.divided(None):  # what it goes on from is known
                return _run(problem, Operands(**timed, **others), time_axis)

        return mapped(stretch, time_axis, timed, others)
    run = functools.partial(_run, problem, time_axis=None)
    return automatic(run, operands.b, features=0)(operands)


def _run(problem, operands, time_axis) -> tuple[Any, Any]:
    mask, reverse = operands.mask, problem.reverse
    if time_axis is None:
        starts = resets(operands.starts, mask, reverse)
    else:
        starts = resets_over(time_axis, operands.starts, mask, reverse)
    operands = varying(operands._replace(starts=starts))
    run = _operation.chosen(_describe(operands), problem, operands)
    if operands.b.shape[0] == 0:
        return operands.h0, operands.b
    whole = functools.partial(run, problem)
    if time_axis is None:
        state, ys = whole(operands)
        return state, ys
    return over_time.run(whole, operands, time_axis, reverse)


def _describe(operands):
    steps, *batch, size = operands.b.shape
    same = " constant" if operands.a is None else ""
    return f"linear_scan T={steps} B={tuple(batch)} D={size}{same} {operands.b.dtype}"


_operation = Operation(
    "linear_scan",
    IMPLEMENTATIONS,
    reference=reference.run,
    operand_axes={"b": 1, "a": 1, "constant": WEIGHT, "h0": 0, "mask": 1, "starts": 1},
    output_axes=lambda problem: (0, 1),
    residual_axis=1,
    reads=lambda problem, operands: (False, not keeps(operands)),
)
