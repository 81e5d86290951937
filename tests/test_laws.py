"""The law of every cell: one step and the whole sequence agree, whatever is masked or cut."""

import functools
import itertools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from cases import (
    ATTENTION,
    BASE,
    CELLS,
    FASTER,
    FEW_SHAPES,
    FUSED,
    MADE_OF_OTHERS,
    REFERENCE,
    ROWS,
    SHAPES,
    STEPS,
    TOLERANCE,
)
from interpreted import interpreted

import jaxrnn
from jaxrnn.dtypes import promoted
from jaxrnn.recurrence.xla import _SLOW_WIDTHS
from jaxrnn.scan import select

FLAGS = tuple(itertools.product((False, True), repeat=3))
pytestmark = pytest.mark.usefixtures("x64")
every_cell = pytest.mark.parametrize("name", CELLS)
THOROUGH = tuple(name for name, case in CELLS.items() if name not in ROWS or case.alone)
either_way = pytest.mark.parametrize(
    ("name", "reverse"),
    [(n, reverse) for n in CELLS for reverse in ((False, True) if n in THOROUGH else (True,))],
)


def shapes_of(name):
    """All where a cell goes through time in a way of its own; what is made of such takes turns.

    So do all cells on a newer jax than the oldest, as it takes twice as long to compile.
    """
    if name in MADE_OF_OTHERS or (name in THOROUGH and not cases.OLDEST):
        return FEW_SHAPES + SHAPES[tuple(CELLS).index(name) % 3 :: 3]
    return SHAPES if name in THOROUGH else FEW_SHAPES


every_shape = pytest.mark.parametrize(
    ("name", "implementation", "shape"),
    [(*pair, shape) for pair in FASTER for shape in dict.fromkeys(shapes_of(pair[0]))],
    ids=str,
)


def options(example, *, mask=True, starts=True, reverse=False, lengths=False):
    return dict(
        lengths=example.lengths if lengths else None,
        mask=example.mask if mask else None,
        starts=example.starts if starts else None,
        reverse=reverse,
        key=example.key,
    )


_static = ("cell", "reverse", "implementation")


@functools.partial(jax.jit, static_argnames=_static)
def unroll(cell, *arrays, **options):
    return jaxrnn.unroll(cell, *arrays, **options)


@functools.partial(jax.jit, static_argnames=_static)
def value_and_grads(cell, moving, weights, **options):
    """``(state, ys)`` and the gradients of ``moving``, (params, xs, state), with ``weights``."""

    def loss(params, xs, state):
        out = jaxrnn.unroll(cell, params, xs, state, **options)
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(cases.floating(out)), strict=True)
        total = jnp.zeros(())
        for weight, value in pairs:
            total += (weight * value).real.sum().astype(total.dtype)
        return total, out

    run = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
    (_, out), grads = run(*moving)
    return out, cases.floating(grads)


def weights_of(cell, moving, key):
    """Random ones for ``value_and_grads``; a step tells their shapes sooner than ``unroll``."""
    params, xs, state = moving
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    state, y = jax.eval_shape(cell.step, params, state, x, key)
    return cases.cotangents((state, jax.ShapeDtypeStruct((len(xs), *y.shape), y.dtype)))


@functools.partial(jax.jit, static_argnums=0)
def _step(cell, *args):
    return cell.step(*args)


def literally(cell, params, xs, state, *, mask, starts, reverse, key, lengths=None):
    """The law, word for word: a Python loop over ``cell.step``."""
    steps, *batch, _ = xs.shape
    real = np.ones(xs.shape[:-1], bool) if mask is None else np.array(mask)
    if lengths is not None:
        real &= np.arange(steps).reshape(-1, *(1 for _ in batch)) < np.array(lengths)
    fresh = np.zeros_like(real) if starts is None else np.array(starts)
    initial = cell.initial_state(params, tuple(batch))
    state = initial if state is None else state
    ys = [None] * steps
    crossed = np.zeros(tuple(batch), bool)
    for t in reversed(range(steps)) if reverse else range(steps):
        back = fresh[t]
        if reverse:  # a cut that was crossed acts at the next real step
            back = crossed & real[t]
            crossed = (crossed & ~real[t]) | fresh[t]
        state = select(jnp.array(back), initial, state)
        new, y = _step(cell, params, state, select(jnp.array(real[t]), xs[t], 0), key)
        state = select(jnp.array(real[t]), new, state)
        ys[t] = select(jnp.array(real[t]), y, 0)
    return state, jnp.stack(ys)


