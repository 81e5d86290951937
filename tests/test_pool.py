"""Streams of different ages in one pool: each has the numbers that it would have alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

SLOTS, HISTORY, FEATURES = 5, 3, 4
CELL = jaxrnn.stack(
    jaxrnn.conv1d(FEATURES, kernel=3),
    jaxrnn.parallel(jaxrnn.gru(2), jaxrnn.attention(2, heads=1, window=4)),
    jaxrnn.retention(4, heads=2),
)


class Alone:
    """The same streams as lists of their inputs and outputs, one for each slot."""

    def __init__(self):
        self.streams = [None] * SLOTS

    def step(self, xs, ys, active):
        for slot, stream in enumerate(self.streams):
            if stream is None or not active[slot]:
                assert not ys[slot].any()
            else:
                self.streams[slot] = [*stream, (xs[slot], ys[slot])]


@pytest.mark.usefixtures("x64")
def test_each_stream_is_as_if_alone():
    pool = jaxrnn.Pool(CELL, SLOTS, HISTORY)
    draw = np.random.default_rng(0)
    params = CELL.init(jax.random.key(0), FEATURES)
    admit, evict, fork, step, rollback = map(
        jax.jit, (pool.admit, pool.evict, pool.fork, pool.step, pool.rollback)
    )
    streams, alone, went_back = pool.init(params), Alone(), 0
    for turn in range(40):
        live = [slot for slot in range(SLOTS) if alone.streams[slot] is not None]
        kind, slot = draw.integers(6), int(draw.integers(SLOTS))
        if kind == 0 or not live:
            streams = admit(params, streams, np.array([slot]))
            alone.streams[slot] = []
        elif kind == 1 and turn % 2:
            streams = evict(streams, np.array([slot]))
            alone.streams[slot] = None
        elif kind == 2:
            source = int(draw.choice(live))
            others = np.array([(source + 1) % SLOTS, (source + 3) % SLOTS])
            streams = fork(streams, source, others)
            for other in others:
                alone.streams[other] = alone.streams[source]
        elif kind == 3:
            counts = draw.integers(0, np.asarray(streams.kept) + 1)
            streams = rollback(streams, counts)
            went_back += counts.sum()
            for slot in np.flatnonzero(counts):
                alone.streams[slot] = alone.streams[slot][: -counts[slot]]
        xs, active = draw.normal(size=(SLOTS, FEATURES)), draw.random(SLOTS) < 0.8
        xs[~active] = np.nan
        streams, ys = step(params, streams, xs, active)
        alone.step(xs, np.asarray(ys), active)
        np.testing.assert_array_equal(streams.live, [s is not None for s in alone.streams])
    assert went_back > 5
    lengths = np.array([len(s or ()) for s in alone.streams])
    assert lengths.max() > 8 and len(set(lengths)) > 3
    xs, want = np.zeros((lengths.max(), SLOTS, FEATURES)), np.zeros((lengths.max(), SLOTS, 4))
    for slot, stream in enumerate(alone.streams):
        for time, (x, y) in enumerate(stream or ()):
            xs[time, slot], want[time, slot] = x, y
    run = jax.jit(functools.partial(jaxrnn.unroll, CELL))
    state, ys = run(params, xs, lengths=lengths)
    np.testing.assert_allclose(ys, want, rtol=0, atol=1e-12)
    rows = lengths > 0
    for came, alone in zip(jax.tree.leaves(streams.state), jax.tree.leaves(state)):
        np.testing.assert_allclose(came[rows], alone[rows], rtol=0, atol=1e-12)
    assert all(f._cache_size() == 1 for f in (admit, evict, fork, step, rollback))


def test_a_prompt_is_admitted():
    cell = jaxrnn.stack(jaxrnn.embedding(7, 3), jaxrnn.gru(4))
    pool, params = jaxrnn.Pool(cell, 4), cell.init(jax.random.key(0), None)
    prompt = jnp.array([[1, 2], [3, 4], [5, 6]])
    state, _ = jaxrnn.unroll(cell, params, prompt, lengths=jnp.array([3, 2]))
    streams = pool.admit(params, pool.init(params), jnp.array([3, 1]), state)
    streams, ys = pool.step(params, streams, jnp.array([0, 2, 0, 1]))
    _, want = cell.step(params, state, jnp.array([1, 2]))
    np.testing.assert_allclose(ys[jnp.array([3, 1])], want, rtol=0, atol=1e-6)
    assert not ys[0].any() and not ys[2].any()


def test_a_learned_state_begins_a_stream():
    cell = jaxrnn.learned_state(jaxrnn.gru(3))
    pool, params = jaxrnn.Pool(cell, 2), cell.init(jax.random.key(0), 2)
    params = jax.tree.map(lambda a: a + 0.5, params)
    streams = pool.admit(params, pool.init(params), 1)
    want = cell.initial_state(params, ())
    assert jax.tree.all(jax.tree.map(lambda a, b: (a[1] == b).all(), streams.state, want))


def test_a_slot_that_is_not_there_is_left_out():
    """Inside of ``jax.jit``, where nobody can say so; no other stream's state is copied."""
    pool = jaxrnn.Pool(jaxrnn.gru(3), 4)
    params = pool.cell.init(jax.random.key(0), 2)
    streams = pool.admit(params, pool.init(params), [1, 3])
    fork = jax.jit(pool.fork)
    for source, slots in ((4, 0), (-1, 0), (3, 4), (3, -1)):
        after = fork(streams, source, np.array([slots]))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, streams))


def test_what_cannot_be():
    pool = jaxrnn.Pool(jaxrnn.gru(3), 4, history=2)
    assert pool == jaxrnn.Pool(jaxrnn.gru(3), 4, 2) and hash(pool) is not None
    params = pool.cell.init(jax.random.key(0), 2)
    streams = pool.admit(params, pool.init(params), jnp.arange(2))
    for words, call in (
        (r"slots: got \[4\], want slots from 0 to 3", lambda: pool.evict(streams, np.array([4]))),
        ("source: got -1, want slots from", lambda: pool.fork(streams, -1, np.array([1]))),
        (r"source: got shape \(2,\), want one", lambda: pool.fork(streams, [0, 1], [1])),
        (r"counts: got shape \(2,\), want one", lambda: pool.rollback(streams, np.ones(2, int))),
        (
            r"counts\[0\]: got 1, want 0 to 0, as many as are kept",
            lambda: pool.rollback(streams, np.array([1, 0, 0, 0])),
        ),
        ("xs: got float32.*want 4 slots", lambda: pool.step(params, streams, jnp.ones((3, 2)))),
        (
            "active: got shape",
            lambda: pool.step(params, streams, jnp.ones((4, 2)), np.ones(3) > 0),
        ),
        ("state: got", lambda: pool.admit(params, streams, [0], (jnp.ones((2, 3)),))),
        ("slots: got 0, want 1", lambda: jaxrnn.Pool(jaxrnn.gru(3), 0)),
        ("history: got -1, want 0 or more", lambda: jaxrnn.Pool(jaxrnn.gru(3), 4, -1)),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="slots: got float32"):
        pool.evict(streams, jnp.ones(1))
    with pytest.raises(TypeError, match="history: got None, want an int"):
        jaxrnn.Pool(jaxrnn.gru(3), 4, None)
    with pytest.raises(TypeError, match="cell: got 3, want a Cell"):
        jaxrnn.Pool(3, 4)
