"""What a decoder reads of its memory, where that has padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from families import structure
from test_structure import checked

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(3, 4, 2))
MEMORY = np.random.default_rng(1).normal(size=(5, 4, 6))
LENGTHS = np.array([5, 3, 0, 1])
every_score = pytest.mark.parametrize("score", ("additive", "general", "dot"))


@functools.cache
def made(score):
    cell = jaxrnn.attentive(jaxrnn.lstm(6), 6, score=score)
    return cell, jax.tree.map(np.asarray, jax.jit(cell.init, static_argnums=1)(KEY, 2))


@functools.partial(jax.jit, static_argnums=0)
def run(cell, params, memory, **options):
    return jaxrnn.unroll(cell, jaxrnn.remember(params, memory, **options), XS)


@functools.partial(jax.jit, static_argnums=0)
def of_sines(cell, params, memory, lengths):
    """The sum of the outputs' sines, and its gradients."""

    def loss(params, memory):
        return jnp.sin(run(cell, params, memory, lengths=lengths)[1]).sum()

    return jax.value_and_grad(loss, (0, 1))(params, memory)


@every_score
def test_each_row_reads_its_own(score, monkeypatch):
    """Rows of several lengths, against NumPy's loop on each row's own memory."""
    cell, params = made(score)
    ys = np.asarray(run(cell, params, MEMORY, lengths=LENGTHS)[1])
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
    value, grads = of_sines(cell, params, MEMORY, LENGTHS)
    came, came_grads = of_sines(cell, params, poisoned, LENGTHS)
    assert value == came and not np.array(grads[1])[padding].any()
    jax.tree.map(np.testing.assert_array_equal, came_grads, grads)
    masked = run(cell, params, poisoned, mask=~padding)[1]
    np.testing.assert_array_equal(masked, run(cell, params, MEMORY, lengths=LENGTHS)[1])


@every_score
def test_nothing_to_read_is_a_context_of_zero(score):
    cell, params = made(score)
    bare, *read = (
        np.asarray(ys)
        for _, ys in (
            jax.jit(lambda params: jaxrnn.unroll(cell, params, XS))(params),
            run(cell, params, MEMORY, lengths=0 * LENGTHS),
            run(cell, params, MEMORY, lengths=LENGTHS),
            run(cell, params, MEMORY[:0]),
        )
    )
    for ys, rows in zip(read, (slice(None), [2], slice(None))):
        np.testing.assert_array_equal(ys[:, rows], bare[:, rows])


@every_score
def test_gradients_flow_to_the_memory(score):
    cell, params = made(score)
    both = functools.partial(of_sines, cell, lengths=LENGTHS)
    _, of_memory = checked(both, params, MEMORY)
    real = np.arange(5)[:, None] < LENGTHS
    assert of_memory[real].all()


@every_score
def test_a_decoder_in_a_stack_and_in_bfloat16(score):
    cell = jaxrnn.stack(jaxrnn.attentive(jaxrnn.lstm(6), 6, score=score), jaxrnn.project(3))

    def run():
        params = jax.tree.map(jnp.float32, cell.init(KEY, 2))
        params["0"] = jaxrnn.remember(params["0"], jnp.asarray(MEMORY, "bfloat16"))
        return jaxrnn.unroll(cell, params, jnp.asarray(XS, "bfloat16"))

    state, ys = jax.eval_shape(run)
    assert ys.shape == (3, 4, 3) and ys.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(state)} == {jnp.dtype("float32")}