@pytest.mark.parametrize(
    ("name", "mask", "starts", "reverse"),
    [(n, *flags) for n in CELLS for flags in (FLAGS if n in THOROUGH else (FLAGS[0], FLAGS[-1]))],
)
def test_unroll_is_the_scan_of_step(name, mask, starts, reverse):
    e = cases.example(CELLS[name])
    given = options(e, mask=mask, starts=starts, reverse=reverse)
    state = None if mask and starts and not reverse else e.state
    wanted = literally(e.cell, e.params, e.xs, state, **given)
    came = unroll(e.cell, e.params, e.xs, state, **given)
    assert cases.error(came, wanted) < 1e-12


def parts(tree):
    """The arrays of a tree, a complex one as two."""
    for a in jax.tree.leaves(tree):
        yield from (a.real, a.imag) if np.iscomplexobj(a) else (a,)


def filled(tree, like):
    """A tree of NumPy's arrays, with zeros in place of None, which stands for counters."""
    fill = lambda a, d: np.zeros(a.shape) if d is None else np.array(d)
    return jax.tree.map(fill, like, tree)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("reverse", (False, True))
def test_the_paper(name, reverse):
    """Every implementation's outputs, final states, directional derivatives: NumPy's to 1e-12."""
    case, e = CELLS[name], cases.example(CELLS[name])
    given, rows = options(e, reverse=reverse) | {"key": None}, range(e.xs.shape[1])
    initial = tuple(map(np.array, parts(e.cell.initial_state(e.params, ()))))

    def by_paper(params, xs, state):
        out = []
        for i in rows:
            flags = np.array(e.mask[:, i]), np.array(e.starts[:, i]), reverse
            now = tuple(s[i] for s in state)
            out.append(truth.run(STEPS[name], params, now, initial, xs[:, i], *flags))
        states, ys = zip(*out)
        return *(np.stack(s) for s in zip(*states)), np.stack(ys, 1)

    moving = (e.params, e.xs, e.state)
    params, xs, state = jax.tree.map(np.array, moving)
    wanted = by_paper(params, xs, tuple(parts(state)))
    weights = weights_of(e.cell, moving, None)
    with interpreted():
        runs = [
            value_and_grads(e.cell, moving, weights, **given, implementation=which)
            for which in (REFERENCE, *case.faster)
        ]
    for came, _ in runs:
        assert cases.error(tuple(map(np.array, parts(came))), wanted) < 1e-12
    # of re and im, what the real part of a product is made of
    by_part = list(parts(jax.tree.map(np.conj, filled(weights, came))))
    direction = filled(cases.cotangents(moving, 2), moving)
    gradients = [jax.tree.leaves(filled(g, moving)) for _, g in runs]
    flat, whole = jax.tree.flatten(direction)
    moves = lambda a: np.issubdtype(a.dtype, np.floating)
    for leaf, kind in enumerate(jax.tree.leaves(moving)):  # along one array at a time
        if not moves(kind):
            continue
        along = whole.unflatten([d if i == leaf else 0 * d for i, d in enumerate(flat)])
        *bent, bent_state = jax.tree.map(
            lambda a, d: a + 1j * truth.TINY * d if moves(a) else a,
            (params, xs, state), along,
        )  # fmt: skip
        pieces = [
            part
            for a, plain in zip(jax.tree.leaves(bent_state), jax.tree.leaves(state))
            for part in ((a.real, a.imag) if np.iscomplexobj(plain) else (a,))
        ]
        slope = [a.imag / truth.TINY for a in by_paper(*bent, tuple(pieces))]
        wanted = sum(float((w * s).sum()) for w, s in zip(by_part, slope, strict=True))
        came = [float((g[leaf] * jax.tree.leaves(along)[leaf]).sum()) for g in gradients]
        assert all(abs(c - wanted) < 1e-12 * max(1, abs(wanted)) for c in came), (came, wanted)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("reverse", (False, True))
def test_the_textbook(name, reverse):
    """Attention's outputs: NumPy's to 1e-12."""
    e = cases.example(CELLS[name])
    params, xs, mask, starts = jax.tree.map(np.array, (e.params, e.xs, e.mask, e.starts))
    wanted = [
        CELLS[name].truth(params, xs[:, i], mask[:, i], starts[:, i], reverse)
        for i in range(xs.shape[1])
    ]
    came = jaxrnn.unroll(e.cell, e.params, e.xs, **options(e, reverse=reverse))[1]
    assert cases.error(came, np.stack(wanted, 1)) < 1e-12


