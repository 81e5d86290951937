"""Under ``jax_debug_nans`` only a NaN that a user is given stops a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

T, B, INPUTS = 5, 4, 4
CONTEXT = 3  # less than there are steps, but not than there are real ones
LENGTHS = np.array([3, 0, 2, 3])
CELL = jaxrnn.parallel(
    jaxrnn.attention(4, heads=2, context=CONTEXT),
    jaxrnn.attention(4, heads=2, window=2),
    jaxrnn.dropout(1.0),
)


@pytest.fixture(autouse=True)
def debug_nans():
    with jax.debug_nans(True):
        yield


def test_padding_resets_and_empty_rows_stop_nothing():
    """NaN in padding, and one that an episode before left; step by step and compiled."""
    params = CELL.init(jax.random.key(0), INPUTS)
    real = np.arange(T)[:, None] < LENGTHS
    xs = np.random.default_rng(0).normal(size=(T, B, INPUTS))
    with jax.debug_nans(False):
        xs = jnp.array(np.where(real[..., None], xs, np.nan), "float32")
        state = CELL.initial_state(params, (B,))
        state = jax.tree.map(lambda a: a * jnp.nan if a.dtype == jnp.float32 else a + 7, state)
    starts = np.zeros((T, B), bool)
    starts[[0, 2], [1, 2]] = True

    def loss(params, state, starts):
        state, ys = jaxrnn.unroll(
            CELL, params, xs, state, lengths=LENGTHS, starts=starts, key=jax.random.key(1)
        )
        return ys.sum(), (state, ys)

    run = jax.value_and_grad(loss, has_aux=True)
    (_, (_, wanted)), _ = run(params, None, starts)
    starts[0] = True
    (_, (state, ys)), gradients = run(params, state, starts)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((state, gradients)))
    jax.block_until_ready(jax.jit(run)(params, state, starts))


def test_steps_beyond_the_context_stop():
    """They are NaN: in the sequence and step by step."""
    cell = jaxrnn.attention(4, heads=2, context=1)
    params = cell.init(jax.random.key(0), INPUTS)
    xs = np.ones((2, INPUTS), np.float32)
    step = jax.jit(cell.step)
    state, y = step(params, cell.initial_state(params, ()), xs[0])
    assert np.isfinite(y).all()
    for run in (lambda: step(params, state, xs[1]), lambda: unroll(params, state, xs[1:])):
        with pytest.raises(FloatingPointError, match="nan"):
            run()


@jax.jit
def unroll(params, state, xs):
    cell = jaxrnn.attention(4, heads=2, context=1)
    return jaxrnn.unroll(cell, params, xs, state)[1]
