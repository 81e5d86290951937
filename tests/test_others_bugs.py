"""What goes wrong in other libraries, and does not here: a test each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, REFERENCE, TOLERANCE, Shape, cotangents, error, example, floating

import jaxrnn

NAMES = ("lstm", "gru_states", "gru_reset_before", "attention", "attention_window")
CASES = {name: CELLS[name] for name in (*NAMES, "transformer_block")}
CASES["bidirectional"] = CELLS["lstm"]._replace(
    make=lambda h: jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(h)), jaxrnn.project(h)), whole=True
)
SHAPE = Shape(7, (5,), 3, 4)
IMPLEMENTATIONS = [(name, None) for name in CASES]
IMPLEMENTATIONS += [("lstm", REFERENCE), ("attention", REFERENCE)]
every_cell = pytest.mark.parametrize("name", CASES)

given = functools.cache(lambda name: example(CASES[name], SHAPE, dtype=jnp.float32))
unroll = jax.jit(jaxrnn.unroll, static_argnames=("cell", "implementation"))


def weighted(out):
    """A number to differentiate that everything in ``out`` goes into."""
    pairs = zip(*(jax.tree.leaves(tree) for tree in (floating(out), cotangents(out))), strict=True)
    return sum((a.astype(float) * b.astype(float)).sum() for a, b in pairs)


def same_bits(came, wanted):
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (came, wanted)), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@every_cell
def test_a_row_of_length_zero_keeps_its_state(name):
    """Flax returns the state after all of the padding."""
    e = given(name)
    initial = e.cell.initial_state(e.params, SHAPE.batch)
    empty = np.flatnonzero(e.lengths == 0)[0]
    for state, before in ((e.state, e.state), (None, initial)):
        after, _ = unroll(e.cell, e.params, e.xs, state, lengths=e.lengths)
        pairs = [jax.tree.map(lambda a, i=i: a[i], (after, before)) for i in (empty, 0)]
        assert same_bits(*pairs[0]) and not same_bits(*pairs[1])


@pytest.mark.parametrize("name, implementation", IMPLEMENTATIONS)
def test_nan_in_padding_changes_no_bit(name, implementation):
    """In Flax and Keras it comes through in the gradients, if not in the outputs."""
    e = given(name)
    real = e.mask & (jnp.arange(SHAPE.steps)[:, None] < e.lengths[None])

    def loss(params, xs, state):
        out = unroll(
            e.cell, params, xs, state, lengths=e.lengths, mask=e.mask, starts=e.starts,
            implementation=implementation,
        )  # fmt: skip
        return weighted(out), out

    gradient = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True, allow_int=True))

    def run(junk):
        return gradient(e.params, jnp.where(real[..., None], e.xs, junk), e.state)

    clean = run(0.0)
    for junk in (jnp.nan, jnp.inf, -1e30):
        assert same_bits(run(junk), clean), junk
    d_xs = clean[0][1]
    assert np.isfinite(d_xs).all() and d_xs[real].any() and not d_xs[~real].any()


@every_cell
def test_outputs_in_padding_are_zero(name):
    """In Flax they are whatever the cell makes of the padding."""
    e = given(name)
    _, ys = unroll(e.cell, e.params, e.xs, e.state, mask=e.mask)
    assert same_bits(ys[~e.mask], jnp.zeros_like(ys[~e.mask]))
    assert (ys[e.mask] != 0).any(-1).all()


@pytest.mark.parametrize(
    "name, dtype", [*((name, "bfloat16") for name in CASES), ("lstm", "float16")]
)
def test_half_precision_stays_half(name, dtype):
    """Flax fails in its scan, or silently computes in float32."""
    e = given(name)
    half = jax.tree.map(lambda a: a.astype(dtype), (e.params, e.xs))

    def loss(params, xs):
        out = unroll(e.cell, params, xs)
        return weighted(out), out

    run = jax.grad(loss, (0, 1), has_aux=True)
    (gradients, came), (wanted_gradients, wanted) = (
        run(*given) for given in (half, jax.tree.map(lambda a: a.astype(jnp.float32), half))
    )
    state, ys = came
    assert {a.dtype.name for a in jax.tree.leaves((ys, gradients))} == {dtype}
    assert {a.dtype.name for a in jax.tree.leaves(floating(state))} == {"float32"}
    assert error(floating(came), floating(wanted)) < TOLERANCE["bfloat16"][0]
    assert error(gradients, wanted_gradients) < TOLERANCE["bfloat16"][1]


@every_cell
def test_two_batch_axes_with_lengths(name):
    """Flax takes one."""
    e = example(CASES[name], Shape(5, (2, 3), 3, 4), dtype=jnp.float32)
    options = dict(lengths=e.lengths, mask=e.mask, starts=e.starts)
    state, ys = unroll(e.cell, e.params, e.xs, e.state, **options)
    for i in np.ndindex(2, 3):
        row = dict(lengths=e.lengths[i], mask=e.mask[:, *i], starts=e.starts[:, *i])
        before, after = (jax.tree.map(lambda a, i=i: a[i], tree) for tree in (e.state, state))
        wanted = unroll(e.cell, e.params, e.xs[:, *i], before, **row)
        assert error((after, ys[:, *i]), wanted) < TOLERANCE["float32"][0]


@every_cell
def test_no_nan_crosses_an_episode_reset(name):
    """A reset by multiplying with zero lets it through."""
    e = given(name)
    nan, nan_state = jax.tree.map(
        lambda a: a * jnp.nan if a.dtype == jnp.float32 else a, (e.xs, e.state)
    )
    both = name == "bidirectional"  # states of both ends
    starts = jnp.zeros(e.mask.shape, bool).at[3].set(True)

    def after_nan(xs):
        whole = jnp.concatenate([nan[:3], xs])
        state, ys = unroll(e.cell, e.params, whole, None if both else nan_state, starts=starts)
        return state, ys[3:]

    def alone(xs):
        return unroll(e.cell, e.params, xs)

    def everything(run):
        def loss(xs):
            state, ys = run(xs)
            out = ys if both else (state, ys)
            return weighted(out), floating(out)

        return jax.grad(loss, has_aux=True)(e.xs[3:])

    assert error(everything(after_nan), everything(alone)) < TOLERANCE["float32"][1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, implementation", IMPLEMENTATIONS)
def test_gradient_through_the_final_state_alone(name, implementation):
    """A kernel that leaves it out trains on the outputs only. Truth: differences."""
    e = example(CASES[name], SHAPE)
    moving = (e.params, e.xs)
    along = cotangents(moving, seed=2)

    @jax.jit
    def loss(moving):
        state, _ = unroll(e.cell, *moving, lengths=e.lengths, implementation=implementation)
        return weighted(state)

    for i, gradient in enumerate(jax.grad(loss)(moving)):

        def at(size, i=i):
            moved = jax.tree.map(lambda a, d: a + size * d, moving[i], along[i])
            return loss((moved, e.xs) if i == 0 else (e.params, moved))

        wanted = (at(1e-5) - at(-1e-5)) / 2e-5
        came = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, along[i])))
        assert abs(wanted) > 0.01 and abs(came - wanted) < 1e-7 * abs(wanted)


@pytest.mark.parametrize("window", (None, 3))
def test_a_nan_is_seen_as_long_as_its_step_is(window):
    """A NaN among the keys that a state brings: in the sequence as step by step, no longer."""
    cell = jaxrnn.attention(4, heads=2, window=window, context=8)
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (7, 2, 3)).at[1, 0].set(jnp.nan)
    state, _ = jaxrnn.unroll(cell, params, xs[:2])
    bad = jnp.isnan(jaxrnn.unroll(cell, params, xs[2:], state)[1]).any(-1)
    stepped = []
    for x in xs[2:]:
        state, y = cell.step(params, state, x)
        stepped.append(jnp.isnan(y).any(-1))
    assert bad.tolist() == jnp.stack(stepped).tolist()
    assert bad[:, 0].tolist() == ([True] * 5 if window is None else [True] * 2 + [False] * 3)
