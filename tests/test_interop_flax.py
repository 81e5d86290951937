"""Flax's recurrent modules as our cells and back: their numbers in float64, with their weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn
from jaxrnn.interop import from_flax, to_linen, to_nnx

linen = pytest.importorskip("flax.linen")
from flax import nnx  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")

T, B, H, INPUTS, PLACES = 5, 3, 4, 2, (4, 3)
F64 = {"param_dtype": jnp.float64}
SMOOTH = {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.softplus}
LINEN = {  # what makes a cell of theirs, and ours
    "simple": (linen.SimpleCell, {}, jaxrnn.elman(H)),
    "relu": (linen.SimpleCell, {"activation_fn": jax.nn.relu}, jaxrnn.elman(H, activation="relu")),
    "residual": (linen.SimpleCell, {"residual": True}, jaxrnn.elman(H)),
    "lstm": (linen.LSTMCell, {}, jaxrnn.lstm(H)),
    "optimized": (linen.OptimizedLSTMCell, {}, jaxrnn.lstm(H)),
    "smooth": (
        linen.LSTMCell,
        SMOOTH,
        jaxrnn.lstm(H, activation="softplus", gate_activation="hard_sigmoid"),
    ),
    "gru": (linen.GRUCell, {}, jaxrnn.gru(H)),
    "mgu": (linen.MGUCell, {}, None),
    "mgu without reset": (linen.MGUCell, {"reset_gate": False}, jaxrnn.ugrnn(H)),
    "conv": (
        linen.ConvLSTMCell,
        {"kernel_size": (3, 2)},
        jaxrnn.conv_lstm(H, shape=PLACES, kernel=(3, 2)),
    ),
    "conv without bias": (
        linen.ConvLSTMCell,
        {"kernel_size": (3, 2), "use_bias": False},
        jaxrnn.conv_lstm(H, shape=PLACES, kernel=(3, 2)),
    ),
}
NNX = {
    "simple": (nnx.SimpleCell, {}, jaxrnn.elman(H)),
    "residual": (nnx.SimpleCell, {"residual": True}, jaxrnn.elman(H)),
    "lstm": (nnx.LSTMCell, {}, jaxrnn.lstm(H)),
    "optimized": (nnx.OptimizedLSTMCell, {}, jaxrnn.lstm(H)),
    "smooth": (
        nnx.OptimizedLSTMCell,
        SMOOTH,
        jaxrnn.lstm(H, activation="softplus", gate_activation="hard_sigmoid"),
    ),
    "gru": (nnx.GRUCell, {}, jaxrnn.gru(H)),
}


def by_their_rules(run):
    """Both of their libraries mix types and ranks."""

    @functools.wraps(run)
    def call(*args, **options):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return run(*args, **options)

    return call


def normal(tree, seed=0):
    """Random numbers in the shape of each array, biases too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape)), tree)


def randomised(cell, params_seed=1):
    """Our parameters, all of them random."""
    features = INPUTS if "conv" not in repr(cell) else INPUTS * 12
    return normal(jax.eval_shape(lambda key: cell.init(key, features), jax.random.key(0)))


def xs_for(cell):
    places = PLACES if isinstance(cell, linen.ConvLSTMCell) else ()
    return normal(jax.ShapeDtypeStruct((B, T, *places, INPUTS), float), 7)


@by_their_rules
def linen_run(cell, variables, carry):
    """[B, T, ...] outputs and the final carry of a Linen cell, or a module of ``RNN``s."""
    xs = xs_for(cell)
    options = {"initial_carry": carry, "return_carry": True}
    if isinstance(cell, linen.Bidirectional):
        return cell.apply(variables, xs, **options)
    return linen.RNN(cell).apply({"params": {"cell": variables["params"]}}, xs, **options)


@by_their_rules
def linen_made(kind, options):
    """A cell, random variables and a random carry."""
    cell = kind(H, **options, **F64)
    xs = xs_for(cell)
    carry = cell.initialize_carry(jax.random.key(0), xs[:, 0].shape)
    variables = jax.eval_shape(cell.init, jax.random.key(0), carry, xs[:, 0])
    return cell, normal(variables), normal(carry, 1)


