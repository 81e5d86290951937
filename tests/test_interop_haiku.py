"""Haiku's cores as our cells and back: their numbers in float64, with their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn
from jaxrnn.interop import from_haiku, to_haiku

hk = pytest.importorskip("haiku")
pytestmark = pytest.mark.usefixtures("x64")

T, B, H, INPUTS, PLACES = 5, 3, 4, 2, (4, 3)
RELU = jaxrnn.elman(H, activation="relu")
KINDS = {  # Haiku's kind, what makes it, our cell
    "vanilla": ("VanillaRNN", lambda: hk.VanillaRNN(H), RELU),
    "one bias": ("VanillaRNN", lambda: hk.VanillaRNN(H, double_bias=False), RELU),
    "lstm": ("LSTM", lambda: hk.LSTM(H), jaxrnn.lstm(H)),
    "gru": ("GRU", lambda: hk.GRU(H), jaxrnn.gru(H, reset_after=False)),
    "conv1": (
        "Conv1DLSTM",
        lambda: hk.Conv1DLSTM(PLACES[:1], H, 3),
        jaxrnn.conv_lstm(H, shape=PLACES[:1], kernel=(3,)),
    ),
    "conv2": (
        "Conv2DLSTM",
        lambda: hk.Conv2DLSTM(PLACES, H, (3, 2)),
        jaxrnn.conv_lstm(H, shape=PLACES, kernel=(3, 2)),
    ),
}


def normal(tree, seed=0):
    """Random numbers in the shape of each array."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape)), tree)


def places(cell):
    return dict(cell.made.kwargs).get("shape", ())


def transformed(make, shape):
    """A core's run from a random state over random inputs [T, B, ...]: init and apply."""
    xs = normal(jax.ShapeDtypeStruct((T, B, *shape, INPUTS), float), 1)

    def run():
        core = make()
        state = normal(core.initial_state(B), 2)
        return state, hk.dynamic_unroll(core, xs, state)

    return xs, hk.without_apply_rng(hk.transform(run))


def agree(make, theirs, cell, params):
    """Outputs and final states."""
    xs, function = transformed(make, places(cell))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        start, (ys, final) = function.apply(theirs)
    leaves = jax.tree.leaves  # of a state h, or h and c
    state = jax.tree.unflatten(
        jax.tree.structure(cell.initial_state(params, (B,))),
        [a.reshape(B, -1) for a in leaves(start)],
    )
    came, our_ys = jaxrnn.unroll(cell, params, xs.reshape(T, B, -1), state)
    came = [a.reshape(f.shape) for a, f in zip(leaves(came), leaves(final))]
    assert error((came, our_ys.reshape(ys.shape)), (leaves(final), ys)) < 1e-12


def random_params(make, shape=()):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return normal(jax.eval_shape(transformed(make, shape)[1].init, jax.random.key(0)))


@pytest.mark.parametrize("name", KINDS)
def test_theirs_as_ours(name):
    kind, make, want = KINDS[name]
    shape = places(want) or None
    theirs = random_params(make, shape or ())
    cell, params = from_haiku(theirs, kind, shape=shape)
    assert cell == want
    agree(make, theirs, cell, params)
    if name != "one bias":
        agree(make, to_haiku(cell, params), cell, params)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "one bias"])
def test_ours_as_theirs(name):
    kind, make, cell = KINDS[name]
    shape = places(cell)
    features = INPUTS * int(np.prod(shape))
    params = normal(jax.eval_shape(lambda key: cell.init(key, features), jax.random.key(0)))
    theirs = to_haiku(cell, params)
    want = jax.tree.map(jnp.shape, random_params(make, shape))
    assert jax.tree.map(jnp.shape, theirs) == want  # Haiku's own names
    agree(make, theirs, cell, params)
    same, back = from_haiku(theirs, kind, shape=shape or None)
    assert same == cell and error(back, params) < 1e-15


def test_deep_rnn():
    """A stack, each layer by its name, beside what else a model has."""
    make = lambda: hk.DeepRNN([hk.LSTM(H), hk.LSTM(3), hk.GRU(2)])  # noqa: E731
    theirs = random_params(make)
    layers = {"lstm": "LSTM", "lstm_1": "LSTM", "gru": "GRU"}
    cells, params = zip(*(from_haiku(theirs, kind, name=name) for name, kind in layers.items()))
    deep = jaxrnn.stack(*cells), {str(i): own for i, own in enumerate(params)}
    xs, function = transformed(make, ())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        start, (ys, final) = function.apply(theirs)
    state = tuple(tuple(jax.tree.leaves(own)) for own in start)
    came = jaxrnn.unroll(*deep, xs, state)
    wanted = tuple(tuple(jax.tree.leaves(own)) for own in final), ys
    assert error(came, wanted) < 1e-12
    back = {}
    for name, cell, own in zip(layers, cells, params):
        back |= to_haiku(cell, own, name=name)
    assert error(back, theirs) < 1e-15


