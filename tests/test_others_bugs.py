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
    make=lambda h: jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(h)), jaxrnn.project(h)),
    whole=True,
)
SHAPE = Shape(7, (6,), 3, 4)
IMPLEMENTATIONS = [(name, None) for name in CASES]
IMPLEMENTATIONS += [("lstm", REFERENCE), ("attention", REFERENCE)]
every_cell = pytest.mark.parametrize("name", CASES)

given = functools.cache(lambda name: example(CASES[name], SHAPE, dtype=jnp.float32))
unroll = jax.jit(jaxrnn.unroll, static_argnames=("cell", "implementation"))
step = jax.jit(lambda cell, *args: cell.step(*args), static_argnums=0)


@functools.partial(jax.jit, static_argnames=("cell", "implementation"))
def differentiated(cell, params, xs, state, weights, lengths, mask, starts, implementation=None):
    """``(state, ys)``, their product with ``weights``, and its gradients.

    Flags are arrays and what is left out has weights of zero: so one program serves most tests of
    a cell.
    """

    def loss(params, xs, state):
        out = jaxrnn.unroll(
            cell,
            params,
            xs,
            state,
            lengths=lengths,
            mask=mask,
            starts=starts,
            implementation=implementation,
        )
        pairs = zip(jax.tree.leaves(floating(out)), jax.tree.leaves(weights), strict=True)
        return sum((a.astype(float) * w.astype(float)).sum() for a, w in pairs), out

    (total, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)(
        params, xs, state
    )
    return out, total, floating(grads)


def run(e, *, xs=None, params=None, state=None, weights=None, implementation=None, **flags):
    """``differentiated``, of an example's arrays and no flag but those given."""
    params, xs = e.params if params is None else params, e.xs if xs is None else xs
    steps, *batch = xs.shape[:-1]
    flags = dict(
        lengths=np.full(batch, steps, np.int32),
        mask=np.ones((steps, *batch), bool),
        starts=np.zeros((steps, *batch), bool),
    ) | {name: np.array(flag) for name, flag in flags.items()}
    state = initial(e) if state is None else state
    weights = weights_of(e, xs.dtype) if weights is None else weights
    return differentiated(
        e.cell, params, xs, state, weights, **flags, implementation=implementation
    )


def initial(e):
    return _initial(e.cell, e.params, e.xs.shape[1:-1])


_initial = jax.jit(lambda cell, *args: cell.initial_state(*args), static_argnums=(0, 2))


def weights_of(e, dtype):
    """Random weights for an example's state and outputs, these of a type."""
    ys = jax.ShapeDtypeStruct((*e.xs.shape[:-1], 4), dtype)
    return cotangents((e.state, ys))


def same_bits(came, wanted):
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (came, wanted)), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@every_cell
def test_a_row_of_length_zero_keeps_its_state(name):
    """Flax returns the state after all of the padding."""
    e = given(name)
    empty = np.flatnonzero(e.lengths == 0)[0]
    for before in (e.state, initial(e)):
        (after, _), *_ = run(e, state=before, lengths=e.lengths)
        both = jax.tree.map(np.asarray, (after, before))
        pairs = [jax.tree.map(lambda a, i=i: a[i], both) for i in (empty, 0)]
        assert same_bits(*pairs[0]) and not same_bits(*pairs[1])


@pytest.mark.parametrize("name, implementation", IMPLEMENTATIONS)
def test_nan_in_padding_changes_no_bit(name, implementation):
    """In Flax and Keras it comes through in the gradients, if not in the outputs."""
    e = given(name)
    flags = dict(lengths=e.lengths, mask=e.mask, starts=e.starts)
    real = np.array(e.mask) & (np.arange(SHAPE.steps)[:, None] < np.array(e.lengths))

    def found(junk):
        xs = np.where(real[..., None], e.xs, np.float32(junk))
        out, _, grads = run(e, xs=xs, state=e.state, implementation=implementation, **flags)
        return grads, out

    clean = found(0.0)
    for junk in (np.nan, np.inf, -1e30):
        assert same_bits(found(junk), clean), junk
    d_xs = np.array(clean[0][1])
    assert np.isfinite(d_xs).all() and d_xs[real].any() and not d_xs[~real].any()


@every_cell
def test_outputs_in_padding_are_zero(name):
    """In Flax they are whatever the cell makes of the padding."""
    e = given(name)
    (_, ys), *_ = run(e, state=e.state, mask=e.mask)
    ys, mask = np.array(ys), np.array(e.mask)
    assert same_bits(ys[~mask], np.zeros_like(ys[~mask]))
    assert (ys[mask] != 0).any(-1).all()


