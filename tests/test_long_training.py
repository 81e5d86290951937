"""Training on sequences that go on: seams that stop gradients, and where episodes begin."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
T, B, INPUTS = 7, 3, 2
XS = RNG.normal(size=(T, B, INPUTS))
MASK, STARTS = RNG.random((T, B)) < 0.7, RNG.random((T, B)) < 0.3
STARTS[[2, 4, 6], [0, 1, 2]] = True  # at seams too
KEY = jax.random.key(1)
DEEP = jaxrnn.stack(jaxrnn.lstm(3), jaxrnn.dropout(0.25))
with jax.enable_x64(True):
    PARAMS = jax.jit(DEEP.init, static_argnums=1)(jax.random.key(0), INPUTS)
    STATE = jax.jit(lambda xs: jaxrnn.unroll(DEEP, PARAMS, xs, key=KEY)[0])(XS[::-1])
WEIGHTS = RNG.normal(size=(T, B, 3)), RNG.normal(size=(B, 3))
GIVEN = {  # what may be given beside the sequence
    "nothing": {},
    "everything": dict(mask=MASK, starts=STARTS),
    "reverse": dict(mask=MASK, starts=STARTS, reverse=True),
}


def number(ys, state, weights=WEIGHTS):
    """Random cotangents for the outputs and for a part of the final state."""
    return (ys * weights[0]).sum() + (jax.tree.leaves(state)[0] * weights[1]).sum()


def by_hand(params, xs, state, chunk, mask=None, starts=None):
    """A loop over chunks; the gradient of the state stops before each but the first."""
    ys = []
    for first in range(0, len(xs), chunk):
        part = slice(first, first + chunk)
        flags = {"mask": mask, "starts": starts}
        flags = {name: None if a is None else a[part] for name, a in flags.items()}
        state = state if first == 0 else jax.lax.stop_gradient(state)
        state, y = jaxrnn.unroll(DEEP, params, xs[part], state, key=KEY, **flags)
        ys.append(y)
    return state, jnp.concatenate(ys)


def results(run):
    """Outputs and state, and the gradients of parameters, inputs and the state given."""

    def loss(params, xs, state):
        state, ys = run(params, xs, state)
        return number(ys, state), (state, ys)

    graded = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
    (_, out), grads = jax.jit(graded)(PARAMS, XS, STATE)
    floats = lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None
    return out, jax.tree.map(floats, grads)


def close(came, wanted):
    chex.assert_trees_all_close(came, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("chunk", "given"), [(3, "nothing"), (1, "everything"), (3, "everything")]
)
def test_gradients_stop_at_the_seams_and_nothing_else_does(chunk, given):
    """As chunks by hand, the last one shorter; values as in one run."""
    given, cell = GIVEN[given], jaxrnn.truncated(DEEP, chunk)
    came = results(lambda *a: jaxrnn.unroll(cell, *a, key=KEY, **given))
    close(came, results(lambda *a: by_hand(*a, chunk, **given)))
    whole = results(lambda *a: jaxrnn.unroll(DEEP, *a, key=KEY, **given))
    close(came[0], whole[0])
    apart = jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), came[1], whole[1]))
    assert max(apart) > 1e-3


@pytest.mark.parametrize(("chunk", "given"), [(T, "everything"), (100, "reverse")])
def test_one_chunk_is_the_cell(chunk, given):
    """No seam, so gradients are those of the whole too."""
    run = lambda cell: results(lambda *a: jaxrnn.unroll(cell, *a, key=KEY, **GIVEN[given]))
    close(run(jaxrnn.truncated(DEEP, chunk)), run(DEEP))


def test_in_reverse_chunks_are_counted_from_the_end():
    """Values as in one run, cuts at seams included; gradients those of the sequence turned."""
    cell = jaxrnn.truncated(DEEP, 2)
    came = results(lambda *a: jaxrnn.unroll(cell, *a, key=KEY, **GIVEN["reverse"]))
    whole = results(lambda *a: jaxrnn.unroll(DEEP, *a, key=KEY, **GIVEN["reverse"]))
    close(came[0], whole[0])

    def turned(params, xs, state):
        state, ys = by_hand(params, xs[::-1], state, 2, MASK[::-1])
        return state, ys[::-1]

    came = results(lambda *a: jaxrnn.unroll(cell, *a, key=KEY, mask=MASK, reverse=True))
    close(came, results(turned))


def test_a_cotangent_reaches_back_to_its_seam():
    """And a start inside a chunk lets the gradient of a learned initial state through."""
    cell = jaxrnn.truncated(jaxrnn.learned_state(jaxrnn.lstm(3)), 3)
    params = cell.init(KEY, INPUTS)

    def of(t, starts):
        loss = lambda params, xs: jaxrnn.unroll(cell, params, xs, starts=starts)[1][t].sum()
        grads = jax.jit(jax.grad(loss, (0, 1)))(params, XS)
        return [bool(g.any()) for g in grads[1]], bool(grads[0]["state"]["0"].any())

    never, starts = np.zeros((2, T, B), bool)
    starts[4] = True
    assert of(2, never) == ([True] * 3 + [False] * 4, True)
    assert of(5, never) == ([False] * 3 + [True] * 3 + [False], False)
    assert of(5, starts) == ([False] * 4 + [True] * 2 + [False], True)


def test_a_stream_of_steps_is_the_run():
    """And of chunks, each given the state of the one before."""
    cell = jaxrnn.truncated(DEEP, 3)
    wanted = jaxrnn.unroll(cell, PARAMS, XS)
    state, ys = cell.initial_state(PARAMS, (B,)), []
    for x in XS:
        state, y = cell.step(PARAMS, state, x)
        ys.append(y)
    close((state, jnp.stack(ys)), wanted)
    state, ys = None, []
    for part in (XS[:3], XS[3:6], XS[6:]):
        state, y = jaxrnn.unroll(cell, PARAMS, part, state)
        ys.append(y)
    close((state, jnp.concatenate(ys)), wanted)


def test_every_chunk_keeps_its_kernel():
    explained = jaxrnn.explain(jaxrnn.truncated(jaxrnn.lstm(3), 2), PARAMS["0"], jnp.array(XS))
    bare = [jaxrnn.explain(jaxrnn.lstm(3), PARAMS["0"], jnp.array(XS[:n])) for n in (2, 1)]
    assert explained.choices == bare[0].choices + bare[1].choices


def test_what_needs_the_whole_sequence_has_no_chunks():
    cell = jaxrnn.truncated(jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(3))), 2)
    with pytest.raises(ValueError, match="bidirectional has no step"):
        jaxrnn.unroll(cell, cell.init(KEY, INPUTS), XS)
    inside = jaxrnn.bidirectional(jaxrnn.truncated(jaxrnn.gru(3), 2))
    params = inside.init(KEY, INPUTS)
    whole = jaxrnn.unroll(jaxrnn.bidirectional(jaxrnn.gru(3)), params, XS, starts=STARTS)
    close(jaxrnn.unroll(inside, params, XS, starts=STARTS), whole)


def test_burn_in_makes_the_state_alone():
    """The recipe of the docstring: a state, of which nothing flows back."""

    def loss(params, xs):
        state, _ = jaxrnn.unroll(DEEP, params, xs[:3])
        return (jaxrnn.unroll(DEEP, params, xs[3:], jax.lax.stop_gradient(state))[1] ** 2).sum()

    state = jaxrnn.unroll(DEEP, PARAMS, XS[:3])[0]
    rest = lambda params: (jaxrnn.unroll(DEEP, params, XS[3:], state)[1] ** 2).sum()
    grads, of_xs = jax.grad(loss, (0, 1))(PARAMS, XS)
    close(grads, jax.grad(rest)(PARAMS))
    assert not of_xs[:3].any() and of_xs[3:].any((1, 2)).all()


def test_dones_run_episode_by_episode():
    """Two environments, chunks with the state carried, an end at the seam: episodes alone."""
    dones = np.zeros((8, 2), bool)
    dones[[1, 2, 3, 3, 7], [0, 1, 0, 1, 0]] = True
    cell = jaxrnn.gru(3)
    params, xs = cell.init(KEY, INPUTS), jnp.array(RNG.normal(size=(8, 2, INPUTS)))
    state, before, ys = None, True, []
    for part in (slice(0, 4), slice(4, 8)):
        starts = jaxrnn.from_dones(dones[part], before)
        state, y = jaxrnn.unroll(cell, params, xs[part], state, starts=starts)
        ys, before = [*ys, y], dones[part][-1]
    ys = jnp.concatenate(ys)
    for row, ends in enumerate(((2, 4, 8), (3, 4, 8))):
        for first, last in zip((0, *ends), ends):
            alone = jaxrnn.unroll(cell, params, xs[first:last, row])[1]
            close(ys[first:last, row], alone)


@pytest.mark.parametrize("before", (True, False))
def test_starts_of_dones(before):
    for shape in ((5,), (0,), (1, 2), (4, 2, 3)):
        dones = RNG.random(shape) < 0.5
        starts = jax.jit(jaxrnn.from_dones, static_argnums=1)(dones, before)
        wanted = np.concatenate([np.full((1, *shape[1:]), before), dones])[: shape[0]]
        assert starts.dtype == bool and np.array_equal(starts, wanted)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: jaxrnn.truncated(jaxrnn.lstm, 2), TypeError, "truncated: got lstm, want a Cell"),
        (lambda: jaxrnn.truncated(DEEP, 0), ValueError, "chunk: got 0, want 1 or more"),
        (lambda: jaxrnn.from_dones([True], True), TypeError, "dones: got list, want a bool array"),
        (lambda: jaxrnn.from_dones(XS, True), TypeError, "dones: got float64, want bool"),
        (lambda: jaxrnn.from_dones(MASK[0, 0], True), ValueError, "dones: got shape ()"),
        (lambda: jaxrnn.from_dones(MASK, 1), TypeError, "before: got int, want a bool array"),
        (lambda: jaxrnn.from_dones(MASK, MASK), ValueError, r"before: got shape \(7, 3\)"),
    ],
)
def test_errors(call, error, said):
    with pytest.raises(error, match=said):
        call()
