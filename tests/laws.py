"""How a law is tried: one program for all of a cell's implementations, and what it has to give.

What costs time is compiling. So masks, starts and lengths are values of one program, and what the
results have to be is NumPy's, or comes from one compiled scan of the cell's step.
"""

import contextlib
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import truth
from cases import CELLS, REFERENCE, STEPS
from interpreted import interpreted

import jaxrnn
from jaxrnn._src.core.dtypes import promoted

_static = ("cell", "reverse", "return_states", "implementation", "implementations")


def options(example, *, mask=True, starts=True, reverse=False, lengths=False, key=True):
    """What ``jaxrnn.unroll`` is given by name."""
    return dict(
        lengths=example.lengths if lengths else None,
        mask=example.mask if mask else None,
        starts=example.starts if starts else None,
        reverse=reverse,
        key=example.key if key else None,
    )


@functools.partial(jax.jit, static_argnames=_static)
def unroll(cell, *arrays, **options):
    return jaxrnn.unroll(cell, *arrays, **options)


@functools.partial(jax.jit, static_argnames=_static)
def value_and_grads(cell, moving, weights, **options):
    """``(state, ys)`` and the gradients of ``moving``, (params, xs, state), with ``weights``."""
    return _differentiated(functools.partial(jaxrnn.unroll, cell, **options), moving, weights)


@functools.partial(jax.jit, static_argnames=_static)
def by_each(cell, moving, weights, *, implementations, **options):
    """``value_and_grads`` of each implementation, in one program."""
    return [
        value_and_grads(cell, moving, weights, implementation=which, **options)
        for which in implementations
    ]


def _differentiated(run, moving, weights):
    def loss(params, xs, state):
        out = run(params, xs, state)
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(cases.floating(out)), strict=True)
        total = jnp.zeros(())
        for weight, value in pairs:
            total += (weight * value).real.sum().astype(total.dtype)
        return total, out

    loss = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
    (_, out), grads = loss(*moving)
    return out, cases.floating(grads)


def weights_of(cell, moving, key=None):
    """Random ones for ``value_and_grads``; a step tells their shapes sooner than ``unroll``."""
    params, xs, state = moving
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    state, y = jax.eval_shape(cell.step, params, state, x, key)
    return cases.cotangents((state, jax.ShapeDtypeStruct((len(xs), *y.shape), y.dtype)))


# The law, word for word.


def literally(cell, params, xs, state=None, *, mask, starts, reverse, key, lengths=None):
    """Scans ``cell.step``; either direction and any flags are values of one program."""
    arrays, turned = _in_order(xs, state, mask, starts, reverse, lengths, cell, params)
    state, ys = _scanned(cell, params, *arrays, key)
    return state, ys[::-1] if turned else ys


def literally_with_grads(cell, moving, weights, *, mask, starts, reverse, key, lengths=None):
    """``value_and_grads`` of it."""
    params, xs, state = moving
    arrays, turned = _in_order(xs, state, mask, starts, reverse, lengths, cell, params)
    turn = (lambda a: a[::-1]) if turned else (lambda a: a)
    weights = (weights[0], turn(weights[1]))
    (state, ys), (of_params, of_xs, of_state) = _scanned_with_grads(
        cell, params, *arrays, key, weights
    )
    return (state, turn(ys)), (of_params, turn(of_xs), of_state)


def _in_order(xs, state, mask, starts, reverse, lengths, cell, params):
    """The arrays as the loop meets them, the first step it runs at first."""
    real = np.ones(xs.shape[:-1], bool) if mask is None else np.array(mask)
    if lengths is not None:
        real &= np.arange(len(xs)).reshape(-1, *[1] * (xs.ndim - 2)) < np.array(lengths)
    fresh = np.zeros_like(real) if starts is None else np.array(starts)
    state = cell.initial_state(params, xs.shape[1:-1]) if state is None else state
    if reverse:
        xs, real, fresh = (a[::-1] for a in (xs, real, fresh))
    return (xs, state, real, fresh, np.array(reverse)), reverse


def _scan(cell, params, xs, state, real, fresh, reverse, key):
    initial = cell.initial_state(params, xs.shape[1:-1])

    def body(carry, now):
        (state, crossed), (x, real, fresh) = carry, now
        # In reverse, a cut that was crossed acts at the next real step.
        back = jnp.where(reverse, crossed & real, fresh)
        crossed = (crossed & ~real) | fresh
        state = _where(back, initial, state)
        new, y = cell.step(params, state, _where(real, x, jnp.zeros_like(x)), key)
        return (_where(real, new, state), crossed), _where(real, y, jnp.zeros_like(y))

    (state, _), ys = jax.lax.scan(
        body, (state, jnp.zeros(real.shape[1:], bool)), (xs, real, fresh)
    )
    return state, ys


def _where(flags, these, those):
    """Row by row, of trees."""

    def pick(a, b):
        return jnp.where(flags.reshape(*flags.shape, *[1] * (a.ndim - flags.ndim)), a, b)

    return jax.tree.map(pick, these, those)