@by_their_rules
def nnx_run(module, carry):
    rnn = module if isinstance(module, nnx.Bidirectional) else nnx.RNN(module)
    return rnn(xs_for(None), initial_carry=carry, return_carry=True)


@by_their_rules
def nnx_made(kind, options):
    make = lambda: kind(INPUTS, H, **options, dtype=None, rngs=nnx.Rngs(0), **F64)  # noqa: E731
    module = nnx.eval_shape(make)
    nnx.update(module, normal(nnx.to_pure_dict(nnx.state(module, nnx.Param))))
    carry = module.initialize_carry((B, INPUTS), nnx.Rngs(0))
    return module, normal(carry, 1)


def ours(cell, params, carry, xs):
    """Our outputs and final state, laid out as theirs."""
    flat = lambda a: a.reshape(*a.shape[:2], -1)  # noqa: E731
    state = tuple(a.reshape(B, -1) for a in jax.tree.leaves(carry)[::-1])  # c, h -> h, c
    final, ys = jaxrnn.unroll(cell, params, flat(xs).swapaxes(0, 1), state)
    final = [a.reshape(c.shape) for a, c in zip(final[::-1], jax.tree.leaves(carry))]
    return final, ys.swapaxes(0, 1).reshape(*xs.shape[:-1], -1)


def agree(came, theirs):
    carry, ys = theirs
    assert error(came, (jax.tree.leaves(carry), ys)) < 1e-12


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    """Theirs as ours and back, and ours as theirs and back."""
    kind, options, want = LINEN[name]
    module, variables, carry = linen_made(kind, options)
    shape = PLACES if kind is linen.ConvLSTMCell else None
    cell, params = from_flax(module, variables, shape=shape)
    assert want is None or cell == want
    truth = linen_run(module, variables, carry)
    agree(ours(cell, params, carry, xs_for(module)), truth)
    again = linen_run(*to_linen(cell, params), carry)
    assert error(again, truth) < 1e-12

    params = randomised(cell)
    module, variables = to_linen(cell, params)
    agree(ours(cell, params, carry, xs_for(module)), linen_run(module, variables, carry))
    same, back = from_flax(module, variables, shape=shape)
    assert same == cell and error(back, params) < 1e-15


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    kind, options, want = NNX[name]
    module, carry = nnx_made(kind, options)
    cell, params = from_flax(module)
    assert cell == want
    truth = nnx_run(module, carry)
    agree(ours(cell, params, carry, xs_for(None)), truth)
    assert error(nnx_run(to_nnx(cell, params), carry), truth) < 1e-12

    params = randomised(cell)
    params |= {"rb": jnp.zeros(H)} if name == "gru" else {}
    module = to_nnx(cell, params)
    agree(ours(cell, params, carry, xs_for(None)), nnx_run(module, carry))
    same, back = from_flax(module)
    assert same == cell and error(back, params) < 1e-15


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_bidirectional(merge):
    """Both libraries, of two different cells."""
    cell = jaxrnn.bidirectional(jaxrnn.gru(H), jaxrnn.elman(H), merge=merge)
    params = randomised(cell)
    params["forward"]["rb"] *= 0  # which nnx has not
    carry = normal((jnp.zeros((B, H)),) * 2, 1)
    xs = xs_for(None).swapaxes(0, 1)
    final, ys = jaxrnn.unroll(cell, params, xs, ((carry[0],), (carry[1],)))
    came = (tuple(a for (a,) in final), ys.swapaxes(0, 1))
    module, variables = to_linen(cell, params)
    assert error(came, linen_run(module, variables, carry)) < 1e-12
    other = to_nnx(cell, params)
    assert error(came, nnx_run(other, carry)) < 1e-12
    for same, back in (from_flax(module, variables), from_flax(other)):
        assert error(back, params) < 1e-15
        assert merge != "concat" or same == cell
        assert error(jaxrnn.unroll(same, back, xs)[1], jaxrnn.unroll(cell, params, xs)[1]) < 1e-15
