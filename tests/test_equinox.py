"""The Equinox module: the numbers of ``unroll``, in Equinox's transforms."""

import jax
import numpy as np
import pytest
from cases import error

import jaxrnn

eqx = pytest.importorskip("equinox")
import jaxrnn.equinox  # noqa: E402, it needs Equinox

T, B, INPUTS = 5, 3, 2
XS = np.float32(np.random.default_rng(0).normal(size=(T, B, INPUTS)))
CELL = jaxrnn.stack(jaxrnn.lstm(4), jaxrnn.dropout(0.5), jaxrnn.project(2))


def test_it_is_unroll_by_rows_and_in_a_batch():
    rnn = jaxrnn.equinox.RNN(CELL, INPUTS, key=jax.random.key(0), inference=True)
    cell, params = rnn.cell_and_params()
    assert cell == CELL and params.keys() == {"0", "1", "2"}
    lengths, ids = np.array([5, 1, 3], np.int32), np.arange(T * B).reshape(T, B) // 4
    options = {"lengths": lengths, "segment_ids": ids, "reverse": True}
    run = eqx.filter_jit(lambda rnn, **options: rnn(XS, return_states=True, **options))
    mask, starts = jaxrnn.from_segment_ids(ids)
    flags = {"mask": mask, "starts": starts, "lengths": lengths, "reverse": True}
    want = jaxrnn.unroll(cell, params, XS, return_states=True, **flags)
    came = run(rnn, **options)
    assert error(jax.tree.leaves(came), jax.tree.leaves(want)) < 1e-6
    row = lambda x, n, s: rnn(x, lengths=n, segment_ids=s, reverse=True, return_state=True)
    state, ys = jax.vmap(row, (1, 0, 1), (0, 1))(XS, lengths, ids)
    assert error((jax.tree.leaves(state), ys), (jax.tree.leaves(want[0]), want[1][0])) < 1e-6
    state, y = rnn.step(rnn.initial_state((B,)), XS[0])
    assert error(y, rnn(XS)[0]) < 1e-6


def test_training_and_inference():
    """Gradients are those of ``unroll``; dropout wants a key until there is inference."""
    rnn = jaxrnn.equinox.RNN(CELL, INPUTS, key=jax.random.key(0))
    key = jax.random.key(1)
    loss = lambda params: (jaxrnn.unroll(CELL, params, XS, key=key)[1] ** 2).sum()
    want = jax.grad(loss)(rnn.params)
    found = eqx.filter_jit(eqx.filter_grad(lambda rnn: (rnn(XS, key=key) ** 2).sum()))(rnn)
    assert found.cell == CELL and found.inference is None
    assert error(jax.tree.leaves(found.params), jax.tree.leaves(want)) < 1e-5
    with pytest.raises(ValueError, match="key: got None and deterministic=False"):
        rnn(XS)
    still = eqx.nn.inference_mode(rnn)
    assert (still(XS, key=key) == still(XS)).all() and not (still(XS) == rnn(XS, key=key)).all()
    moved = eqx.apply_updates(rnn, found)
    other = jaxrnn.equinox.RNN(CELL, params=moved.params, inference=True)
    assert (other(XS) == eqx.nn.inference_mode(moved)(XS)).all()


def test_saved_and_read(tmp_path):
    rnn = jaxrnn.equinox.RNN(jaxrnn.gru(4), INPUTS, key=jax.random.key(0))
    eqx.tree_serialise_leaves(tmp_path / "rnn.eqx", rnn)
    like = eqx.filter_eval_shape(jaxrnn.equinox.RNN, jaxrnn.gru(4), INPUTS, key=jax.random.key(1))
    again = eqx.tree_deserialise_leaves(tmp_path / "rnn.eqx", like)
    assert eqx.tree_equal(again, rnn)
    assert "cell=gru(hidden=4)" in str(rnn)


def test_errors():
    with pytest.raises(TypeError, match="cell: got <function|cell: got .*want a Cell"):
        jaxrnn.equinox.RNN(jaxrnn.lstm, 3, key=jax.random.key(0))
    with pytest.raises(
        TypeError, match="key: got None, want a key for new parameters, or params="
    ):
        jaxrnn.equinox.RNN(jaxrnn.lstm(4), 3)
