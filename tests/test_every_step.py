"""The states after all steps: the numbers of the definition, and gradients through all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from cases import error

import jaxrnn
import jaxrnn.linen
import jaxrnn.nnx

T, B, INPUTS, HIDDEN = 9, 4, 3, 5
IMPLEMENTATIONS = ("reference", "xla", "cpu")


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@functools.partial(jax.jit, static_argnames=("cell", "implementation", "reverse"))
def every(cell, params, xs, state=None, **options):
    return jaxrnn.unroll(cell, params, xs, state, return_states=True, **options)


def by_hand(step, params, xs, state, mask, starts, reverse):
    """``(state, (ys, states))`` of one row in NumPy; a cut acts before the next real step."""
    first, states, ys, crossed = tuple(np.zeros_like(s) for s in state), [], [], False
    for t in range(len(xs))[:: -1 if reverse else 1]:
        if (crossed and mask[t]) if reverse else starts[t]:
            state, crossed = first, False
        if mask[t]:
            state = step(params, state, xs[t])
        crossed |= reverse and starts[t]
        states.append(state), ys.append(state[0] * mask[t])
    turn = (lambda a: a[::-1]) if reverse else (lambda a: a)
    states = tuple(np.stack(turn(part)) for part in zip(*states))
    return state, (np.stack(turn(ys)), states)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residuals, reverse", [("gates", False), ("states", True)])
def test_numbers_and_gradients_of_the_definition(rng, residuals, reverse):
    """Of a loop in NumPy, differentiated along a direction by a complex step."""
    cell = jaxrnn.lstm(HIDDEN, residuals=residuals)
    draw = lambda a: rng.normal(size=a.shape)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), INPUTS))
    rows = np.zeros((B, HIDDEN))
    given = jax.tree.map(draw, (shapes, np.zeros((T, B, INPUTS)), (rows, rows)))
    along = jax.tree.map(draw, given)
    mask, starts = rng.random((T, B)) < 0.7, rng.random((T, B)) < 0.3
    moved = jax.tree.map(lambda a, b: a + 1j * truth.TINY * b, given, along)

    def of_row(k):
        params, xs, state = moved
        state = tuple(s[k] for s in state)
        return by_hand(truth.lstm, params, xs[:, k], state, mask[:, k], starts[:, k], reverse)

    in_order = lambda *parts: np.stack(parts, parts[0].ndim - 1)  # rows after time
    want = jax.tree.map(in_order, *map(of_row, range(B)))
    weights = jax.tree.map(draw, want)
    slope = sum((w * a.imag).sum() for w, a in zip(*map(jax.tree.leaves, (weights, want))))

    @jax.jit
    def each(*given):
        def loss(which, params, xs, state):
            out = jaxrnn.unroll(
                cell,
                params,
                xs,
                state,
                mask=mask,
                starts=starts,
                reverse=reverse,
                return_states=True,
                implementation=which,
            )
            return sum((w * a).sum() for w, a in zip(*map(jax.tree.leaves, (weights, out)))), out

        grad = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)
        return [grad(which, *given) for which in IMPLEMENTATIONS]

    for (_, came), gradient in each(*given):
        for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
            assert error(a, b.real) < 1e-12
        pairs = zip(*map(jax.tree.leaves, (gradient, along)), strict=True)
        found = sum(float((g * v).sum()) for g, v in pairs)
        assert abs(found / (slope / truth.TINY) - 1) < 1e-11


CELLS = {  # each way of making states, and what explain says of it
    "in chunks": (jaxrnn.lstm(HIDDEN, residuals="chunks"), {"cpu"}),
    "from its step": (
        jaxrnn.cell(*(getattr(jaxrnn.gru(4), n) for n in ("init", "initial_state", "step"))),
        {"reference"},
    ),
    "wrapped": (
        jaxrnn.stack(
            jaxrnn.learned_state(jaxrnn.lstm(HIDDEN)),
            jaxrnn.dropout(0.5),
            jaxrnn.residual(jaxrnn.truncated(jaxrnn.gru(HIDDEN), 4)),
            jaxrnn.project(2),
        ),
        {"cpu"},
    ),
    "zoned out": (jaxrnn.zoneout(jaxrnn.lstm(HIDDEN), 0.2), {"reference"}),
    "linear": (jaxrnn.stack(jaxrnn.project(HIDDEN), jaxrnn.lru(HIDDEN)), {"reference"}),
    "with a cache": (jaxrnn.attention(4, heads=2, window=3), {"reference"}),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_state_is_that_of_the_steps_so_far(rng, name):
    """Of all ways to make states: what ``unroll`` ends in, of these steps alone."""
    cell, runs = CELLS[name]
    xs = np.float32(rng.normal(size=(T, B, INPUTS)))
    params = cell.init(jax.random.key(0), INPUTS)
    mask, starts = rng.random((T, B)) < 0.7, rng.random((T, B)) < 0.3
    key = jax.random.key(1)
    state, (ys, states) = every(cell, params, xs, mask=mask, starts=starts, key=key)
    known = jax.jit(functools.partial(jaxrnn.unroll, cell))
    for t in range(T):
        so_far = mask & (np.arange(T) <= t)[:, None]
        fresh = starts & (np.arange(T) <= t)[:, None]
        final, some = known(params, xs, mask=so_far, starts=fresh, key=key)
        found = jax.tree.map(lambda a, t=t: a[t], states)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(final), strict=True):
            assert error(a, b) < 1e-5
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found, state))
    assert error(ys, some) < 1e-5
    choices = jaxrnn.explain(cell, params, xs, return_states=True, platform="cpu").choices
    assert {choice.runs for choice in choices} == runs


def test_both_directions(rng):
    """And ``backward`` of ONNX, which is one of them."""
    from jaxrnn.interop.onnx import backward

    cell = jaxrnn.bidirectional(jaxrnn.lstm(HIDDEN))
    params = cell.init(jax.random.key(0), INPUTS)
    xs, starts = np.float32(rng.normal(size=(T, B, INPUTS))), rng.random((T, B)) < 0.3
    state, (ys, states) = every(cell, params, xs, starts=starts)
    for i, (name, turned) in enumerate([("forward", False), ("backward", True)]):
        one = every(jaxrnn.lstm(HIDDEN), params[name], xs, starts=starts, reverse=turned)
        both = (state[i], (ys[..., i * HIDDEN : (i + 1) * HIDDEN], states[i]))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), both, one))
    back = every(backward(jaxrnn.lstm(HIDDEN)), params["backward"], xs, starts=starts)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), back, one))


def test_pieces_of_a_long_sequence(rng, monkeypatch):
    """Where no gradient is taken, a piece follows the other: states too."""
    from jaxrnn._src.core import streaming

    cell = jaxrnn.stack(jaxrnn.gru(4), jaxrnn.layer_norm(), jaxrnn.layer_norm_gru(4))
    params = cell.init(jax.random.key(0), INPUTS)
    xs, mask = np.float32(rng.normal(size=(300, 2, INPUTS))), rng.random((300, 2)) < 0.7
    starts = rng.random((300, 2)) < 0.1
    run = lambda: jaxrnn.unroll(
        cell, params, xs, mask=mask, starts=starts, reverse=True, return_states=True
    )
    whole = run()
    monkeypatch.setattr(streaming, "_MOST", 1), monkeypatch.setattr(streaming, "_PIECE", 1)
    calls, real = [], streaming.run
    monkeypatch.setattr(streaming, "run", lambda *a, **k: calls.append(a) or real(*a, **k))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run(), whole)
    assert calls


def test_no_steps_no_rows_and_no_batch():
    cell = jaxrnn.lstm(HIDDEN)
    params = cell.init(jax.random.key(0), INPUTS)
    for batch in [(0, 2), (T, 0), (T,), (T, 2, 2)]:
        state, (ys, states) = every(cell, params, jnp.ones((*batch, INPUTS)))
        assert ys.shape == (*batch, HIDDEN)
        assert [s.shape for s in states] == [ys.shape] * 2
        assert [s.shape for s in state] == [ys.shape[1:]] * 2


def test_what_is_not_used_is_not_made():
    """The state that nobody asks for has no array with a time axis."""
    cell = jaxrnn.lstm(HIDDEN)
    params = cell.init(jax.random.key(0), INPUTS)

    def count(pick):
        run = lambda params, xs: pick(*jaxrnn.unroll(cell, params, xs, return_states=True)[1])
        text = jax.jit(run).lower(params, jnp.ones((T, B, INPUTS))).as_text()
        (call,) = [line for line in text.splitlines() if "jaxrnn_forward" in line]
        return call.rpartition("->")[2].count(f"tensor<{T}x{B}x{HIDDEN}xf32>")

    assert count(lambda ys, s: s) == 2
    assert count(lambda ys, s: s[1]) == count(lambda ys, s: ys) == 1


def test_types():
    """Outputs have the inputs' type, states the arithmetic's."""
    cell = jaxrnn.lstm(HIDDEN)
    params = cell.init(jax.random.key(0), INPUTS)
    xs = jnp.ones((T, B, INPUTS), jnp.bfloat16)
    _, (ys, (h, c)) = every(cell, params, xs)
    assert (ys.dtype, h.dtype, c.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert (ys == h.astype(jnp.bfloat16)).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_final_states_of_packed_sequences(rng, reverse):
    """Those of each sequence run by itself, and zeros for one that is not there."""
    cell = jaxrnn.lstm(HIDDEN)
    params = cell.init(jax.random.key(0), INPUTS)
    sequences = [np.float32(rng.normal(size=(n, INPUTS))) for n in (3, 7, 1, 4, 7)]
    xs, ids = jaxrnn.pack(sequences, T)
    mask, starts = jaxrnn.from_segment_ids(ids)
    _, (_, states) = every(cell, params, xs, mask=mask, starts=starts, reverse=reverse)
    run = jax.jit(jaxrnn.final_states, static_argnames=("count", "reverse"))
    came = run(states, ids, count=6, reverse=reverse)
    padded = np.stack([np.pad(x, ((0, T - len(x)), (0, 0))) for x in sequences], 1)
    lengths = np.array([len(x) for x in sequences], np.int32)
    want = jaxrnn.unroll(cell, params, padded, lengths=lengths, reverse=reverse)[0]
    assert all(error(a[:5], b) < 1e-6 for a, b in zip(came, want, strict=True))
    assert not any(a[5].any() for a in came)
    row = 1
    alone = jaxrnn.final_states([s[:, row] for s in states], ids[:, row], 6, reverse=reverse)
    inside = np.isin(np.arange(1, 7), ids[:, row])[:, None]
    assert all((a == np.where(inside, b, 0)).all() for a, b in zip(alone, came, strict=True))
    assert jaxrnn.final_states(states[0][:0], ids[:0], 2).shape == (2, HIDDEN)
    with pytest.raises(ValueError, match=r"states: got shape \(3, 5\), want \[T, ...batch, ...\]"):
        jaxrnn.final_states(states[0][0], ids, 5)


def test_modules(rng):
    """Batch first, as ys; time first if asked."""
    from flax import nnx

    cell, xs = jaxrnn.lstm(HIDDEN), np.float32(rng.normal(size=(B, T, INPUTS)))
    rnn = jaxrnn.nnx.RNN(cell, INPUTS, rngs=nnx.Rngs(0))
    _, params = rnn.cell_and_params()
    want = every(cell, params, xs.swapaxes(0, 1))
    linen = jaxrnn.linen.RNN(cell)
    variables = {"params": {"cell": params}}
    for call in (rnn, functools.partial(linen.apply, variables)):
        state, (ys, (h, c)) = call(xs, return_states=True)
        assert (ys.swapaxes(0, 1) == want[1][0]).all() and (state[1] == want[0][1]).all()
        assert (c.swapaxes(0, 1) == want[1][1][1]).all() and h.shape == ys.shape
        _, (_, (_, c)) = call(xs.swapaxes(0, 1), return_states=True, time_major=True)
        assert (c == want[1][1][1]).all()


def test_errors():
    cell = jaxrnn.stack(jaxrnn.project(4), jaxrnn.lru(4))
    params, xs = cell.init(jax.random.key(0), INPUTS), jnp.ones((T, B, INPUTS))
    why = r"'xla' cannot run this: lru\(.*\) does not give the states after each step"
    with pytest.raises(ValueError, match=why):
        jaxrnn.unroll(cell, params, xs, return_states=True, implementation="xla")
    with pytest.raises(TypeError, match="return_states: got 1, want True or False"):
        jaxrnn.unroll(cell, params, xs, return_states=1)