@every_shape
def test_every_implementation_every_shape(name, shape, implementation):
    """Outputs, states and gradients of everything equal the reference's."""
    e = cases.example(CELLS[name], shape)
    for reverse in (False, True) if shape is BASE else (False,):
        given = options(e, reverse=reverse)
        agree(e, given, implementation, e.params, e.xs, e.state, TOLERANCE["float64"])


@pytest.mark.parametrize("name", ("gru", "mgu", "lstm", "gru_states"))
@pytest.mark.parametrize("hidden", _SLOW_WIDTHS)
def test_products_taken_at_once(name, hidden):
    """On a CPU, few rows of these widths take their products in another arrangement."""
    e = cases.example(CELLS[name], cases.Shape(2, (3,), 2, hidden))
    agree(e, options(e), "xla", e.params, e.xs, e.state, TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("name", "implementation"), [pair for pair in FASTER if pair[0] in THOROUGH]
)
@pytest.mark.parametrize("given", ("nothing", "lengths", "mask", "starts"))
def test_every_implementation_every_option(name, implementation, given):
    """The paths without masks and resets are others than those with them."""
    e = cases.example(CELLS[name])
    flags = {"mask": False, "starts": False} | ({} if given == "nothing" else {given: True})
    for reverse in (False, True) if given in ("nothing", "starts") else (True,):
        chosen = options(e, **flags, reverse=reverse)
        agree(e, chosen, implementation, e.params, e.xs, e.state, TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("name", "implementation"),
    (*((name, REFERENCE) for name in FUSED if name in THOROUGH), *FASTER),
)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_every_type(name, implementation, dtype):
    """Against float64 with the same numbers; bfloat16 inputs and outputs with float32 weights."""
    several = implementation != REFERENCE and name in THOROUGH
    for shape in (BASE, SHAPES[-1]) if several else (BASE,):
        e = cases.example(CELLS[name], shape, dtype=jnp.float32)
        xs = e.xs.astype(dtype)
        agree(e, options(e), implementation, e.params, xs, e.state, TOLERANCE[dtype])


def wide(tree):
    return jax.tree.map(
        lambda a: (
            np.asarray(a).astype(promoted(a.dtype, jnp.dtype("float64")))
            if jnp.issubdtype(a.dtype, jnp.inexact)
            else a
        ),
        tree,
    )


@interpreted()
def agree(e, given, implementation, params, xs, state, tolerance):
    """Results and gradients are those of the reference in float64, and of the right type."""
    moving = params, xs, state
    weights = weights_of(e.cell, moving, given["key"])
    wanted, wanted_grads = value_and_grads(
        e.cell, wide(moving), wide(weights), **given, implementation=REFERENCE
    )
    came, came_grads = value_and_grads(
        e.cell, moving, weights, **given, implementation=implementation
    )
    chex.assert_trees_all_equal_dtypes(came, (state, xs))
    chex.assert_trees_all_equal_dtypes(came_grads, cases.floating(moving))
    assert cases.error(came, wanted) < tolerance[0]
    assert cases.error(came_grads, wanted_grads) < tolerance[1]


@either_way
def test_two_halves_are_one_run(name, reverse):
    e = cases.example(CELLS[name])
    given = options(e, reverse=reverse)
    # A cut at the seam would have to be handed on by whoever cuts there.
    given["starts"] = given["starts"].at[3].set(False)
    wanted = unroll(e.cell, e.params, e.xs, e.state, **given)
    state, ys = e.state, []
    halves = (slice(0, 3), slice(3, None))
    if reverse:
        given["mask"] = given["mask"].at[3].set(True)  # or a cut before could wait beyond the seam
        wanted = unroll(e.cell, e.params, e.xs, e.state, **given)
    for half in reversed(halves) if reverse else halves:
        part = given | {"mask": given["mask"][half], "starts": given["starts"][half]}
        state, y = unroll(e.cell, e.params, e.xs[half], state, **part)
        ys.append(y)
    ys = jnp.concatenate(ys[::-1] if reverse else ys)
    assert cases.error((state, ys), wanted) < 1e-12


@every_cell
def test_vmap_is_the_batch(name):
    e = cases.example(CELLS[name], cases.Shape(5, (3, 2), 3, 6))
    given = options(e)
    given["key"] = None  # a draw depends on the row
    wanted = unroll(e.cell, e.params, e.xs, e.state, **given)

    def one(xs, state, mask, starts):
        return jaxrnn.unroll(
            e.cell, e.params, xs, state, **(given | {"mask": mask, "starts": starts})
        )

    rows = jax.jit(jax.vmap(jax.vmap(one, (1, 0, 1, 1), (0, 1)), (1, 0, 1, 1), (0, 1)))
    assert cases.error(rows(e.xs, e.state, e.mask, e.starts), wanted) < 1e-12


