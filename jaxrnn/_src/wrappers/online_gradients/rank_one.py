"""Unbiased estimates of the influence, of rank one: UORO, for any cell.

    M is about s t'       nu: random signs       I: of the state by the parameters
    s = a J s' + b nu     t = t' / a + nu' I / b
    a = sqrt(|t'| / |J s'|)     b = sqrt(|nu' I| / |nu|)

a and b keep the two parts of one size, whatever they are the expectation of s t' is M.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import dropout_masks
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.wrappers.online_gradients.influence import of_parts, real_parts

_SMALL = 1e-7  # the paper's epsilon


def initial(cell, params, batch_shape):
    """``(s, t, count)``: like the state, like the parameters, and how many steps there were."""
    state = jax.eval_shape(lambda params: cell.initial_state(params, batch_shape), params)
    states = tuple(jnp.zeros(a.shape, a.dtype) for a in jax.eval_shape(_floating, state))
    dtype = arithmetic(params)
    weights = jax.tree.map(lambda a: jnp.zeros((*batch_shape, *a.shape), dtype), params)
    return states, weights, jnp.zeros(batch_shape, jnp.int32)


def step(cell, params, state, estimate, x, key):
    """A step: ``(state, estimate, y)``, and y knows the past."""
    states, weights, count = estimate
    state, fixed = lax.stop_gradient((state, params))
    new, y = cell.step(params, _influenced(params, state, estimate, key is not None), x)
    if key is None:  # an evaluation: nobody may ask for the gradient of what follows, as above
        return new, jax.tree.map(jnp.zeros_like, estimate), y
    batch = x.ndim - 1
    signs = _signs(key, count, states)
    run = functools.partial(_moved, cell, fixed)
    for _ in range(batch):
        run = jax.vmap(run)
    states, weights = run(state, x, states, weights, signs)
    return new, (states, weights, count + 1), y


def _signs(key, count, states):
    """1 or -1 for each number of the states."""

    def draw(k, a):
        up = dropout_masks.kept(dropout_masks.fold(key, k), 0.5, count, a.shape[count.ndim :])
        return jnp.where(up, jnp.ones_like(a), -jnp.ones_like(a))

    return tuple(draw(k, a) for k, a in enumerate(states))


def _moved(cell, params, state, x, states, weights, signs):
    """The estimate of one row, a step later."""
    after = lambda params, given: _floating(cell.step(params, _with(state, given), x)[0])
    given = _floating(state)
    _, states = jax.jvp(lambda given: after(params, given), (given,), (states,))
    _, pull = jax.vjp(lambda params: after(params, given), params)
    now = jax.tree.map(lambda a, w: a.astype(w.dtype), pull(signs)[0], weights)
    a = _balance(weights, states)
    b = _balance(now, signs)
    states = tuple(a * s + b * n for s, n in zip(states, signs))
    return states, jax.tree.map(lambda w, n: w / a + n / b, weights, now)


def _balance(one, other):
    return jnp.sqrt(_norm(one) / (_norm(other) + _SMALL)) + _SMALL


def _norm(tree):
    return jnp.sqrt(sum((a**2).sum() for a in jax.tree.leaves(tree)))


def _floating(state):
    """The real parts of a state's arrays that are not counters."""
    leaves = jax.tree.leaves(state)
    return tuple(p for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact) for p in real_parts(a))


def _with(state, parts):
    """The state with ``parts`` in place of ``_floating(state)``."""
    leaves, tree = jax.tree.flatten(state)
    parts = iter(parts)
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.inexact)
    return tree.unflatten(of_parts(a, parts) if floating(a) else a for a in leaves)


def _influenced(params, state, estimate, drawn):
    """The state, whose derivative by the parameters is estimated."""

    @jax.custom_jvp
    def given(params, parts, estimate):
        del params, estimate
        return parts

    @given.defjvp
    def rule(primals, tangents):
        _, parts, (states, weights, count) = primals
        if not drawn:
            raise ValueError("key: got None, want one: rule 'uoro' draws signs for its gradient")
        batch = count.ndim
        moved = jnp.zeros(())
        for w, t in zip(*map(jax.tree.leaves, (weights, tangents[0]))):
            product = w * jnp.broadcast_to(t.astype(w.dtype), w.shape)
            moved = moved + product.sum(tuple(range(batch, w.ndim)))
        each = lambda s: (
            s * jnp.broadcast_to(moved.reshape(moved.shape + (1,) * (s.ndim - batch)), s.shape)
        )
        return parts, tuple(each(s) for s in states)

    return _with(state, given(params, _floating(state), estimate))