_scanned = jax.jit(_scan, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _scanned_with_grads(cell, params, xs, state, real, fresh, reverse, key, weights):
    run = lambda params, xs, state: _scan(cell, params, xs, state, real, fresh, reverse, key)
    return _differentiated(run, (params, xs, state), weights)


# What the papers say.


def by_paper(step, e, given):
    """A function of (params, xs, flat state), NumPy's, that gives ``(*flat state, ys)``.

    A complex array is two of them, its real and its imaginary part.
    """
    initial = tuple(map(np.array, parts(e.cell.initial_state(e.params, ()))))
    steps, *batch, _ = e.xs.shape
    flags = [np.zeros((steps, *batch), bool), np.zeros((steps, *batch), bool)]
    flags[0] |= True if given["mask"] is None else np.array(given["mask"])
    flags[1] |= False if given["starts"] is None else np.array(given["starts"])

    def run(params, xs, state):
        found = []
        for row in np.ndindex(*batch):
            at = (slice(None), *row)
            now = tuple(s[row] for s in state)
            how = (*(f[at] for f in flags), given["reverse"])
            found.append(truth.run(step, params, now, initial, xs[at], *how))
        states, ys = zip(*found)
        states = [np.stack(s).reshape((*batch, *s[0].shape)) for s in zip(*states)]
        return *states, np.stack(ys, 1).reshape(steps, *batch, -1)

    return run


def parts(tree):
    """The arrays of a tree, a complex one as two."""
    for a in jax.tree.leaves(tree):
        yield from (a.real, a.imag) if np.iscomplexobj(a) else (a,)


def filled(tree, like):
    """A tree of NumPy's arrays, with zeros in place of None, which stands for counters."""
    fill = lambda a, d: np.zeros(a.shape) if d is None else np.array(d)
    return jax.tree.map(fill, like, tree)


def agree_with_paper(step, e, given, moving, weights, runs):
    """Outputs, final states and a derivative along a direction of each array are NumPy's."""
    params, xs, state = jax.tree.map(np.array, moving)
    paper = by_paper(step, e, given)
    wanted = [a.real for a in paper(params, xs, tuple(parts(state)))]
    for came, _ in runs:
        assert cases.error(tuple(map(np.array, parts(came))), wanted) < 1e-12
    # of re and im, what the real part of a product is made of
    by_part = list(parts(jax.tree.map(np.conj, filled(weights, runs[0][0]))))
    direction = filled(cases.cotangents(moving, 2), moving)
    gradients = [jax.tree.leaves(filled(g, moving)) for _, g in runs]
    flat, whole = jax.tree.flatten(direction)
    moves = lambda a: np.issubdtype(a.dtype, np.floating)
    for leaf, kind in enumerate(jax.tree.leaves(moving)):  # along one array at a time
        if not moves(kind):
            continue
        along = whole.unflatten([d if i == leaf else 0 * d for i, d in enumerate(flat)])
        *bent, bent_state = jax.tree.map(
            lambda a, d: a + 1j * truth.TINY * d if moves(a) else a, (params, xs, state), along
        )
        pieces = [
            part
            for a, plain in zip(jax.tree.leaves(bent_state), jax.tree.leaves(state))
            for part in ((a.real, a.imag) if np.iscomplexobj(plain) else (a,))
        ]
        slope = [a.imag / truth.TINY for a in paper(*bent, tuple(pieces))]
        wanted = sum(float((w * s).sum()) for w, s in zip(by_part, slope, strict=True))
        came = [float((g[leaf] * flat[leaf]).sum()) for g in gradients]
        assert all(abs(c - wanted) < 1e-12 * max(1, abs(wanted)) for c in came), (came, wanted)


# All of it.


def fastest(name):
    """The implementations of a cell that aren't the reference, or else the reference."""
    return CELLS[name].faster or (REFERENCE,)


def hold(name, shape, implementations, **flags):
    """Every implementation gives what NumPy gives; or, of a cell without, the scan of its step.

    Of a cell that cuts its gradients, what the reference gives.
    """
    e = cases.example(CELLS[name], shape)
    moving = e.params, e.xs, e.state
    known = name in STEPS and len(e.xs) and e.xs.size
    given = options(e, **flags, key=not known)
    weights = weights_of(e.cell, moving, given["key"])
    runs = run_each(e.cell, moving, weights, implementations, given)
    if known:
        agree_with_paper(STEPS[name], e, given, moving, weights, runs)
    else:
        wanted = literally_with_grads(e.cell, moving, weights, **given)
        if CELLS[name].cut:
            (cut,) = run_each(e.cell, moving, weights, (REFERENCE,), given)
            wanted = wanted[0], cut[1]
        for came in runs:
            assert cases.error(came, wanted) < 1e-12


def run_each(cell, moving, weights, implementations, given):
    with interpreted() if "tpu" in implementations else contextlib.nullcontext():
        return jax.block_until_ready(
            by_each(cell, moving, weights, implementations=tuple(implementations), **given)
        )


def implementations_of(name):
    return (REFERENCE, *CELLS[name].faster)


def wide(tree):
    """The same numbers in the widest type."""
    return jax.tree.map(
        lambda a: (
            np.asarray(a).astype(promoted(a.dtype, jnp.dtype("float64")))
            if jnp.issubdtype(a.dtype, jnp.inexact)
            else a
        ),
        tree,
    )