def test_names_inside_a_model():
    params = {"linear": {"w": jnp.ones((H, H)), "b": jnp.ones(H)}}
    for bare in ("lstm", "lstm_1", "my/~/lstm"):
        w = normal(jax.ShapeDtypeStruct((INPUTS + H, 4 * H), float), len(bare))
        params[f"{bare}/linear"] = {"w": w, "b": jnp.zeros(4 * H)}
    for bare in ("lstm", "lstm_1", "my/~/lstm"):
        cell, ours = from_haiku(params, "LSTM", name=bare)
        theirs = to_haiku(cell, ours, name=bare)
        assert error(theirs, {f"{bare}/linear": params[f"{bare}/linear"]}) == 0


def test_what_cannot_come():
    w = lambda *shape: jnp.ones(shape)  # noqa: E731
    lstm = {"lstm/linear": {"w": w(6, 16), "b": w(16)}}
    conv = {"w": w(3, 2, 4, 16), "b": w(16)}
    conv = {"conv2_dlstm/input_to_hidden": conv, "conv2_dlstm/hidden_to_hidden": conv}
    bad = (
        (ValueError, "kind: got 'RNN', want one of .'VanillaRNN', 'LSTM'", lstm, "RNN", {}),
        (
            ValueError,
            r"name: got 'gru', want the name of one of \['lstm/linear'\]",
            lstm,
            "GRU",
            {},
        ),
        (
            ValueError,
            "params of 'lstm': got .*'linear': .*want {'': .*: GRU",
            lstm,
            "GRU",
            {"name": "lstm"},
        ),
        (
            ValueError,
            r"'linear': \['w'\]}, want .*'b', 'w'",
            {"lstm/linear": {"w": w(6, 16)}},
            "LSTM",
            {},
        ),
        (
            ValueError,
            r"params of 'lstm'\['linear/w'\]: got shape \(6, 12\), want \(6, 16\)",
            {"lstm/linear": {"w": w(6, 12), "b": w(16)}},
            "LSTM",
            {},
        ),
        (
            ValueError,
            r"\['linear/w'\]: got shape \(2, 16\), want \(5, 16\)",
            {"lstm/linear": {"w": w(2, 16), "b": w(16)}},
            "LSTM",
            {},
        ),
        (
            TypeError,
            r"\['linear/w'\]: got int64, want a floating type",
            {"lstm/linear": {"w": jnp.ones((6, 16), int), "b": w(16)}},
            "LSTM",
            {},
        ),
        (ValueError, "shape: got None, want the 2 sizes", conv, "Conv2DLSTM", {}),
        (
            ValueError,
            r"shape: got \(4, 3\), want None: haiku.LSTM",
            lstm,
            "LSTM",
            {"shape": PLACES},
        ),
    )
    for error_kind, text, params, kind, options in bad:
        with pytest.raises(error_kind, match=text):
            from_haiku(params, kind, **options)


def test_what_cannot_go():
    bad = (
        (TypeError, r"cell: got mgu\(hidden=4\), want one of .*'lstm', .*Haiku", jaxrnn.mgu(H)),
        (
            ValueError,
            "activation='tanh', want 'relu': haiku.VanillaRNN has no other",
            jaxrnn.elman(H),
        ),
        (ValueError, "reset_after=True, want False: haiku.GRU has no other", jaxrnn.gru(H)),
        (ValueError, "cell_clip=2, want None: haiku.LSTM", jaxrnn.lstm(H, cell_clip=2)),
        (
            ValueError,
            "dilation=2, want 1: haiku.Conv2DLSTM",
            jaxrnn.conv_lstm(H, shape=PLACES, dilation=2),
        ),
        (ValueError, r"params: got \[\], want \['b', 'r', 'w'\]", jaxrnn.lstm(H)),
    )
    for kind, text, cell in bad:
        with pytest.raises(kind, match=text):
            to_haiku(cell, {})
