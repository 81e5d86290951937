"""The laws of every builder: see ``builders`` for the cells they are tried on, and ``test_rows``.

A sequence may be masked, cut, run in halves or in reverse, row by row or as a batch: it is the
scan of the step.
"""

import builders
import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, REFERENCE, SHAPES, TOLERANCE, USUAL
from laws import (
    fastest,
    hold,
    implementations_of,
    literally,
    options,
    run_each,
    unroll,
    weights_of,
    wide,
)

import jaxrnn
from jaxrnn._src.ops.recurrence.xla import _SLOW_WIDTHS

pytestmark = pytest.mark.usefixtures("x64")
THOROUGH = builders.THOROUGH
every_one = pytest.mark.parametrize("name", THOROUGH)


# Wide ones, and a single step, are for kernels.
SMALL = tuple(shape for shape in SHAPES[1:] if shape.hidden < 8 and shape.steps != 1)


def shapes_of(name):
    """All for the first cell of a builder; the others take turns."""
    shapes = SHAPES[1:] if builders.MADE_BY[name] == "gated" else SMALL
    every = name in builders.FIRST or cases.CHOSEN == "all"
    return shapes if every else shapes[THOROUGH.index(name) % 3 :: 3]


@pytest.mark.parametrize(
    ("name", "shape"), [(name, s) for name in THOROUGH for s in shapes_of(name)], ids=str
)
def test_every_shape(name, shape):
    """Outputs, states and gradients of every implementation."""
    hold(name, shape, fastest(name))


def options_of(name):
    """Flags that are None take paths of their own: in a builder, and in what runs its cells."""
    every = name in builders.FIRST or cases.CHOSEN == "all"
    return ("everything", "mask", "starts", "nothing") if every else ("nothing",)


@pytest.mark.parametrize(
    ("name", "given"), [(name, given) for name in THOROUGH for given in options_of(name)]
)
def test_every_option(name, given):
    """Outputs, states and gradients with each flag, with both, and with none."""
    flags = {n: given in (n, "everything") for n in ("mask", "starts")}
    hold(name, USUAL, fastest(name), **flags, reverse=given == "mask")


def types_of(name):
    every = name in builders.FIRST or builders.MADE_BY[name] == "gated" or cases.CHOSEN == "all"
    return ("float32", "bfloat16") if every else ("bfloat16",)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name in THOROUGH for dtype in types_of(name)]
)
def test_every_type(name, dtype):
    """The numbers of float64 with the same weights, and results of the right types."""
    e = cases.example(CELLS[name], USUAL, dtype=jnp.float32)
    moving = e.params, e.xs.astype(dtype), e.state
    given, which = options(e, reverse=True, key=False), implementations_of(name)
    weights = weights_of(e.cell, moving)
    (wanted, wanted_grads), *_ = run_each(e.cell, wide(moving), wide(weights), which, given)
    for came, grads in run_each(e.cell, moving, weights, which, given):
        chex.assert_trees_all_equal_dtypes(came, (e.state, moving[1]))
        chex.assert_trees_all_equal_dtypes(grads, cases.floating(moving))
        assert cases.error(came, wanted) < TOLERANCE[dtype][0]
        assert cases.error(grads, wanted_grads) < TOLERANCE[dtype][1]


@pytest.mark.parametrize("name", ("gru", "gru_states"))
@pytest.mark.parametrize("hidden", _SLOW_WIDTHS)
def test_products_taken_at_once(name, hidden):
    """On a CPU, few rows of these widths take their products in another arrangement.

    In reverse and without flags: there a backward takes the states before each step from ys.
    """
    e = cases.example(CELLS[name], cases.Shape(2, (3,), 2, hidden))
    moving = e.params, e.xs, e.state
    given = options(e, mask=False, starts=False, reverse=True, key=False)
    both = run_each(e.cell, moving, weights_of(e.cell, moving), ("xla", REFERENCE), given)
    assert cases.error(*both) < 1e-12


