"""Equinox's cells as ours and back: their numbers in float64, with their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn
from jaxrnn.interop import from_equinox, to_equinox

eqx = pytest.importorskip("equinox")
pytestmark = pytest.mark.usefixtures("x64")

T, B, H, INPUTS = 5, 3, 4, 2
KINDS = {"lstm": (eqx.nn.LSTMCell, jaxrnn.lstm(H)), "gru": (eqx.nn.GRUCell, jaxrnn.gru(H))}


def normal(tree, seed=0):
    """Random numbers in the shape of each array."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape)), tree)


def random_module(kind, **options):
    make = lambda key: kind(INPUTS, H, key=key, **options)  # noqa: E731
    return normal(eqx.filter_eval_shape(make, jax.random.key(0)))


def agree(module, cell, params):
    """Outputs and final states, from a random state."""
    xs = normal(jax.ShapeDtypeStruct((T, B, INPUTS), float), 1)
    state = normal(cell.initial_state(params, (B,)), 2)

    def step(state, x):
        with jax.numpy_dtype_promotion("standard"):
            state = jax.vmap(module)(x, state)
        return state, jax.tree.leaves(state)[0]

    final, ys = jax.lax.scan(step, state if len(state) > 1 else state[0], xs)
    came = jaxrnn.unroll(cell, params, xs, state)
    assert error((jax.tree.leaves(came[0]), came[1]), (jax.tree.leaves(final), ys)) < 1e-12


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_theirs_as_ours(name, use_bias):
    kind, want = KINDS[name]
    module = random_module(kind, use_bias=use_bias)
    cell, params = from_equinox(module)
    assert cell == want
    agree(module, cell, params)
    again = to_equinox(cell, params)
    assert again.use_bias
    agree(again, cell, params)


@pytest.mark.parametrize("name", KINDS)
def test_ours_as_theirs(name):
    kind, cell = KINDS[name]
    params = normal(jax.eval_shape(lambda key: cell.init(key, INPUTS), jax.random.key(0)))
    module = to_equinox(cell, params)
    assert type(module) is kind and (module.input_size, module.hidden_size) == (INPUTS, H)
    agree(module, cell, params)
    same, back = from_equinox(module)
    assert same == cell and error(back, params) == 0


def test_types_stay():
    module = eqx.nn.GRUCell(INPUTS, H, dtype=jnp.bfloat16, key=jax.random.key(0))
    cell, params = from_equinox(module)
    again = to_equinox(cell, params)
    assert {a.dtype.name for a in jax.tree.leaves((params, again))} == {"bfloat16"}


def test_what_cannot_be():
    with pytest.raises(TypeError, match="module: got Linear, want one of .*equinox.nn.LSTMCell"):
        from_equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
    keys = jax.random.split(jax.random.key(0), 2)
    many = eqx.filter_vmap(lambda key: eqx.nn.LSTMCell(INPUTS, H, key=key))(keys)
    with pytest.raises(ValueError, match=r"module\['bias'\]: got shape \(2, 16\), want"):
        from_equinox(many)
    gru = jaxrnn.gru(H)
    params = gru.init(jax.random.key(0), INPUTS)
    bad = (
        (
            TypeError,
            r"cell: got elman\(hidden=4\), want one of \['lstm', 'gru'\]: Equinox",
            jaxrnn.elman(H),
        ),
        (
            ValueError,
            "reset_after=False, want True: equinox.nn.GRUCell has no other",
            jaxrnn.gru(H, reset_after=False),
        ),
        (ValueError, "activation='relu', want 'tanh'", jaxrnn.lstm(H, activation="relu")),
        (
            ValueError,
            r"params: got \['b', 'r', 'rb', 'w'\], want \['b', 'r', 'w'\]",
            jaxrnn.lstm(H),
        ),
        (ValueError, r"params\['b'\]: got shape \(3, 4\), want \(3, 5\)", jaxrnn.gru(5)),
    )
    for kind, text, cell in bad:
        with pytest.raises(kind, match=text):
            to_equinox(cell, params)
