"""Streams that have gone on for long: what is counted never runs over, and never loses digits."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth

import jaxrnn
from jaxrnn._src.core.rotary import rotated
from jaxrnn._src.core.sequence import scan

pytestmark = pytest.mark.usefixtures("x64")
ROOM, STEPS, INPUTS = 5, 14, 3
GONE = (0, 3, 100_000, 16_777_217, 2**31 - 4)  # steps of a stream: more than float32, than int32
CELL = jaxrnn.attention(10, heads=2, window=ROOM)  # heads of an odd width


@pytest.fixture(scope="module")
def stream():
    """Parameters, inputs, and what the textbook makes of these."""
    with jax.enable_x64(True):
        params = jax.jit(CELL.init, static_argnums=1)(jax.random.key(0), INPUTS)
        params = jax.tree.map(np.float64, params)
    xs = 3 * np.random.default_rng(0).normal(size=(STEPS, INPUTS))
    ys = truth.attention(params, xs, [True] * STEPS, [False] * STEPS, False, ROOM)
    return params, xs, ys


@functools.partial(jax.jit, static_argnums=0)
def by_step(cell, params, xs, state):
    return jax.lax.scan(lambda state, x: cell.step(params, state, x), state, xs)


@functools.partial(jax.jit, static_argnums=(0, 4))
def by_pieces(cell, params, xs, state, lengths):
    ys = []
    for first, length in zip(np.cumsum((0, *lengths)), lengths):
        state, y = jaxrnn.unroll(cell, params, xs[first : first + length], state)
        ys.append(y)
    return state, jnp.concatenate(ys)


@pytest.mark.parametrize("dtype", ("float64", "float32", "bfloat16"))
def test_attention_does_not_know_how_long_a_stream_has_gone(stream, dtype):
    """Step by step, at once and in pieces: NumPy's numbers of a stream that has just begun."""
    params, xs, wanted = stream
    narrow = jnp.float32 if dtype == "bfloat16" else dtype
    params = jax.tree.map(lambda a: jnp.array(a, narrow), params)
    xs = jnp.array(xs, dtype)
    runs = by_step, *(functools.partial(by_pieces, lengths=n) for n in ((STEPS,), (1, 8, 5)))
    for gone in GONE:
        keys, values, count = state = CELL.initial_state(params, ())
        if gone:
            state = keys + 7, values - 7, count + gone  # of steps that will have been forgotten
        known = ROOM - 1 if gone else 0  # before, what is forgotten is still seen
        for run in runs:
            (_, _, count), ys = run(CELL, params, xs, state)
            assert cases.error(ys[known:], wanted[known:]) < cases.TOLERANCE[dtype][0], gone
            assert ROOM <= count < 2 * ROOM and count % ROOM == (gone + STEPS) % ROOM


def test_the_cache_is_the_same_after_any_number_of_laps(stream):
    """Bit by bit: a stream of the same last steps, as often around the ring as one likes."""
    params, xs, _ = stream
    keys, values, count = CELL.initial_state(params, ())
    ends = [by_step(CELL, params, xs, (keys, values, count + n * ROOM)) for n in (1, 2, 10**6)]
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, end, ends[0])


def test_beyond_the_context_everything_is_nan():
    """For ever, in the sequence as step by step; padding stays zero."""
    cell = jaxrnn.attention(4, heads=2, context=3)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2)
    xs = np.ones((10, 2))
    _, stepped = by_step(cell, params, xs, cell.initial_state(params, ()))
    _, pieces = by_pieces(cell, params, xs, cell.initial_state(params, ()), (2, 3, 3, 2))
    for ys in (stepped, pieces):
        assert np.isnan(ys).sum(1).tolist() == [0] * 3 + [4] * 7
    mask = np.arange(10) % 3 != 0
    _, ys = jax.jit(lambda params: jaxrnn.unroll(cell, params, xs, mask=mask))(params)
    assert np.isnan(ys).all(1).tolist() == [m and t > 4 for t, m in enumerate(mask)]
    assert not ys[~mask].any()


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_rotations_by_large_positions(dtype):
    """By Python's integers: as exact as at the first positions."""
    places = np.array([0, 1, 7, 65_537, 10**6 + 1, 2**24 + 1, 2**31 - 1], np.int32)
    half = 4
    turns = [int(10000.0 ** (-d / half) / (2 * np.pi) * 2.0**64) for d in range(half)]
    phases = [[(int(p) * t % 2**64) / 2**64 for t in turns] for p in places]
    first, second, rest = np.random.default_rng(0).normal(size=(3, len(places), 1, half))
    rest = rest[..., :1]
    cos, sin = (f(2 * np.pi * np.array(phases))[:, None] for f in (np.cos, np.sin))
    wanted = np.concatenate([first * cos - second * sin, first * sin + second * cos, rest], -1)
    given = jnp.array(np.concatenate([first, second, rest], -1), dtype)
    came = jax.jit(rotated)(given, places)
    assert came.dtype == dtype
    assert cases.error(came, wanted) < {"float64": 1e-15, "float32": 3e-7}[dtype]
    if dtype == "float64":  # and NumPy's own angles, where they are exact enough
        wanted = [truth.rotated(np.asarray(a), int(p)) for a, p in zip(given, places)]
        assert cases.error(came[:4], np.stack(wanted)[:4]) < 1e-10
        assert cases.error(came[:3], np.stack(wanted)[:3]) < 1e-14


COUNTED = {
    "dropout": jaxrnn.dropout(0.5),
    "zoneout": jaxrnn.zoneout(jaxrnn.gru(3), 0.5),
    "recurrent_dropout": jaxrnn.recurrent_dropout(jaxrnn.lstm(3), 0.5),
    "rg_lru": jaxrnn.rg_lru(3),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_run_over_alike(name):
    """In the sequence as step by step, with padding and a start."""
    cell, key, rng = COUNTED[name], jax.random.key(2), np.random.default_rng(0)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 3)
    xs, initial = jnp.array(rng.normal(size=(7, 3, 3))), cell.initial_state(params, (3,))
    mask, starts = np.ones((7, 3), bool), np.zeros((7, 3), bool)
    mask[1:3, 1], starts[4, 2] = False, True
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    state = jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape), a.dtype), initial)

    @jax.jit
    def both(count):
        before = jax.tree.map(lambda a: a if floating(a) else count, state)
        one = lambda state, x: cell.step(params, state, x, key)
        return (
            jaxrnn.unroll(cell, params, xs, before, mask=mask, starts=starts, key=key),
            scan(one, before, xs, initial=initial, mask=mask, starts=starts),
        )

    at = lambda gone: both(np.full(3, gone, np.uint32).view(np.int32))
    for gone in (2**31 - 3, 2**31 - 1 if name == "rg_lru" else 2**32 - 3):
        came, wanted = at(gone)
        assert cases.error(came, wanted) < 1e-12
        if name == "rg_lru":  # an episode that has begun goes on, and its count stays where it is
            assert cases.error(came[1], at(5)[0][1]) < 1e-12
            assert came[0][1].tolist() == [2**31 - 1, 2**31 - 1, 3]