@either_way
def test_lengths_cut_each_row(name, reverse):
    """A row of some length is the row cut to that length, run alone."""
    e = cases.example(CELLS[name])
    given = dict(reverse=reverse, key=None)
    state, ys = unroll(e.cell, e.params, e.xs, e.state, lengths=e.lengths, **given)
    for i, length in enumerate(e.lengths.tolist()):
        row = jax.tree.map(lambda s: s[i], e.state)  # noqa: B023
        wanted = unroll(e.cell, e.params, e.xs[:length, i], row, **given)
        came = jax.tree.map(lambda s: s[i], state), ys[:length, i]  # noqa: B023
        assert cases.error(came, wanted) < 1e-12
        assert (ys[length:, i] == 0).all()


@either_way
def test_episodes_run_alone(name, reverse):
    """Every episode between two starts is itself run from the initial state."""
    e = cases.example(CELLS[name], cases.Shape(7, (), 3, 6))
    starts = jnp.array([False, False, True, False, False, True, False])
    ys = unroll(e.cell, e.params, e.xs, starts=starts, reverse=reverse)[1]
    parts = [
        unroll(e.cell, e.params, part, reverse=reverse)[1]
        for part in (e.xs[:2], e.xs[2:5], e.xs[5:])
    ]
    assert cases.error(ys, jnp.concatenate(parts)) < 1e-12


@pytest.mark.parametrize("inner", ("lstm", "gru_reset_before", "attention_window", "stack"))
@pytest.mark.parametrize("merge", ("concat", "sum", "mean", jnp.maximum))
def test_bidirectional_is_two_runs(inner, merge):
    case = CELLS[inner]
    cell = jaxrnn.bidirectional(case.make(6), jaxrnn.gru(6), merge=merge)
    e = cases.example(cases.Case(lambda h: cell))
    functions = {
        "concat": lambda a, b: jnp.concatenate([a, b], -1),
        "sum": jnp.add,
        "mean": lambda a, b: (a + b) / 2,
    }
    function = functions.get(merge, merge) if isinstance(merge, str) else merge
    for given in (dict(lengths=e.lengths), dict(mask=e.mask, starts=e.starts)):
        state, ys = unroll(cell, e.params, e.xs, e.state, **given)
        first, ahead = unroll(case.make(6), e.params["forward"], e.xs, e.state[0], **given)
        second, back = unroll(
            jaxrnn.gru(6), e.params["backward"], e.xs, e.state[1], reverse=True, **given
        )
        assert cases.error((state, ys), ((first, second), function(ahead, back))) < 1e-12


@every_cell
def test_traced_once(name):
    """An equal cell made anew is the same static argument; a step in a loop is traced once."""
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(cell, params, xs):
        traced.append(cell)
        return jaxrnn.unroll(cell, params, xs)[1]

    e = cases.example(CELLS[name])
    for cell in (e.cell, e.cell, CELLS[name].make(6)):
        run(cell, e.params, e.xs)
    assert len(traced) == (1 if name != "smooth" else 2)  # made of new functions each time


@pytest.mark.parametrize("name", [n for n in CELLS if n != "smooth"])
def test_a_cell_is_the_call_that_made_it(name):
    import pickle

    cell, other = CELLS[name].make(6), CELLS[name].make(12)
    again = CELLS[name].make(6)
    assert cell == again and hash(cell) == hash(again) and cell != other
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert repr(cell) == repr(again) != repr(other)


@pytest.mark.parametrize("per", ("step", "sequence"))
def test_dropout(per):
    cell = jaxrnn.dropout(0.25, per=per)
    xs = jnp.ones((50, 4, 100))
    ys = np.array(jaxrnn.unroll(cell, {}, xs, key=jax.random.key(0))[1])
    assert set(np.unique(ys)) == {0.0, 1 / 0.75}
    assert abs((ys == 0).mean() - 0.25) < (0.02 if per == "step" else 0.08)
    same_over_time = (ys == ys[:1]).all()
    assert same_over_time == (per == "sequence")
    assert len({row.tobytes() for row in ys[0]}) == 4, "rows draw apart"
    other = jaxrnn.unroll(cell, {}, xs, key=jax.random.key(1))[1]
    assert (np.array(other) != ys).any()
    assert (np.array(jaxrnn.unroll(cell, {}, xs)[1]) == 1).all(), "no key is evaluation"
