"""A cell run by Newton's method, with what the method did."""

from collections.abc import Sequence

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.cell import Cell, check_cell, unroll
from jaxrnn._src.core.checks import target
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.typing import InputArray, Inputs, Outputs, Params, PRNGKey, State
from jaxrnn._src.ops.newton import Solved


def newton(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    reverse: bool = False,
    key: PRNGKey | None = None,
) -> tuple[State, Outputs, tuple[Solved, ...]]:
    """``jaxrnn.unroll`` by Newton's method: all steps at once, in a few iterations.

    The states of all steps are one unknown, and each iteration is a linear recurrence, which is
    parallel in time (Lim et al. 2023, arXiv:2309.12252; Danieli et al. 2025, arXiv:2510.21450).
    The numbers are those of the steps, within 1e-5 of the largest state, or of 1, in float32 and
    1e-10 in float64, as far as the method can tell. A row whose iterations do not come to an end,
    or from whose states the step leads elsewhere, is run step by step, in the same program: a
    chaotic network, for one.

    The Jacobian is taken from the update, and how depends on the cell:

    - whole, where no unit sees another: ``para_gru``, ``para_lstm``, ``indrnn``, ``sru`` and cells
      of yours like these;
    - whole, for cells of ``jaxrnn.gated`` with up to 32 units a head;
    - without what goes from unit to unit for those with more. There are more iterations then, and
      the gradient runs step by step. ``jaxrnn.explain`` says "quasi-Newton".

    A gradient is that of the solution, one linear recurrence, and does not go through the
    iterations.

    It can be faster only on a device that is idle otherwise: few rows, few units, many steps. On a
    CPU it is slower than the kernel. It takes memory for T Jacobians, M x M for each block.
    ``unroll`` runs it with ``implementation="newton"``, and never by itself.

    Args:
      cell, params, xs, state, lengths, mask, starts, reverse, key: as for ``jaxrnn.unroll``.

    Returns:
      ``(state, ys, solved)``: those of ``unroll``, and for each recurrence of the cell, in the
      order they run, ``(iterations, converged)``, int32 and bool [...batch]. A row that has not
      converged was run step by step.

    Raises:
      ValueError, TypeError: as ``unroll``; a cell with any other recurrence, as ``lru``; one
        that runs its recurrence in pieces, as ``truncated``, which only ``unroll`` runs so.

    >>> cell = jaxrnn.gru(hidden=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jax.random.normal(jax.random.key(1), (1000, 2, 3))
    >>> state, ys, (solved,) = jaxrnn.newton(cell, params, xs)
    >>> bool(solved.converged.all()), bool((solved.iterations < 12).all())
    (True, True)
    >>> bool(jnp.allclose(ys, jaxrnn.unroll(cell, params, xs)[1], atol=1e-5))
    True
    """
    check_cell("cell", cell)
    run = kept_by(cell, _run, "reverse")
    return run(params, xs, state, lengths, mask, starts, reverse, key)


def _run(cell, params, xs, state, lengths, mask, starts, reverse, key):
    with dispatch.recording(target(None)) as choices:
        state, ys = unroll(
            cell,
            params,
            xs,
            state,
            lengths=lengths,
            mask=mask,
            starts=starts,
            reverse=reverse,
            key=key,
            implementation=dispatch.NEWTON,
        )
    if any(choice.runs == dispatch.NEWTON and choice.solved is None for choice in choices):
        want = 'a cell that has no loop around a recurrence: unroll with implementation="newton"'
        raise ValueError(f"cell: got {cell!r}, want {want}")
    return state, ys, tuple(choice.solved for choice in choices)