@pytest.mark.parametrize(
    "name, dtype", [*((name, "bfloat16") for name in CASES), ("lstm", "float16")]
)
def test_half_precision_stays_half(name, dtype):
    """Flax fails in its scan, or silently computes in float32."""
    e = given(name)
    half = jax.tree.map(lambda a: np.asarray(a).astype(dtype), (e.params, e.xs))
    weights = weights_of(e, dtype)
    came, _, gradients = differentiated(e.cell, *half, None, weights, None, None, None)
    wide = lambda tree: jax.tree.map(lambda a: a.astype(np.float32), tree)
    params, xs = wide(half)
    wanted, _, wanted_gradients = run(e, params=params, xs=xs, weights=wide(weights))
    state, ys = came
    assert {a.dtype.name for a in jax.tree.leaves((ys, gradients))} == {dtype}
    assert {a.dtype.name for a in jax.tree.leaves(floating(state))} == {"float32"}
    assert error(floating(came), floating(wanted)) < TOLERANCE["bfloat16"][0]
    assert error(gradients[:2], wanted_gradients[:2]) < TOLERANCE["bfloat16"][1]


@every_cell
def test_two_batch_axes_with_lengths(name):
    """Flax takes one."""
    e = given(name)
    split = lambda a, at: np.asarray(a).reshape(*a.shape[:at], 2, 3, *a.shape[at + 1 :])
    flags = {
        "lengths": split(e.lengths, 0),
        "mask": split(e.mask, 1),
        "starts": split(e.starts, 1),
    }
    state = jax.tree.map(lambda a: split(a, 0), e.state)
    after, ys = unroll(e.cell, e.params, split(e.xs, 1), state, **flags)
    wanted, *_ = run(e, state=e.state, lengths=e.lengths, mask=e.mask, starts=e.starts)
    wanted = jax.tree.map(lambda a: split(a, 0), wanted[0]), split(wanted[1], 1)
    assert error((after, ys), wanted) < TOLERANCE["float32"][0]


@every_cell
def test_no_nan_crosses_an_episode_reset(name):
    """A reset by multiplying with zero lets it through."""
    e = given(name)
    nan = lambda a: a * np.nan if a.dtype == np.float32 else a
    xs = np.array(e.xs)
    both = name == "bidirectional"  # states of both ends
    state, ys = weights_of(e, np.float32)
    ys[:3] = 0
    weights = (jax.tree.map(lambda a: 0 * a, state) if both else state), ys
    starts, alone = np.zeros((2, *e.mask.shape), bool)
    starts[3], alone[3:] = True, True

    def everything(xs, state, **flag):
        (after, ys), _, (_, d_xs, _) = run(e, xs=xs, state=state, weights=weights, **flag)
        out = ys[3:] if both else (floating(after), ys[3:])
        return out, d_xs[3:]

    after_nan = np.concatenate([nan(xs[:3]), xs[3:]])
    before = None if both else jax.tree.map(nan, e.state)
    came, wanted = everything(after_nan, before, starts=starts), everything(xs, None, mask=alone)
    assert error(came, wanted) < TOLERANCE["float32"][1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, implementation", IMPLEMENTATIONS)
def test_gradient_through_the_final_state_alone(name, implementation):
    """A kernel that leaves it out trains on the outputs only. Truth: differences."""
    e = example(CASES[name], SHAPE)
    moving = (e.params, e.xs)
    along = cotangents(moving, seed=2)
    state, ys = weights_of(e, e.xs.dtype)

    def found(params, xs):
        _, total, grads = run(
            e,
            params=params,
            xs=xs,
            weights=(state, 0 * ys),
            lengths=e.lengths,
            implementation=implementation,
        )
        return float(total), grads

    _, gradients = found(*moving)
    for i, gradient in enumerate(gradients[:2]):

        def at(size, i=i):
            moved = jax.tree.map(lambda a, d: np.asarray(a) + size * d, moving[i], along[i])
            return found(moved, e.xs)[0] if i == 0 else found(e.params, moved)[0]

        wanted = (at(1e-5) - at(-1e-5)) / 2e-5
        came = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, along[i])))
        assert abs(wanted) > 0.01 and abs(came - wanted) < 1e-7 * abs(wanted)


@pytest.mark.parametrize("window", (None, 3))
def test_a_nan_is_seen_as_long_as_its_step_is(window):
    """A NaN among the keys that a state brings: in the sequence as step by step, no longer."""
    cell = jaxrnn.attention(4, heads=2, window=window, context=8)
    params = cell.init(jax.random.key(0), 3)
    xs = np.random.default_rng(1).normal(size=(7, 2, 3)).astype(np.float32)
    xs[1, 0] = np.nan
    state, _ = unroll(cell, params, xs[:2])
    bad = np.isnan(unroll(cell, params, xs[2:], state)[1]).any(-1)
    stepped = []
    for x in xs[2:]:
        state, y = step(cell, params, state, x)
        stepped.append(np.isnan(y).any(-1).tolist())
    assert bad.tolist() == stepped
    assert bad[:, 0].tolist() == ([True] * 5 if window is None else [True] * 2 + [False] * 3)
