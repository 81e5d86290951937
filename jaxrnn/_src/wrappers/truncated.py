"""Back-propagation that does not reach back for ever."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import checks, every_step, wide_scan
from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.compile_once import once
from jaxrnn._src.core.sequence import resets
from jaxrnn._src.core.sharding import varying


@constructor
def truncated(cell: Cell, chunk: int) -> Cell:
    """Truncated back-propagation through time (Williams & Peng 1990).

    The sequence is run in chunks. At the seams between them the state is carried and its gradient
    is not: outputs and states are those of ``cell``, and gradients are the sums of those of the
    chunks, each run from the state before it. So a sequence no longer than a chunk has no seam;
    and gradients of the state that was given, and of the one that is returned, flow as ever. In
    reverse, chunks are counted from the last step.

    A step has no seams. So put it around the whole: what scans the step of this cell, as
    ``zoneout`` does, has none either. Without gradients ``cell`` does the same, with the same
    parameters.

    Args:
      cell: a cell.
      chunk: the number of steps in a chunk; the last one may be shorter.

    Returns:
      A ``Cell`` with the parameters and the state of ``cell``, whose implementations run a chunk.

    Raises:
      ValueError: ``cell`` needs the whole sequence, as ``bidirectional`` does.

    >>> cell = jaxrnn.truncated(jaxrnn.gru(4), chunk=2)
    >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 3))
    >>> last = lambda xs: jaxrnn.unroll(cell, params, xs)[1][-1].sum()
    >>> jax.grad(last)(xs).any(1)
    Array([False, False, False, False,  True], dtype=bool)

    Where a program trains on one chunk after the other, it needs no seams: the state it gets from
    one call and gives to the next has no gradient. Nor does burn-in (Kapturowski et al. 2019), a
    stretch that only makes the state for what is trained on:

    >>> def loss(params, xs, burn_in=2):
    ...     state, _ = jaxrnn.unroll(cell, params, xs[:burn_in])
    ...     state, ys = jaxrnn.unroll(cell, params, xs[burn_in:], jax.lax.stop_gradient(state))
    ...     return (ys ** 2).mean()
    >>> gradient = jax.grad(loss)(params, xs)
    """
    check_cell("truncated", cell)
    chunk = checks.size("chunk", chunk)

    def unroll(params, state, xs, options, every=False):
        reverse = options.reverse
        steps, *batch, _ = xs.shape
        state = cell.initial_state(params, tuple(batch)) if state is None else state
        one_step = lambda xs: cell.step(params, state, xs.sum(0), options.key)
        jax.eval_shape(one_step, xs)  # what has no step, and so no chunks, says so
        in_order = (lambda a: jnp.flip(a, 0)) if reverse else jnp.asarray
        starts = resets(options.starts, options.mask, reverse)
        given = jax.tree.map(in_order, (xs, options.mask, starts))
        params, state, given = varying((params, state, given))

        def run(state, given):
            xs, mask, starts = given
            own = options.replace(mask=mask, starts=starts, reverse=False)
            return every_step.run(cell, params, state, xs, own, every=every)

        def one_chunk(state, given):
            state, ys = run(state, given)
            return lax.stop_gradient(state), ys

        seams = max(steps - 1, 0) // chunk
        cut, ys = seams * chunk, []
        if seams:
            chunks = lambda a: a[:cut].reshape(seams, chunk, *a.shape[1:])
            state, most = wide_scan.scan(one_chunk, state, jax.tree.map(chunks, given))
            ys = [jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), most)]
        state, last = run(state, jax.tree.map(lambda a: a[cut:], given))
        joined = jax.tree.map(lambda *parts: in_order(jnp.concatenate(parts)), *ys, last)
        return state, joined

    whole = once(unroll, "every")
    return Cell(cell.init, cell.initial_state, cell.step, whole, cell.draws)