@every_one
@pytest.mark.parametrize("reverse", (False, True))
def test_what_must_not_matter(name, reverse):
    """Flags are those of the scan of the step; two halves are one run; lengths cut each row."""
    e = cases.example(CELLS[name], USUAL)
    given = options(e, reverse=reverse)
    wanted = literally(e.cell, e.params, e.xs, e.state, **given)
    came = unroll(e.cell, e.params, e.xs, e.state, **given)
    assert cases.error(came, wanted) < 1e-12, "flags"

    given = options(e, reverse=reverse)
    # A cut at the chunk boundary would have to be handed on by whoever cuts there.
    given["starts"] = given["starts"].at[3].set(False)
    if reverse:
        given["mask"] = given["mask"].at[3].set(True)  # or a cut before could wait beyond it
    wanted = literally(e.cell, e.params, e.xs, e.state, **given)
    state, ys = e.state, []
    halves = (slice(0, 3), slice(3, None))
    for half in reversed(halves) if reverse else halves:
        part = given | {"mask": given["mask"][half], "starts": given["starts"][half]}
        state, y = unroll(e.cell, e.params, e.xs[half], state, **part)
        ys.append(y)
    ys = jnp.concatenate(ys[::-1] if reverse else ys)
    assert cases.error((state, ys), wanted) < 1e-12, "halves"

    given = options(e, mask=False, starts=False, lengths=True, reverse=reverse)
    state, ys = unroll(e.cell, e.params, e.xs, e.state, **given)
    assert cases.error((state, ys), literally(e.cell, e.params, e.xs, e.state, **given)) < 1e-12
    beyond = np.arange(len(e.xs)).reshape(-1, 1, 1) >= np.array(e.lengths)
    assert (np.array(ys)[beyond] == 0).all(), "lengths"


@every_one
def test_a_row_is_itself_alone(name):
    """The batch is ``vmap`` of its rows, and an episode is a run of its own."""
    e = cases.example(CELLS[name], USUAL)
    given = options(e, key=False)  # a draw depends on the row
    wanted = literally(e.cell, e.params, e.xs, e.state, **given)

    def one(xs, state, mask, starts):
        return jaxrnn.unroll(
            e.cell, e.params, xs, state, **(given | {"mask": mask, "starts": starts})
        )

    rows = jax.jit(jax.vmap(jax.vmap(one, (1, 0, 1, 1), (0, 1)), (1, 0, 1, 1), (0, 1)))
    assert cases.error(rows(e.xs, e.state, e.mask, e.starts), wanted) < 1e-12, "vmap"

    steps = np.arange(len(e.xs)).reshape(-1, 1, 1)
    whole = np.ones(e.mask.shape, bool)
    cut = np.broadcast_to(np.isin(steps, (2, 5)), e.mask.shape)
    given = options(e, key=False) | {"mask": whole, "starts": cut}
    ys = unroll(e.cell, e.params, e.xs, **given)[1]
    for first, last in ((0, 2), (2, 5), (5, 6)):
        alone = given | {"mask": whole & (first <= steps) & (steps < last), "starts": ~whole}
        wanted = literally(e.cell, e.params, e.xs, **alone)[1]
        assert cases.error(ys[first:last], wanted[first:last]) < 1e-12, "episodes"


@pytest.mark.parametrize(
    ("inner", "merge"),
    [
        ("lstm", "concat"),
        ("stack", "sum"),
        ("attention_window", "mean"),
        ("gru_reset_before", jnp.maximum),
    ],
)
def test_bidirectional_is_two_runs(inner, merge):
    case = CELLS[inner]
    cell = jaxrnn.bidirectional(case.make(6), jaxrnn.gru(6), merge=merge)
    e = cases.example(cases.Case(lambda h: cell, whole=True))
    functions = {
        "concat": lambda a, b: jnp.concatenate([a, b], -1),
        "sum": jnp.add,
        "mean": lambda a, b: (a + b) / 2,
    }
    function = functions.get(merge, merge) if isinstance(merge, str) else merge
    given = dict(lengths=e.lengths, mask=e.mask, starts=e.starts, key=None)
    came = unroll(cell, e.params, e.xs, e.state, **given)
    parts = (case.make(6), "forward", False), (jaxrnn.gru(6), "backward", True)
    (first, ahead), (second, back) = (
        literally(one, e.params[name], e.xs, before, reverse=reverse, **given)
        for (one, name, reverse), before in zip(parts, e.state)
    )
    assert cases.error(came, ((first, second), function(ahead, back))) < 1e-12


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
