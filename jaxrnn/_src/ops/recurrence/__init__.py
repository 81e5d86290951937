"""The recurrence: one contract, one dispatch, one leaf file for each implementation.

    h_t, ... = update((h_{t-1}, ...), w x_t + b, r h_{t-1})

``update`` is elementwise; everything else is the same for all cells. Kernels know no cell, and
cells know no kernel.
"""

import functools

import jax.numpy as jnp

from jaxrnn._src.core import dispatch, memory_order
from jaxrnn._src.core.closures import closed_update
from jaxrnn._src.core.compile_once import once_each
from jaxrnn._src.core.sequence import resets
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.operation import WEIGHT, Implementation, Operation
from jaxrnn._src.ops.recurrence import chunks, cpu, gpu, newton, reference, tpu, xla
from jaxrnn._src.ops.recurrence.problem import Operands, Problem
from jaxrnn._src.ops.recurrence.residuals import first_kept

# The best first; `reference` runs only if asked.
IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu, "tpu": tpu, "gpu": gpu, "xla": xla}
RESIDUALS = ("gates", "states", "chunks")


def recur(
    update,
    xs,
    w,
    b,
    r,
    unit,
    state,
    *,
    initial=None,
    mask=None,
    starts=None,
    reverse=False,
    residuals="gates",
    implementation=None,
    every=False,
):
    """Runs an elementwise update over time.

    T time, B any batch axes, I input, G gates, H hidden, N heads of width D = H / N.

    Args:
      update: ``update(state, x, r, **unit) -> state``. ``state`` is a tuple of [B, H]; ``x`` and
        ``r`` are tuples of G arrays [B, H], the input's and the state's part of each gate.
      xs: [T, B, I], any floating type; ys will have the same.
      w: [I, G, H].
      b: [G, H].
      r: [H, G, H], or [N, D, G, D] for a block-diagonal recurrence.
      unit: dict of weights [H], one for each unit, given to ``update`` by name.
      state: tuple of [B, H] in the type of the arithmetic, float32 or float64. The first is the
        output, and what recurs.
      initial: the state that ``starts`` puts back, like ``state``.
      mask: bool [T, B], true at a real step; at others the state is held and ys is 0.
      starts: bool [T, B], true where a new episode begins.
      reverse: from the last step to the first.
      residuals: what a forward keeps for its backward: "gates", all that enters the gates;
        "states", the states alone, from which a large product makes the gates again; or "chunks",
        the state before every chunk of about sqrt(T) steps, which are then run again.
      implementation: "cpu", "tpu", "gpu", "xla", "reference", or None for the best that can run;
        or "newton".
      every: ys are ``(ys, states)``.

    Returns:
      ``(state, ys)``: the final state, and ys [T, B, H]; ``states``, each [T, B, H], are those
      after each step.
    """
    starts = resets(starts, mask, reverse)
    is_newton = implementation == dispatch.NEWTON
    dispatch.check(IMPLEMENTATIONS, None if is_newton else implementation)
    names = tuple(sorted(unit))
    closed = closed_update(update, len(state), w.shape[1], names, w.shape[2], state[0].dtype)
    # A scan of the step may close over arrays, and then is no function to be kept. It has the
    # update's tags, for policies of `jax.checkpoint`; kernels do not know them.
    is_reference = implementation == dispatch.REFERENCE
    as_it_is = closed.why is not None or (is_reference and closed.unit)
    if not as_it_is and not is_reference:
        update, unit = closed.update, unit | closed.unit
    operands = varying(Operands(xs, w, b, r, unit, state, initial, mask, starts))
    kept = "gates" if residuals == "chunks" else residuals  # within a chunk
    problem = Problem(
        update,
        w.shape[1],
        len(state),
        reverse,
        kept,
        implementation,
        batch_first=memory_order.is_batch_first(xs),
        every=every,
    )
    described = _describe(problem, operands)
    if closed.why is None and is_newton and xs.shape[0]:
        final, ys, states, solved = _newton(problem, operands)
        how = newton.blocks(problem, operands).describe(w.shape[2])
        dispatch.record_newton(described, IMPLEMENTATIONS, how, solved)
        return final, (ys, states) if every else ys
    if closed.why is None and not is_newton:
        dispatch.record(described, IMPLEMENTATIONS, problem, operands)
    elif closed.why is not None:
        dispatch.only_reference(described, closed.why, implementation)
    if xs.shape[0] == 0:
        ys = jnp.zeros((*xs.shape[:-1], state[0].shape[-1]), xs.dtype)
        states = tuple(jnp.zeros((0, *s.shape), s.dtype) for s in operands.state)
        return operands.state, (ys, states) if every else ys
    if as_it_is:
        chunked = residuals == "chunks"
        run = functools.partial(chunks.run, reference.run) if chunked else reference.run
    else:
        run = _operation.plain if is_reference else _operation
        run = _IN_CHUNKS[run] if residuals == "chunks" else run
    out = run(problem, operands)
    final, ys, states = out[: len(state)], out[len(state)], out[len(state) + 1 :]
    return tuple(final), (ys, tuple(states)) if every else ys


def _describe(problem, operands):
    steps, *batch, inputs = operands.xs.shape
    heads = f" N={operands.r.shape[0]}" if operands.r.ndim == 4 else ""
    sizes = f"T={steps} B={tuple(batch)} I={inputs} H={operands.w.shape[2]}{heads}"
    return f"{problem.update.__name__} {sizes} {operands.xs.dtype}"


def _after(problem):
    """How many outputs are states after each step."""
    return problem.states * problem.every


_newton = once_each(newton.run)
_operation = Operation(
    "recur",
    IMPLEMENTATIONS,
    reference=reference.run,
    operand_axes={
        **dict.fromkeys(("w", "b", "r", "unit"), WEIGHT),
        **{"xs": 1, "state": 0, "initial": 0, "mask": 1, "starts": 1},
    },
    output_axes=lambda problem: (*(0,) * problem.states, 1, *(1,) * _after(problem)),
    residual_axis=1,
    reads=lambda problem, operands: (
        *(False,) * problem.states,
        first_kept(operands) > 0,
        *(False,) * _after(problem),
    ),
    folded=lambda problem: problem._replace(batch_first=True),
)
_IN_CHUNKS = {
    whole: once_each(functools.partial(chunks.run, whole))
    for whole in (_operation.plain, _operation)
}
