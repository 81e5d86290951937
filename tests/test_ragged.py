"""Ragged rows on a CPU: steps that are real in no row, which the kernel does not compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

T, B, HIDDEN = 70, 2, 5  # more than a chunk of the kernel's, 48 steps


def flags():
    """A row of 3 real steps and one of 20, a hole in it, and one more far behind; odd starts."""
    mask = np.arange(T)[:, None] < np.array([3, 20])
    mask[8:15] = False
    mask[66, 0] = True
    starts = np.zeros((T, B), bool)
    starts[[9, 17, 30, 60], [0, 1, 0, 1]] = True
    return mask, starts


@functools.partial(jax.jit, static_argnames=("cell", "reverse"))
def each(cell, params, xs, state, mask, starts, weights, reverse):
    def loss(which, params, xs, state):
        options = {"mask": mask, "starts": starts, "reverse": reverse, "implementation": which}
        out = jaxrnn.unroll(cell, params, xs, state, return_states=True, **options)
        return sum((w * a).sum() for w, a in zip(*map(jax.tree.leaves, (weights, out)))), out

    grad = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)
    return [grad(which, params, xs, state) for which in ("reference", "cpu")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residuals, reverse", [("gates", False), ("states", True)])
def test_steps_that_are_real_in_no_row(residuals, reverse):
    rng = np.random.default_rng(0)
    cell = jaxrnn.lstm(HIDDEN, residuals=residuals)
    draw = lambda *shape: rng.normal(size=shape)
    params = jax.tree.map(lambda a: draw(*a.shape), cell.init(jax.random.key(0), 3))
    state = draw(B, HIDDEN), draw(B, HIDDEN)
    weights = (state, (draw(T, B, HIDDEN), (draw(T, B, HIDDEN), draw(T, B, HIDDEN))))
    xs, given = np.full((T, B, 3), np.nan), flags()
    xs[given[0]] = draw(given[0].sum(), 3)
    want, came = each(cell, params, xs, state, *given, weights, reverse)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        assert error(a, b) < 1e-12
    ys = came[0][1][1][0]
    assert not ys[~given[0]].any() and not came[1][1][~given[0]].any()


def test_profiles_name_layers():
    cell = jaxrnn.stack(jaxrnn.gru(4), jaxrnn.bidirectional(jaxrnn.lstm(4)))
    params = cell.init(jax.random.key(0), 3)
    run = lambda params, xs: jaxrnn.unroll(cell, params, xs)[1].sum()
    text = jax.jit(jax.grad(run)).lower(params, jnp.ones((5, 3))).as_text(debug_info=True)
    for name in ("stack)/0/gru/", ")/1/bidirectional/forward/lstm/", "/backward/lstm/"):
        assert name in text


def test_threads(monkeypatch):
    """The environment says how many threads a call has at most; a wrong number is an error."""
    cell = jaxrnn.gru(64)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 32, 3))
    run = jax.jit(lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation="cpu")[1])
    want = run(params, xs)
    monkeypatch.setenv("JAXRNN_CPU_THREADS", "1")
    assert (run(params, xs) == want).all()
    monkeypatch.setenv("JAXRNN_CPU_THREADS", "none")
    with pytest.raises((ValueError, RuntimeError), match="JAXRNN_CPU_THREADS: want how many"):
        run(params, xs).block_until_ready()
