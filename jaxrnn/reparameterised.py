"""Cells whose parameters are made of others before they see them."""

from jaxrnn import parameters
from jaxrnn.cell import Cell


def with_params(cell, transform, init=None, *, spec=None):
    """A cell that is given ``transform(params, key)`` in place of its parameters.

    Args:
      cell: a ``Cell``.
      transform: ``(params, key) -> params``, the latter those of ``cell``. The key is that of the
        call, the same at every step, and None in evaluation.
      init: ``(key, in_size) -> params``, what the transform is given; None for that of ``spec``,
        or of ``cell`` if there is none.
      spec: what the transform is given is checked against it: see ``parameters.made``. None leaves
        that to ``cell``.
    """
    if init is None:
        init = cell.init if spec is None else lambda key, n: parameters.made(spec, key, n)

    def given(params, x, key):
        if spec is not None:
            parameters.check(spec, params, x)
        return transform(params, key)

    def initial_state(params, batch_shape):
        return cell.initial_state(transform(params, None), batch_shape)

    def step(params, state, x, key=None):
        return cell.step(given(params, x, key), state, x, key)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        params = given(params, xs, key)
        return cell.unroll(params, state, xs, mask, starts, reverse, key, implementation)

    return Cell(init, initial_state, step, unroll)
