"""Cells that are equal run the same program; what was changed is another cell."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
import jaxrnn.files

XS = jnp.ones((3, 1))
run = jax.jit(jaxrnn.unroll, static_argnames=("cell",))


def record(rate):
    """A cell made by hand."""

    def step(params, state, x, key=None):
        state = state + rate * (x - state)
        return state, state

    def unroll(params, state, xs, options):
        a, b = jnp.full_like(xs, 1 - rate), rate * xs
        flags = dict(mask=options.mask, starts=options.starts, reverse=options.reverse)
        return jaxrnn.linear_scan(a, b, state, **flags)

    initial_state = lambda params, batch: jnp.zeros((*batch, 1))
    return jaxrnn.Cell(lambda key, n: {}, initial_state, step, unroll)


def doubled(cell):
    def unroll(*args):
        state, ys = cell.unroll(*args)
        return state, 2 * ys

    return dataclasses.replace(cell, unroll=unroll)


def init(key, in_size):
    return {}


def initial_state(params, batch):
    return jnp.zeros((*batch, 1))


def step(params, state, x, key=None):
    return state + x, state + x


def unroll(params, state, xs, options):
    return xs.sum(0), jnp.cumsum(xs, 0)


def test_cells_made_by_hand():
    half, tenth = record(0.5), record(0.1)
    assert half != tenth and half == half and hash(half) == hash(dataclasses.replace(half))
    assert run(half, {}, XS)[1][:, 0].tolist() == [0.5, 0.75, 0.875]
    assert abs(run(tenth, {}, XS)[1][-1, 0] - 0.271) < 1e-6
    assert jaxrnn.stack(half) != jaxrnn.stack(tenth) and jaxrnn.stack(half) == jaxrnn.stack(half)
    params = {"0": {}}
    for cell, want in ((half, 0.875), (tenth, 0.271)):
        assert abs(run(jaxrnn.stack(cell), params, XS)[1][-1, 0] - want) < 1e-6
    assert "record.<locals>.step" in repr(half)


def test_cells_that_are_changed():
    base = jaxrnn.elman(1)
    params = {"w": jnp.ones((1, 1, 1)), "r": jnp.zeros((1, 1, 1)), "b": jnp.zeros((1, 1))}
    double = doubled(base)
    assert base == jaxrnn.elman(1) and double != base and double != doubled(base)
    assert (run(double, params, XS)[1] == 2 * run(base, params, XS)[1]).all()
    assert double.made is None and double.gated is None
    with pytest.raises(TypeError, match=r"want a cell made by jaxrnn\.gated"):
        jaxrnn.variational_dropout(double, 0.5)
    again = dataclasses.replace(base, init=lambda key, n: params)
    assert again != base and dataclasses.replace(again, init=base.init).unroll is base.unroll


def test_modules_that_hold_them():
    nn = pytest.importorskip("flax.linen")
    import jaxrnn.linen

    one, other = (jaxrnn.linen.RNN(record(rate)) for rate in (0.5, 0.1))
    assert isinstance(one, nn.Module) and one != other
    apply = jax.jit(
        lambda module, xs: module.apply({"params": {"cell": {}}}, xs), static_argnums=0
    )
    assert (apply(one, XS[None]) != apply(other, XS[None])).any()


@pytest.mark.parametrize("copied", (copy.copy, copy.deepcopy))
def test_copies(copied):
    for cell in (jaxrnn.lstm(3), doubled(jaxrnn.lstm(3)), record(0.5)):
        assert copied(cell) == cell and copied(cell).unroll is cell.unroll


def test_pickles(tmp_path):
    """By name where functions have one; else the field is named."""
    named = jaxrnn.Cell(init, initial_state, step, unroll)
    assert pickle.loads(pickle.dumps(named)) == named
    made = jaxrnn.initialized(jaxrnn.gru(3), r="zeros")
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(TypeError, match=r"the cell's init is record\.<locals>\.<lambda>"):
        pickle.dumps(record(0.5))
    with pytest.raises(TypeError, match=r"the cell's init is"):
        pickle.dumps(jaxrnn.stack(doubled(jaxrnn.gru(3))))
    with pytest.raises(TypeError, match=r"cell: got Cell\("):
        cell = doubled(jaxrnn.gru(3))
        jaxrnn.files.save(tmp_path / "cell.safetensors", cell, cell.init(jax.random.key(0), 2))


def test_a_cell_that_is_changed_is_traced_as_it_is():
    base = jaxrnn.elman(1)
    params = base.init(jax.random.key(0), 1)

    def step(params, state, x, key=None):
        state, y = base.step(params, state, x)
        return state, 2 * y

    found = jaxrnn.trace(dataclasses.replace(base, step=step), params, XS)
    assert jnp.allclose(found["y"], 2 * jaxrnn.unroll(base, params, XS)[1])


def test_a_cell_is_a_static_node():
    """To JAX a tree without arrays: an argument of any transform, alone or in a module."""
    xs = jnp.ones((3, 2))
    calls = []

    @jax.jit
    def run(cell, params):
        calls.append(cell)
        return jaxrnn.unroll(cell, params, xs)[1]

    params = jaxrnn.gru(2).init(jax.random.key(0), 2)
    came = run(jaxrnn.gru(2), params)
    assert (run(jaxrnn.gru(hidden=2), params) == came).all() and len(calls) == 1
    run(jaxrnn.gru(2, residuals="states"), params)
    assert len(calls) == 2 and jax.tree.leaves(calls) == []
    model = {"cell": jaxrnn.gru(2), "params": params}
    gradient = jax.grad(lambda model: run(**model).sum())(model)
    assert gradient["cell"] == jaxrnn.gru(2) and gradient["params"]["w"].any()


def test_a_module_of_equinox_holds_one():
    equinox = pytest.importorskip("equinox")

    class Model(equinox.Module):
        cell: jaxrnn.Cell
        params: dict

    model = Model(jaxrnn.gru(2), jaxrnn.gru(2).init(jax.random.key(0), 2))
    assert repr(model).splitlines()[1] == "  cell=gru(hidden=2),"
    run = equinox.filter_grad(lambda m: jaxrnn.unroll(m.cell, m.params, jnp.ones((3, 2)))[1].sum())
    assert run(model).params["w"].any()
