"""Questions to a cell: what its gradients, its Jacobian, its gates and its inputs do over time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxrnn._src.core import checks, wide_scan
from jaxrnn._src.core.cell import Cell, check_cell, unroll
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.sequence import resets, select
from jaxrnn._src.core.typing import Array, InputArray, Params, PRNGKey, State


def gradient_norms(
    cell: Cell,
    params: Params,
    xs: InputArray,
    state: State | None = None,
    *,
    loss: Callable[[Array], Array] | None = None,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    reverse: bool = False,
    key: PRNGKey | None = None,
) -> Array:
    """How much the state before each step matters to a loss: the norm of its gradient.

    Of a network whose gradient vanishes, the early ones are next to nothing (Bengio et al. 1994;
    Pascanu et al. 2013, arXiv:1211.5063); ``jaxrnn.plot.gradient_flow`` draws them.

    Args:
      cell, params, xs, state, lengths, mask, starts, reverse, key: see ``jaxrnn.unroll``. The
        cell needs a step, which ``bidirectional`` has not.
      loss: ``ys -> number``, of the outputs [T, ...batch, O]; None for the sum of the output at
        the last step processed.

    Returns:
      [T, ...batch], for each row the Euclidean norm of d loss / d state over all arrays of the
      state but counters: zero where an episode begins, for no state crosses.

    Raises:
      ValueError, TypeError: as ``jaxrnn.unroll``.

    >>> cell = jaxrnn.elman(hidden=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> norms = jaxrnn.inside.gradient_norms(cell, params, jnp.ones((50, 3)))
    >>> bool(norms[0] < 1e-2 * norms[-1])
    True
    """
    loss = (lambda ys: ys[0 if reverse else -1].sum()) if loss is None else loss

    def run(params, state, xs, options):
        batch, outputs = xs.shape[1:-1], kept_by(cell, _nudged)
        like = jax.eval_shape(lambda p: cell.initial_state(p, batch), params)
        nudges = [
            jnp.zeros((len(xs), *a.shape), a.dtype) if _floating(a) else None
            for a in jax.tree.leaves(like)
        ]
        given = params, state, xs, options
        found = jax.grad(lambda nudges: loss(outputs(nudges, *given)))(nudges)
        flat = [jnp.abs(a).reshape(*xs.shape[:-1], -1) for a in jax.tree.leaves(found)]
        if not flat:  # a cell without a state
            return state, jnp.zeros(xs.shape[:-1], xs.dtype)
        flat = jnp.concatenate(flat, -1)
        # Divided by the largest: squares of what has vanished would be zero long before it is.
        top = flat.max(-1, keepdims=True, initial=jnp.finfo(flat.dtype).tiny)
        return state, top[..., 0] * jnp.linalg.norm(flat / top, axis=-1)

    return _over(
        run, cell, "gradient_norms", params, xs, state, lengths, mask, starts, reverse, key
    )


def spectral_radius(
    cell: Cell,
    params: Params,
    xs: InputArray,
    state: State | None = None,
    *,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    reverse: bool = False,
    key: PRNGKey | None = None,
) -> Array:
    """How much each step can stretch the state: the largest eigenvalue of its Jacobian.

    The Jacobian of the state after a step by the state before it, all arrays of the state but
    counters side by side, a complex number as two real ones. While the radius stays below 1,
    gradients vanish; above it they may explode (Pascanu et al. 2013, arXiv:1211.5063).

    Eigenvalues of a matrix that is not symmetric: JAX may have them on a CPU alone, and no
    derivatives of them.

    Args:
      cell, params, xs, state, lengths, mask, starts, reverse, key: see ``jaxrnn.unroll``. The
        cell needs a step, which ``bidirectional`` has not.

    Returns:
      [T, ...batch], of each row; 1 at a step that is not real, and 0 where an episode begins.
      The Jacobians of all steps and rows are made at once: T * B * n * n numbers for n of a state.

    Raises:
      ValueError, TypeError: as ``jaxrnn.unroll``.

    >>> cell = jaxrnn.elman(hidden=4)
    >>> params = cell.init(jax.random.key(0), 3)  # its recurrent matrix begins orthogonal
    >>> jaxrnn.inside.spectral_radius(cell, params, jnp.zeros((5, 3))).round(3)
    Array([1., 1., 1., 1., 1.], dtype=float32)
    """
    check_cell("spectral_radius", cell)
    run = kept_by(cell, _radii)
    return _over(
        run, cell, "spectral_radius", params, xs, state, lengths, mask, starts, reverse, key
    )


class Saturation(NamedTuple):
    """The fraction of steps, of all rows, in which each unit of a gate is nearly shut or open."""

    low: jax.Array  # [H]
    high: jax.Array  # [H]


def saturation(
    gate: InputArray, *, low: float = 0.1, high: float = 0.9, mask: InputArray | None = None
) -> Saturation:
    """How often each unit of a gate is nearly shut, and how often nearly open.

    The measure of Karpathy et al. 2015 (arXiv:1506.02078, section 4.2), who plot one against the
    other: a forget gate that is right-saturated most of the time remembers for very long.

    Args:
      gate: [T, ...batch, H], from 0 to 1, as ``jaxrnn.trace`` gives it.
      low, high: a gate is left-saturated below ``low`` and right-saturated above ``high``.
      mask: bool [T, ...batch], the steps that are real; None for all.

    Returns:
      A ``Saturation`` ``(low, high)`` of fractions [H]; NaN if no step is real.

    Raises:
      ValueError, TypeError: ``mask`` is not as said.

    >>> gate = jnp.array([[0.05, 0.5], [0.01, 0.95], [0.2, 0.99], [0.02, 0.91]])
    >>> jaxrnn.inside.saturation(gate)
    Saturation(low=Array([0.75, 0.  ], dtype=float32), high=Array([0.  , 0.75], dtype=float32))
    """
    checks.check_inputs(gate, "[T, ...batch, H]", "gate")
    rows = tuple(range(gate.ndim - 1))
    if mask is not None:
        checks.check_flags("mask", mask, gate.shape[:-1], "[T, ...batch]")
        mask = jnp.broadcast_to(mask[..., None], gate.shape)
    return Saturation(*(jnp.mean(s, rows, where=mask) for s in (gate < low, gate > high)))


def integrated_gradients(
    function: Callable[[Array], Array],
    xs: InputArray,
    baseline: InputArray | None = None,
    *,
    points: int = 32,
) -> Array:
    """What each input contributes to a number (Sundararajan et al. 2017, arXiv:1703.01365).

        (xs - baseline) * integral over a from 0 to 1 of gradient(baseline + a (xs - baseline))

    They are complete: their sum is ``function(xs) - function(baseline)``, but for the error of the
    integral, which is taken by Gauss and Legendre's rule, with far fewer points than equal steps
    would need.

    Args:
      function: ``xs -> number``, or a number for each row [...batch] if rows know nothing of each
        other.
      xs: [T, ...batch, I]; any floating array.
      baseline: an input that says nothing, like ``xs``; None for zeros.
      points: at how many the gradient is taken.

    Returns:
      An array like ``xs``; summed over its last axis, it says what a step contributes.

    Raises:
      ValueError, TypeError: ``xs`` or ``baseline`` is not as said, or there is no point.

    >>> cell = jaxrnn.lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> last = lambda xs: jaxrnn.unroll(cell, params, xs)[1][-1, 0]
    >>> xs = jax.random.normal(jax.random.key(1), (5, 3))
    >>> found = jaxrnn.inside.integrated_gradients(last, xs)
    >>> bool(abs(found.sum() - (last(xs) - last(0 * xs))) < 1e-5)
    True
    """
    checks.check_floating("xs", xs)
    points = checks.size("points", points)
    baseline = jnp.zeros_like(xs) if baseline is None else baseline
    checks.check_floating("baseline", baseline)
    if baseline.shape != xs.shape or baseline.dtype != xs.dtype:
        came = f"{baseline.dtype}{list(baseline.shape)}"
        raise ValueError(f"baseline: got {came}, want {xs.dtype}{list(xs.shape)}, like xs")
    places, weights = np.polynomial.legendre.leggauss(points)
    gradient, dtype = jax.grad(lambda xs: function(xs).sum()), xs.dtype
    total = promoted(dtype, jnp.dtype("float32"))
    xs, baseline = xs.astype(total), baseline.astype(total)

    def add(found, at):
        place, weight = at
        here = (baseline + place * (xs - baseline)).astype(dtype)
        return found + weight * gradient(here).astype(total), None

    at = jnp.asarray((places + 1) / 2, total), jnp.asarray(weights / 2, total)
    return ((xs - baseline) * wide_scan.scan(add, jnp.zeros_like(xs), at)[0]).astype(dtype)


def _over(run, cell, name, params, xs, state, lengths, mask, starts, reverse, key):
    """Runs what stands in place of a cell's unroll, with its arguments checked and completed."""
    check_cell(name, cell)
    return unroll(
        dataclasses.replace(cell, unroll=run),
        params,
        xs,
        state,
        lengths=lengths,
        mask=mask,
        starts=starts,
        reverse=reverse,
        key=key,
    )[1]


def _nudged(cell, nudges, params, state, xs, options):
    """The outputs of steps before which something is added to the state."""

    def step(state, inputs):
        *given, nudge = inputs
        leaves, tree = jax.tree.flatten(state)
        state = tree.unflatten(a if n is None else a + n for a, n in zip(leaves, nudge))
        state, y, _ = _stepped(cell, params, initial, state, given, options.key)
        return state, y

    initial = cell.initial_state(params, xs.shape[1:-1])
    state = initial if state is None else state
    starts = resets(options.starts, options.mask, options.reverse)
    inputs = xs, options.mask, starts, nudges
    return wide_scan.scan(step, state, inputs, reverse=options.reverse)[1]


def _radii(cell, params, state, xs, options):
    """``spectral_radius``, in place of the cell's unroll."""
    mask, reverse, key = options.mask, options.reverse, options.key
    batch = xs.shape[1:-1]
    initial = cell.initial_state(params, batch)
    state = initial if state is None else state

    def step(state, given):
        new, _, before = _stepped(cell, params, initial, state, given, key)
        return new, before

    starts = resets(options.starts, mask, reverse)
    _, before = wide_scan.scan(step, state, (xs, mask, starts), reverse=reverse)

    def radius(before, x, real, start):
        leaves, tree = jax.tree.flatten(before)
        flat, back = ravel_pytree([_real(a) for a in leaves if _floating(a)])

        def after(flat):
            moved = iter(back(flat))
            moved = [_like(a, next(moved)) if _floating(a) else a for a in leaves]
            new, _ = cell.step(params, tree.unflatten(moved), x, key)
            floating = [_real(a) for a in jax.tree.leaves(new) if _floating(a)]
            return ravel_pytree(floating)[0]

        jacobian = jax.jacfwd(after)(flat)
        # A cell without a state has a Jacobian without numbers, and no eigenvalue.
        values = jnp.linalg.eigvals(jacobian) if flat.size else jnp.zeros((1,))
        radius = jnp.abs(values).max()
        radius = radius if start is None else jnp.where(start, 0, radius)
        return radius if real is None else jnp.where(real, radius, 1)

    for _ in range(1 + len(batch)):
        radius = jax.vmap(radius)
    return state, radius(before, xs, mask, starts)


def _stepped(cell, params, initial, state, given, key):
    """A step as ``jaxrnn.scan`` takes it: ``(state, y, state before)``."""
    x, real, start = given
    before = state if start is None else select(start, initial, state)
    new, y = cell.step(params, before, x, key)
    return select(real, new, before), select(real, y, 0), before


def _floating(a):
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _real(a):
    """A complex array as two real ones."""
    return (a.real, a.imag) if jnp.iscomplexobj(a) else a


def _like(a, parts):
    return lax.complex(*parts) if jnp.iscomplexobj(a) else parts
