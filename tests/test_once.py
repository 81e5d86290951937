"""Outside of ``jax.jit``: what is run a second time is not compiled a second time."""

import contextlib
import gc
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

H = 3
XS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, H)), jnp.float32)
LENGTHS, STARTS = jnp.array([6, 4]), jnp.zeros((6, 2), bool).at[3].set(True)


def users():
    def step(params, state, x):
        state = 0.9 * state + 0.1 * x @ params["w"]
        return state, state

    return jaxrnn.cell(
        lambda key, n: {"w": jnp.ones((n, H))}, lambda p, batch: jnp.zeros((*batch, H)), step
    )


def stepped(cell, params):
    """As a stream is served: a step at a time."""
    return cell.step(params, cell.initial_state(params, (2,)), XS[0])[1]


def unrolled(**options):
    return lambda cell, params: jaxrnn.unroll(cell, params, XS, **options)[1]


REFERENCE = unrolled(implementation="reference")
CALLS = {
    "user": (users(), unrolled(lengths=LENGTHS, starts=STARTS)),
    "lstm": (jaxrnn.lstm(H), unrolled()),
    "chunks": (jaxrnn.lstm(H, residuals="chunks"), unrolled()),
    "reference": (jaxrnn.gru(H), REFERENCE),
    "loop": (jaxrnn.layer_norm_gru(H), REFERENCE),
    "linear": (jaxrnn.lru(H), REFERENCE),
    "qrnn": (jaxrnn.qrnn(H), stepped),
    "attention": (jaxrnn.attention(H, heads=1, window=2), stepped),
    "mlstm": (jaxrnn.mlstm(H, heads=1), unrolled(reverse=True)),
    "zoneout": (jaxrnn.zoneout(jaxrnn.elman(H), 0.1), unrolled(key=jax.random.key(1))),
    "truncated": (jaxrnn.truncated(jaxrnn.elman(H), 2), unrolled()),
    "attentive": (jaxrnn.attentive(jaxrnn.elman(H), memory=H), unrolled()),
    "learned_state": (jaxrnn.learned_state(jaxrnn.stack(users())), unrolled(starts=STARTS)),
    "trace": (users(), lambda cell, params: jaxrnn.trace(cell, params, XS)["y"]),
    "gradient_norms": (users(), lambda cell, p: jaxrnn.inside.gradient_norms(cell, p, XS)),
}


@contextlib.contextmanager
def compilations():
    """A list of the programs that XLA compiles meanwhile."""
    found, logger = [], logging.getLogger("jax")

    class Handler(logging.Handler):
        def emit(self, record):
            if "Finished XLA compilation" in record.getMessage():
                found.append(record.getMessage())

    handler, before = Handler(), logger.handlers[:]
    logger.handlers[:] = [handler]
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.handlers[:] = before


@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_compiles_nothing(name):
    cell, call = CALLS[name]
    params = cell.init(jax.random.key(0), H)
    graded = lambda params: jax.grad(lambda p: call(cell, p).sum())(params)
    with compilations() as first:
        wanted = call(cell, params), graded(params)
    with compilations() as second:
        came = call(cell, params), graded(params)
    assert first and not second
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_was_compiled_goes_with_the_cell():
    def left():
        cell = users()
        params = cell.init(jax.random.key(0), H)
        jax.grad(lambda p: jaxrnn.unroll(cell, p, XS)[1].sum())(params)
        jaxrnn.trace(cell, params, XS)
        return weakref.ref(cell)

    kept = left()
    gc.collect()
    assert kept() is None


def test_a_step_may_close_over_what_is_differentiated():
    """Outside of jit and inside, without leaving a tracer behind."""

    def loss(rate, xs):
        def step(params, state, x):
            state = state + rate * (x - state)
            return state, state

        cell = jaxrnn.cell(lambda *_: {}, lambda p, batch: jnp.zeros((*batch, H)), step)
        return jnp.sin(jaxrnn.unroll(cell, {}, xs)[1]).sum()

    def plain(rate, xs):
        step = lambda state, x: (state + rate * (x - state),) * 2
        return jnp.sin(jax.lax.scan(step, jnp.zeros(xs.shape[1:]), xs)[1]).sum()

    with jax.checking_leaks():
        for transform in (jax.grad, lambda f: jax.jit(jax.grad(f)), jax.jacfwd, jax.hessian):
            came, wanted = (transform(f)(jnp.float32(0.3), XS) for f in (loss, plain))
            np.testing.assert_allclose(came, wanted, rtol=1e-6)
        over = jax.vmap(jax.grad(loss), (0, None))(jnp.array([0.3, 0.6]), XS)
    np.testing.assert_allclose(over[1], jax.grad(plain)(jnp.float32(0.6), XS), rtol=1e-6)


def test_explain_hears_of_what_has_run():
    cell = jaxrnn.truncated(jaxrnn.lstm(H), 2)
    params = cell.init(jax.random.key(0), H)
    jaxrnn.unroll(cell, params, XS)
    first, again = (str(jaxrnn.explain(cell, params, XS)) for _ in range(2))
    assert first == again and "lstm_update" in first
