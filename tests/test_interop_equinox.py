"""Equinox's cells as ours and back, and its models: their numbers in float64."""

from collections.abc import Callable
from typing import Any

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
    draw = lambda a: jnp.array(rng.normal(size=a.shape)) if hasattr(a, "shape") else a
    return jax.tree.map(draw, tree)


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


class Model(eqx.Module):
    """What users write: layers in fields, of which the recurrent ones are scanned."""

    vocabulary: int
    layers: Any
    head: Any
    link: Callable
    last: bool

    def __call__(self, xs):
        with jax.numpy_dtype_promotion("standard"):
            for layer in jax.tree.leaves(self.layers, is_leaf=callable):
                xs = scanned(layer, xs) if hasattr(layer, "weight_hh") else jax.vmap(layer)(xs)
            ys = jax.vmap(self.head)(xs)
            return self.link(ys[-1] if self.last else ys)


class Backwards(Model):
    """The same layers, of which nobody can see how they are run."""

    def __call__(self, xs):
        return super().__call__(xs[::-1])


class Pooled(Model):
    def __call__(self, xs):
        return super().__call__(xs).mean()


def scanned(layer, xs):
    def step(state, x):
        state = layer(x, state)
        return state, jax.tree.leaves(state)[0]

    zero = jnp.zeros(layer.hidden_size)
    first = (zero, zero) if isinstance(layer, eqx.nn.LSTMCell) else zero
    return jax.lax.scan(step, first, xs)[1]


def test_models():
    """Every layer there is, of a model that gives all outputs and one that gives the last."""
    nn, key = eqx.nn, jax.random.key(0)
    text = [
        nn.Embedding(7, 3, key=key),
        nn.LSTMCell(3, H, key=key),
        nn.LayerNorm(H),
        nn.Identity(),
        nn.GRUCell(H, H, use_bias=False, key=key),
        nn.Dropout(0.5, inference=True),
    ]
    signal = {
        "first": nn.Linear(INPUTS, H, use_bias=False, key=key),
        "norm": nn.RMSNorm(H, use_bias=False),
        "next": nn.LayerNorm(H, eps=1e-3, use_weight=False, use_bias=False),
    }
    models = {
        jaxrnn.stack(
            jaxrnn.embedding(7, 3),
            jaxrnn.lstm(H),
            jaxrnn.layer_norm(epsilon=1e-5),
            jaxrnn.gru(H),
            jaxrnn.dropout(0.5),
            jaxrnn.project(6, activation="relu"),
            jaxrnn.project(5, activation="tanh"),
        ): normal(Model(7, text, nn.MLP(H, 5, 6, 1, key=key), jnp.tanh, True)),
        jaxrnn.stack(
            jaxrnn.project(H, bias=False),
            jaxrnn.rms_norm(epsilon=1e-5),
            jaxrnn.layer_norm(epsilon=1e-3),
            jaxrnn.project(6, activation="silu"),
            jaxrnn.project(5),
        ): normal(
            Model(
                0,
                tuple(signal.values()),
                nn.Sequential(
                    [nn.Linear(H, 6, key=key), nn.Lambda(jax.nn.silu), nn.Linear(6, 5, key=key)]
                ),
                nn.Identity(),
                False,
            )
        ),
    }
    tokens = jnp.array([3, 0, 6, 2, 5])
    for (wanted, model), xs in zip(models.items(), (tokens, normal(jnp.ones((T, INPUTS))))):
        cell, params = from_equinox(model, xs)
        assert cell == wanted
        others = xs[::-1]
        ys = jaxrnn.unroll(cell, params, others)[1]
        assert error(ys[-1] if model.last else ys, model(others)) < 1e-12
        parts = [*model.layers, model.head, *([model.link] if model.last else [])]
        same, numbers = from_equinox(parts)
        assert same == cell and error(numbers, params) == 0


def test_a_model_that_computes_something_else():
    key, xs = jax.random.key(0), normal(jnp.ones((T, INPUTS)))
    cell, head = eqx.nn.GRUCell(INPUTS, H, key=key), eqx.nn.Linear(H, 3, key=key)
    nn, tanh = eqx.nn, jnp.tanh
    bad = {
        "xs: got None, want an input of the Model": (Model, (cell,), head, tanh, None),
        "the Backwards makes other numbers": (Backwards, (cell,), head, tanh, xs),
        r"makes float64\[\], want \(5, 3\) or \(3,\)": (Pooled, (cell,), head, tanh, xs),
        "module.link: got the function 'tanh'": (Model, (cell,), nn.LayerNorm(H), tanh, xs),
        r"module.layers\[1\]: got .* of no layer": (Model, (cell, xs[0]), head, tanh, xs),
    }
    for text, (kind, layers, head, link, given) in bad.items():
        with pytest.raises(ValueError, match=text):
            from_equinox(kind(0, layers, head, link, True), given)
    with pytest.raises(ValueError, match="xs: got an input, want None: only a module of your own"):
        from_equinox([cell], xs)
    several = {
        "no layers": [],
        "a bias": nn.RMSNorm(3),
        "one axis": nn.LayerNorm((2, 3)),
        "'scalar'": nn.Linear(2, "scalar", key=key),
        "scan=True": nn.MLP(2, 2, 3, 3, scan=True, key=key),
    }
    for text, source in several.items():
        with pytest.raises(ValueError, match=text):
            from_equinox(source)


def test_types_stay():
    module = eqx.nn.GRUCell(INPUTS, H, dtype=jnp.bfloat16, key=jax.random.key(0))
    cell, params = from_equinox(module)
    again = to_equinox(cell, params)
    assert {a.dtype.name for a in jax.tree.leaves((params, again))} == {"bfloat16"}


def test_what_cannot_be():
    with pytest.raises(TypeError, match="module: got Conv1d, want one of .*equinox.nn.LSTMCell"):
        from_equinox(eqx.nn.Conv1d(2, 3, 1, key=jax.random.key(0)))
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
