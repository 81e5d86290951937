"""The states after each step, of any cell."""

import inspect
from typing import Any

import jax

from jaxrnn._src.core import dispatch, inputs
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.sequence import resets, scan
from jaxrnn._src.core.sharding import varying


def run(
    cell: Any, params: Any, state: Any, xs: Any, options: Options, *, every: bool, **initial: Any
) -> tuple[Any, Any]:
    """A cell's ``unroll``; if ``every``, its ys are ``(ys, states)``, each [T, ...batch, ...].

    If the cell's ``unroll`` takes ``every``, it makes the states on its way. Else the cell's step
    is scanned.
    """
    gates = () if cell.gated is None else cell.gated.form.gates
    with jax.named_scope(_name(cell)), dispatch.within(gates, cell.states):
        args = params, state, xs, options
        return _run(cell, args, every, initial)


def _name(cell):
    """What a profile calls the cell: its constructor, as in ``stack/0/lstm``."""
    return "cell" if cell.made is None else cell.made.constructor.__name__


def _run(cell, args, every, initial):
    if not every:
        return cell.unroll(*args, **initial)
    if "every" in inspect.signature(cell.unroll).parameters:
        return cell.unroll(*args, every=True, **initial)
    return kept_by(cell, _scanned)(*args, **initial)


def _scanned(cell, params, state, xs, options, initial=None):
    why = f"{cell!r} does not give the states after each step"
    dispatch.only_reference("scan of step", why, options.implementation)
    initial = cell.initial_state(params, inputs.leading(xs)[1:]) if initial is None else initial
    return scanned(cell.step, params, state, xs, options, initial, True)


def scanned(step, params, state, xs, options, initial, every):
    """A scan of ``step(params, state, x, key)``, as ``Cell.unroll`` has arguments and results."""
    state = initial if state is None else state
    starts = resets(options.starts, options.mask, options.reverse)
    given = varying((params, state, initial, xs, options.mask, starts))
    params, state, initial, xs, mask, starts = given
    return scan(
        lambda state, x: step(params, state, x, options.key),
        state,
        xs,
        initial=initial,
        mask=mask,
        starts=starts,
        reverse=options.reverse,
        every=every,
    )
