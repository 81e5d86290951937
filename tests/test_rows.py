"""What every row of the table is held to, whatever builder made its cell: see ``builders``."""

import functools
import io
import pickle

import builders
import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, CELLS, REFERENCE, STEPS, TOLERANCE, USUAL
from laws import fastest, hold, literally, options, unroll, wide

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
every_cell = pytest.mark.parametrize("name", builders.EVERY)


@pytest.mark.parametrize("name", [n for n in builders.EVERY if n in STEPS])
def test_the_paper(name):
    """Outputs, final states, directional derivatives: NumPy's, with every flag at once."""
    implementations = fastest(name)
    if name in builders.THOROUGH:  # a program that others need too
        implementations = (REFERENCE, *CELLS[name].faster)
    hold(name, USUAL, implementations, reverse=True)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("reverse", (False, True))
def test_the_textbook(name, reverse):
    """Attention's outputs: NumPy's to 1e-12."""
    e = cases.example(CELLS[name], USUAL)
    ys = np.array(unroll(e.cell, e.params, e.xs, **options(e, reverse=reverse))[1])
    params, xs, mask, starts = jax.tree.map(np.array, (e.params, e.xs, e.mask, e.starts))
    for row in np.ndindex(*USUAL.batch):
        at = (slice(None), *row)
        wanted = CELLS[name].truth(params, xs[at], mask[at], starts[at], reverse)
        assert cases.error(ys[at], wanted) < 1e-12


@every_cell
def test_unroll_is_the_scan_of_step(name):
    """By the implementation that users get, from the initial state, with random draws."""
    e = cases.example(CELLS[name], USUAL)
    given = options(e)
    wanted = literally(e.cell, e.params, e.xs, **given)
    assert cases.error(unroll(e.cell, e.params, e.xs, **given), wanted) < 1e-12


@pytest.mark.parametrize("name", [n for n in builders.EVERY if n not in builders.THOROUGH])
def test_bfloat16(name):
    """As ``test_every_type`` for the others, forward alone: the numbers of float64."""
    e = cases.example(CELLS[name], USUAL, dtype=jnp.float32)
    xs, given = e.xs.astype(jnp.bfloat16), options(e, key=False)
    state, ys = unroll(e.cell, e.params, xs, e.state, **given)
    params, wide_xs, before = wide((e.params, xs, e.state))
    wanted = literally(e.cell, params, wide_xs, before, **given)
    assert cases.error((state, ys), wanted) < TOLERANCE["bfloat16"][0]


@every_cell
def test_shapes_and_types(name):
    """Nothing is run: what comes out has the sizes and types that it should."""
    e = cases.example(CELLS[name], USUAL, dtype=jnp.float32)
    *_, width = jax.eval_shape(functools.partial(jaxrnn.unroll, e.cell), e.params, e.xs)[1].shape
    for shape, dtype in (((0, 2), "float32"), ((3,), "float16"), ((3, 0, 2, 1), "bfloat16")):
        steps, *batch = shape
        xs = jax.ShapeDtypeStruct((*shape, e.xs.shape[-1]), dtype)
        flags = dict.fromkeys(("mask", "starts"), jax.ShapeDtypeStruct(shape, "bool"))
        state, ys = jax.eval_shape(
            functools.partial(jaxrnn.unroll, e.cell), e.params, xs, **flags, key=e.key
        )
        assert (ys.shape, ys.dtype) == ((*shape, width), dtype)
        initial = functools.partial(e.cell.initial_state, batch_shape=tuple(batch))
        assert state == jax.eval_shape(initial, e.params)
        wanted = {jnp.dtype(t) for t in ("float32", "complex64", "int32")}
        assert {a.dtype for a in jax.tree.leaves(state)} <= wanted


@every_cell
def test_traced_once(name):
    """An equal cell made anew is the same static argument; a step in a loop is traced once."""
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(cell, params, xs):
        traced.append(cell)
        return jaxrnn.unroll(cell, params, xs)[1]

    e = cases.example(CELLS[name], USUAL)
    for cell in (e.cell, e.cell, CELLS[name].make(6)):
        run.lower(cell, e.params, e.xs)
    assert len(traced) == (1 if name != "smooth" else 2)  # made of new functions each time


class Public(pickle.Unpickler):
    """Refuses names that are not public: their modules may move."""

    def find_class(self, module, name):
        assert "_src" not in module, f"a pickle names {module}.{name}"
        return super().find_class(module, name)


@pytest.mark.parametrize("name", [n for n in builders.EVERY if n != "smooth"])
def test_a_cell_is_the_call_that_made_it(name):
    cell, other = CELLS[name].make(6), CELLS[name].make(12)
    again = CELLS[name].make(6)
    assert cell == again and hash(cell) == hash(again) and cell != other
    assert Public(io.BytesIO(pickle.dumps(cell))).load() == cell
    assert repr(cell) == repr(again) != repr(other)


def test_every_row_has_its_builder():
    """Rows that no builder made are held to all laws, as a few of each builder are."""
    for made_by, names in builders.REPRESENTATIVES.items():
        assert names
        for name in names:
            assert builders.MADE_BY[name] == made_by, name
    assert {builders.MADE_BY[name] for name in CELLS} - {None} == set(builders.HOMES)


def test_a_cell_through_other_hands_has_no_builder():
    """Its unroll, or its step, may then do something else."""
    import dataclasses

    cell = jaxrnn.lstm(4)

    @functools.wraps(cell.unroll)
    def other(*args, **options):
        return cell.unroll(*args, **options)

    assert builders.builder(cell) == "gated"
    assert builders.builder(dataclasses.replace(cell, unroll=other)) is None
    assert (
        builders.builder(dataclasses.replace(cell, step=jaxrnn.gru(4, reset_after=False).step))
        is None
    )


def test_the_tests_themselves_can_fail():
    """A step that forgets a hundred-millionth is another cell than its unroll."""
    import dataclasses

    cell = jaxrnn.gru(4)
    slow = dataclasses.replace(
        cell, step=lambda params, state, x, key=None: cell.step(params, state, x * (1 + 1e-8), key)
    )
    e = cases.example(cases.Case(lambda h: cell), USUAL)
    wanted = literally(slow, e.params, e.xs, **options(e))
    assert cases.error(unroll(cell, e.params, e.xs, **options(e)), wanted) > 1e-12
    assert np.isfinite(wanted[1]).all()
