"""What a decoder reads of its memory, where that has padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from families import structure
from test_structure import check_gradients

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(3, 4, 2))
MEMORY = np.random.default_rng(1).normal(size=(5, 4, 6))
LENGTHS = np.array([5, 3, 0, 1])
every_score = pytest.mark.parametrize("score", ("additive", "general", "dot"))


def made(score):
    cell = jaxrnn.attentive(jaxrnn.lstm(6), 6, score=score)
    return cell, cell.init(KEY, 2)


def run(cell, params, memory, **options):
    return jaxrnn.unroll(cell, jaxrnn.remember(params, memory, **options), XS)


@every_score
def test_each_row_reads_its_own(score, monkeypatch):
    """Rows of several lengths, against NumPy's loop on each row's own memory."""
    cell, params = made(score)
    ys = run(cell, params, MEMORY, lengths=LENGTHS)[1]
    for i, length in enumerate(LENGTHS):
        if not length:
            continue
        monkeypatch.setattr(structure, "REAL", np.ones(length, bool))
        given = {"cell": jax.tree.map(np.array, params), "memory": MEMORY[:length, i]}
        state = (np.zeros(6),) * (2 if score == "additive" else 3)
        for t in range(3):
            if score == "additive":
                state, y = structure.bahdanau(given, state, XS[t, i])
            else:
                state, y = luong_of_an_lstm(given, state, XS[t, i])
            np.testing.assert_allclose(ys[t, i], y, rtol=1e-12)


def luong_of_an_lstm(params, state, x):
    *inner, a = state
    params, memory = params["cell"], params["memory"]
    h, c = truth.lstm(params["cell"], inner, np.concatenate([x, a]))
    context = structure.read(memory, lambda m: h @ (m @ params["key"] if "key" in params else m))
    a = np.tanh(np.concatenate([context, h]) @ params["combine"])
    return (h, c, a), a


@every_score
def test_padding_changes_nothing(score):
    cell, params = made(score)
    padding = np.arange(5)[:, None] >= LENGTHS
    poisoned = np.where(padding[..., None], np.nan, MEMORY)

    def loss(params, memory):
        return jnp.sin(run(cell, params, memory, lengths=LENGTHS)[1]).sum()

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, grads = both(params, MEMORY)
    came, came_grads = both(params, poisoned)
    assert value == came and not np.array(grads[1])[padding].any()
    jax.tree.map(np.testing.assert_array_equal, came_grads, grads)
    masked = run(cell, params, poisoned, mask=~padding)[1]
    np.testing.assert_array_equal(masked, run(cell, params, MEMORY, lengths=LENGTHS)[1])


@every_score
def test_nothing_to_read_is_a_context_of_zero(score):
    cell, params = made(score)
    bare = jaxrnn.unroll(cell, params, XS)[1]
    np.testing.assert_array_equal(run(cell, params, MEMORY, lengths=0 * LENGTHS)[1], bare)
    np.testing.assert_array_equal(run(cell, params, MEMORY, lengths=LENGTHS)[1][:, 2], bare[:, 2])
    np.testing.assert_array_equal(run(cell, params, MEMORY[:0])[1], bare)


@every_score
def test_gradients_flow_to_the_memory(score):
    cell, params = made(score)

    def loss(params, memory):
        return jnp.sin(run(cell, params, memory, lengths=LENGTHS)[1]).sum()

    check_gradients(loss, params, jnp.array(MEMORY))
    real = np.arange(5)[:, None] < LENGTHS
    assert np.array(jax.grad(loss, 1)(params, MEMORY))[real].all()


@every_score
def test_a_decoder_in_a_stack_and_in_bfloat16(score):
    cell = jaxrnn.stack(jaxrnn.attentive(jaxrnn.lstm(6), 6, score=score), jaxrnn.project(3))
    params = jax.tree.map(jnp.float32, cell.init(KEY, 2))
    params["0"] = jaxrnn.remember(params["0"], jnp.asarray(MEMORY, "bfloat16"))
    xs = jnp.asarray(XS, "bfloat16")
    state, ys = jaxrnn.unroll(cell, params, xs)
    assert ys.shape == (3, 4, 3) and ys.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(state)} == {jnp.dtype("float32")}
