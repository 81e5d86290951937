"""What interop needs no other library for: two biases or none, NumPy's arrays, what is loaded."""

import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from cases import error

import jaxrnn
from jaxrnn.interop import double_bias, without_bias

KEY, XS = jax.random.key(0), jax.random.normal(jax.random.key(1), (5, 2, 3))
CELLS = {
    "elman": jaxrnn.elman(4),
    "lstm": jaxrnn.lstm(4, peepholes=True, coupled=True),
    "projected": jaxrnn.lstm(4, projection=3),
    "gru": jaxrnn.gru(4),
    "reset before": jaxrnn.gru(4, reset_after=False),
}
each_cell = pytest.mark.parametrize("name", CELLS)


@each_cell
def test_two_biases_are_one(name):
    """As one bias that is their sum, but for what a GRU resets; each has its own gradient."""
    cell = CELLS[name]
    params = cell.init(KEY, 3)
    two = double_bias(cell)
    both = two.init(KEY, 3)
    assert not both["rb"].any() and {n: both[n].shape for n in params if n != "rb"} == {
        n: params[n].shape for n in params if n != "rb"
    }
    rb = jax.random.normal(jax.random.key(2), both["rb"].shape)
    one = params | {"b": params["b"] + rb}
    if "rb" in params:
        one = params | {"b": params["b"].at[:2].add(rb[:2]), "rb": rb[2]}
    given = params | {"rb": rb}

    @jax.jit(static_argnums=0)
    def run(cell, params):
        loss = lambda params: (lambda out: (sum(a.sum() for a in jax.tree.leaves(out)), out))(
            jaxrnn.unroll(cell, params, XS)
        )
        return jax.grad(loss, has_aux=True)(params)

    (gradient, came), (wanted_gradient, wanted) = run(two, given), run(cell, one)
    assert error(came, wanted) == 0
    last = wanted_gradient.get("rb", wanted_gradient["b"][-1])
    assert error(gradient["b"], wanted_gradient["b"]) == 0
    assert error(gradient["rb"], wanted_gradient["b"].at[-1].set(last)) == 0
    state, y = two.step(given, two.initial_state(given, (2,)), XS[0])
    assert error(y, came[1][0]) < 1e-6


@each_cell
def test_no_bias_is_zero(name):
    cell = CELLS[name]
    params = cell.init(KEY, 3)
    none = without_bias(cell)
    assert sorted(none.init(KEY, 3)) == sorted(set(params) - {"b", "rb"})
    zeros = params | {n: jnp.zeros_like(params[n]) for n in {"b", "rb"} & set(params)}
    kept = {n: a for n, a in params.items() if n not in ("b", "rb")}
    assert error(jaxrnn.unroll(none, kept, XS), jaxrnn.unroll(cell, zeros, XS)) == 0


@pytest.mark.parametrize("make", [double_bias, without_bias])
def test_they_are_cells(make):
    cell = make(jaxrnn.gru(4))
    assert cell == make(jaxrnn.gru(4)) == pickle.loads(pickle.dumps(cell)) != jaxrnn.gru(4)
    assert repr(cell) == f"{make.__name__}(cell=gru(hidden=4))"
    stack = jaxrnn.stack(jaxrnn.initialized(jaxrnn.bidirectional(cell), "torch"), cell)
    params = stack.init(KEY, 3)
    assert error(stack.init(KEY, 3), params) == 0 and jaxrnn.unroll(stack, params, XS)
    params = cell.init(KEY, 3)
    assert (
        jaxrnn.explain(cell, params, XS).choices
        == jaxrnn.explain(jaxrnn.gru(4), jaxrnn.gru(4).init(KEY, 3), XS).choices
    )


TWO, NONE = double_bias(jaxrnn.lstm(4)), without_bias(jaxrnn.lstm(4))
ONE = jaxrnn.lstm(4).init(KEY, 3)
BAD = {  # the call, the error, and what its text has
    "mgu": (lambda: double_bias(jaxrnn.mgu(4)), ValueError, "double_bias: got mgu", "gru"),
    "stack": (lambda: without_bias(jaxrnn.stack(TWO)), ValueError, "without_bias: got stack"),
    "no cell": (lambda: double_bias("lstm"), ValueError, "double_bias: got 'lstm'"),
    "a cell made by hand": (
        lambda: double_bias(dataclasses.replace(jaxrnn.lstm(4))),
        ValueError,
        "double_bias: got Cell",
    ),
    "one": (lambda: jaxrnn.unroll(TWO, ONE, XS), ValueError, "['b', 'r', 'rb', 'w']"),
    "shape": (
        lambda: jaxrnn.unroll(TWO, ONE | {"rb": ONE["b"][0]}, XS),
        ValueError,
        "params['rb']: got shape (4,), want (4, 4)",
    ),
    "int": (
        lambda: jaxrnn.unroll(TWO, ONE | {"rb": 0}, XS),
        TypeError,
        "params['rb']: got int",
    ),
    "bias": (lambda: jaxrnn.unroll(NONE, ONE, XS), ValueError, "got ['b', 'r', 'w'], want"),
    "rank": (
        lambda: jaxrnn.unroll(NONE, {"w": XS[0], "r": ONE["r"]}, XS),
        ValueError,
        "params['w']:",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, kind, *texts = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind and all(text in str(caught.value) for text in texts)


def test_numpy_arrays_alone():
    """No library is loaded, and a state_dict of NumPy's arrays is taken."""
    program = """import sys, jax
before = {name.split(".")[0] for name in sys.modules}
import numpy as np
import jaxrnn.interop
shapes = {"weight_ih_l0": (12, 3), "weight_hh_l0": (12, 4), "bias_ih_l0": 12, "bias_hh_l0": 12}
weights = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
print(*jaxrnn.interop.from_torch(weights))
for wrong in jaxrnn.interop.from_keras, jaxrnn.interop.from_torch:
    try:
        wrong(None)
    except TypeError:
        print({name.split(".")[0] for name in sys.modules} & {"torch", "keras", "flax"})
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.startswith("gru(hidden=4) {'") and run.stdout.endswith("set()\nset()\n"), (
        run.stdout + run.stderr
    )
