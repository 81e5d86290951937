"""All steps of a nonlinear recurrence at once, by Newton's method.

    s_t = f(s_{t-1}, x_t)      for all t:      d_t = J_t d_{t-1} + f(s_{t-1}, x_t) - s_t
                                               s_t <- s_t + d_t

The states of all steps are one unknown, and each iteration is a linear recurrence, which is
parallel in time (DEER: Lim et al. 2023, arXiv:2309.12252; ParaRNN: Danieli et al. 2025,
arXiv:2510.21450). With a part of the Jacobian J in its place it still ends at the solution, if it
ends (quasi-DEER: Gonzalez et al. 2024, arXiv:2407.19115).

A small residual f - s says little: in a recurrence that forgets slowly, or never, errors add up.
The increments d are residuals carried on through time, an estimate of the distance to the steps'
own states, and these have to be small. Then the step itself runs from every few states on, and has
to arrive at the next. A row that fails either test is run step by step, in the same program.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops.newton.affine_scan import affine_scan, affine_scan_tangent
from jaxrnn._src.ops.newton.jacobian import Blocks

Array = jax.Array

LIMIT = 64  # iterations, beyond which a row is run step by step
DENSE = 32  # up to so many units of a head the whole Jacobian is taken: its products are cubic
_TOLERANCE = {"float32": 1e-5, "float64": 1e-11}  # of the largest state, or 1


class System(NamedTuple):
    """The static half of a recurrence.

    Attributes:
      step: ``(params, states, x) -> states``, one step of [B, H] arrays.
      jacobian: ``(params, states, x) -> (states, J)``, the same with J [B, n, M, M].
      blocks: how states are seen as blocks.
    """

    step: Callable[..., Any]
    jacobian: Callable[..., Any]
    blocks: Blocks


class Given(NamedTuple):
    """The arrays, in the order of processing."""

    params: Any  # what step is given, of neither time nor rows
    xs: Any  # tree of [T, B, ...]
    state: tuple[Array, ...]  # each [B, H]
    initial: tuple[Array, ...] | None
    mask: Array | None  # bool [T, B]
    starts: Array | None  # bool [T, B]


class Solved(NamedTuple):
    """What Newton's method did in each row.

    Attributes:
      iterations: int32 [...batch], how many it took.
      converged: bool [...batch]; a row in which it is false was run step by step.
    """

    iterations: Array
    converged: Array


def solve(system: System, given: Given) -> tuple[tuple[Array, ...], Solved]:
    """The states after each step, a tuple of [T, B, H], and how they were found."""
    with dispatch.unrecorded():
        zs, *solved = _solve(system, given)
    return system.blocks.split(zs), Solved(*solved)


def before(given: Given, states: tuple[Array, ...]) -> tuple[Array, ...]:
    """The states that each step begins with, [T, B, H], from those after each."""
    shifted = [jnp.concatenate([s[None], a[:-1]]) for s, a in zip(given.state, states)]
    if given.starts is None or given.initial is None:
        return tuple(shifted)
    first = [jnp.broadcast_to(a[None], b.shape) for a, b in zip(given.initial, shifted)]
    return select(given.starts, tuple(first), tuple(shifted))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(system, given):
    zs, iterations, done = _iterated(system, given)
    zs, converged = _tested(system, given, zs, done)
    return _or_step_by_step(system, given, zs, converged), iterations, converged


def _iterated(system, given):
    """Newton's iterations, from the state before the first step at all steps.

    Far from the solution products of Jacobians overflow, and a network that remembers never comes
    back. So states are kept within a bound: where steps lead beyond it, the bound is too narrow,
    and becomes twice what they lead to. A GRU that had learned to remember ten steps converged in
    40 iterations and one that remembers twenty in 12, which without a bound took more than 64.
    """
    steps = jax.tree.leaves(given.xs)[0].shape[0]
    z = system.blocks.join(given.state)

    def improve(carry):
        count, zs, last, bound, done, iterations = carry
        new, J = _linearised(system, given, zs)
        d = affine_scan(J, new - zs, jnp.zeros_like(z))
        top = _most(new)
        bound = jnp.where(top > bound, 2 * top, bound)
        far = bound.reshape(1, *bound.shape, 1, 1)
        moved = jnp.clip(zs + d, -far, far)
        zs = jnp.where(jnp.isnan(moved), new, moved)
        size = _most(jnp.where(jnp.isfinite(d), d, jnp.inf))
        left = size
        if system.blocks.kind == "quasi":  # each increment is a part of the one before
            rate = size / last
            left = jnp.where(rate < 1, size * jnp.maximum(1, rate / (1 - rate)), jnp.inf)
        iterations = jnp.where(done, iterations, count + 1)
        return count + 1, zs, size, bound, done | _is_small(left, zs), iterations

    def goes_on(carry):
        count, *_, done, _ = carry
        return (count < LIMIT) & ~done.all()

    zs = jnp.broadcast_to(z[None], (steps, *z.shape))
    last = jnp.full_like(z[..., 0, 0], jnp.inf)
    no = jnp.zeros_like(last, jnp.int32)
    carry = jnp.int32(0), zs, last, jnp.ones_like(last), last < 0, no
    _, zs, *_, done, iterations = lax.while_loop(goes_on, improve, carry)
    return zs, iterations, done


def _tested(system, given, zs, done):
    """The states that steps give from every few of ``zs`` on, and of which rows they are right."""
    steps = zs.shape[0]
    size = math.isqrt(steps - 1) + 1
    count = -(-steps // size)

    def cut(a, fill=0):
        """[T, ...] as [steps of a stretch, stretches, ...]."""
        rest = jnp.full((count * size - steps, *a.shape[1:]), fill, a.dtype)
        return jnp.swapaxes(jnp.concatenate([a, rest]).reshape(count, size, *a.shape[1:]), 0, 1)

    mask = jnp.ones(zs.shape[:-2], bool) if given.mask is None else given.mask
    timed = jax.tree.map(cut, (given.xs, mask, given.starts))
    ends = system.blocks.split(zs[size - 1 : (count - 1) * size : size])
    first = tuple(jnp.concatenate([s[None], a]) for s, a in zip(given.state, ends))
    states = _scan(system, given, first, timed, leading=1)
    states = jnp.swapaxes(system.blocks.join(states), 0, 1).reshape(count * size, *zs.shape[1:])
    states = states[:steps]
    return states, done & _is_small(_most(states - zs), zs)


def _or_step_by_step(system, given, zs, converged):
    """The states, those of rows that have not converged by a scan of the step."""

    def run(carry):
        states = _scan(system, given, given.state, (given.xs, given.mask, given.starts))
        return True, _where(converged, carry[1], system.blocks.join(states))

    # A loop and not a branch: under vmap, a branch takes both ways.
    return lax.while_loop(lambda carry: ~(carry[0] | converged.all()), run, (False, zs))[1]


def _scan(system, given, first, timed, leading=0):
    """The states after each step, [T, ..., B, H] each; ``leading`` axes come before the batch."""
    step = functools.partial(system.step, given.params)
    for _ in range(leading):
        step = jax.vmap(step)

    def body(state, inputs):
        x, real, start = inputs
        state = _begun(given, start, state)
        state = select(real, step(state, x), state)
        return state, state

    return lax.scan(body, first, timed)[1]


def _begun(given, start, state):
    """The states [..., B, H], with the initial one where an episode starts."""
    if start is None:
        return state
    initial = tuple(jnp.broadcast_to(a, b.shape) for a, b in zip(given.initial, state))
    return select(start, initial, state)


def _linearised(system, given, zs):
    """The states that each step gives, from those before it in ``zs``, and its Jacobian."""
    found = before(given, system.blocks.split(zs))
    new, J = jax.vmap(system.jacobian, (None, 0, 0))(given.params, found, given.xs)
    eye = jnp.broadcast_to(jnp.eye(J.shape[-1], dtype=J.dtype), J.shape)
    new, J = select(given.mask, (new, J), (found, eye))  # a state is held
    if given.starts is not None:
        J = select(~given.starts, J, 0)
    return system.blocks.join(new), J


@_solve.defjvp
def _solve_jvp(system, primals, tangents):
    """Of the solution: one linear recurrence, whatever the iterations were."""
    (given,), (d,) = primals, tangents
    zs, *solved = _solve(system, given)
    found = before(given, system.blocks.split(zs))
    moved = tuple(map(jnp.zeros_like, found))
    if given.starts is not None:
        moved = _begun(d._replace(starts=given.starts), given.starts, moved)

    def steps(params, states, xs):
        new = jax.vmap(system.step, (None, 0, 0))(params, states, xs)
        return select(given.mask, new, states)

    added = jax.jvp(steps, (given.params, found, given.xs), (d.params, moved, d.xs))[1]
    if system.blocks.kind == "quasi":
        d_zs = _pushed(system, given, found, added, d.state)
    else:
        J = _linearised(system, given, zs)[1]
        d_zs = affine_scan_tangent(J, system.blocks.join(added), system.blocks.join(d.state))
    nothing = [np.zeros(a.shape, jax.dtypes.float0) for a in solved]
    return (zs, *solved), (d_zs, *nothing)


def _pushed(system, given, found, added, d_state):
    """The same with the whole Jacobian, which nobody has written down: step by step."""

    def body(d, inputs):
        states, x, real, start, more = inputs
        d = d if start is None else select(~start, d, 0)
        run = lambda states: system.step(given.params, states, x)
        d = select(real, jax.jvp(run, (states,), (d,))[1], d)
        d = tuple(a + b for a, b in zip(d, more))
        return d, d

    timed = found, given.xs, given.mask, given.starts, added
    return system.blocks.join(lax.scan(body, d_state, timed)[1])


def _most(zs):
    """The largest number of each row in size: [T, ...batch, n, M] -> [...batch]."""
    return jnp.abs(zs).max((0, -2, -1))


def _is_small(size, zs):
    """Whether something is small beside the states of its row."""
    limit = jnp.asarray(_TOLERANCE[zs.dtype.name], zs.dtype)
    return size <= limit * jnp.maximum(1, _most(zs))


def _where(rows, new, old):
    """``new`` in some rows, ``old`` in the others: [...batch] and [T, ...batch, n, M]."""
    return jnp.where(rows.reshape(1, *rows.shape, 1, 1), new, old)
