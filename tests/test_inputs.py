"""Inputs that are no features: tokens, and a dict of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

T, B, V, E = 6, 3, 5, 4
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(V, size=(T, B)), jnp.int32)
LENGTHS = jnp.array([6, 0, 4])
STARTS = jnp.asarray(RNG.random((T, B)) < 0.3)
READER = jaxrnn.stack(jaxrnn.embedding(V, E), jaxrnn.dropout(0.5), jaxrnn.gru(4))
PARAMS = READER.init(KEY, None)
HEAR = {"lengths": LENGTHS, "starts": STARTS}


def test_a_stack_begins_with_tokens():
    """As of the vectors, looked up in NumPy; masks and starts have the axes of the tokens."""
    vectors = jnp.asarray(np.asarray(PARAMS["0"]["table"])[np.asarray(TOKENS)])
    rest = jaxrnn.stack(*READER.made.args[1:])
    own = {"0": {}, "1": PARAMS["2"]}
    run = lambda cell, p, xs, **flags: jaxrnn.unroll(cell, p, xs, **HEAR, **flags)
    for reverse in (False, True):
        came = run(READER, PARAMS, TOKENS, reverse=reverse)
        wanted = run(rest, own, vectors, reverse=reverse)
        assert error((came[0][2], came[1]), (wanted[0][1], wanted[1])) < 1e-6
    both = jaxrnn.bidirectional(READER)
    ys = jaxrnn.unroll(both, {"forward": PARAMS, "backward": PARAMS}, TOKENS, **HEAR)[1]
    assert error(ys[..., 4:], wanted[1]) < 1e-6
    assert (run(READER, PARAMS, TOKENS, key=KEY)[1] != run(READER, PARAMS, TOKENS)[1]).any()


def test_steps_of_tokens():
    state, ys = READER.initial_state(PARAMS, (B,)), []
    for x in TOKENS:
        state, y = READER.step(PARAMS, state, x)
        ys.append(y)
    whole = jaxrnn.unroll(READER, PARAMS, TOKENS, READER.initial_state(PARAMS, (B,)))
    assert error((state[2], jnp.stack(ys)), (whole[0][2], whole[1])) < 1e-6
    alone = jax.vmap(lambda x: jaxrnn.unroll(READER, PARAMS, x)[1], 1, 1)(TOKENS)
    assert error(alone, whole[1]) < 1e-6
    found = jaxrnn.trace(READER, PARAMS, TOKENS)
    assert found["2"]["z"].shape == (T, B, 4) and error(found["y"], whole[1]) < 1e-6
    assert "tpu" in str(jaxrnn.explain(READER, PARAMS, TOKENS, platform="tpu"))


def test_the_gradient_of_a_table():
    """That of a product with one-hot vectors, whatever stands in padding."""
    cell = jaxrnn.embedding(V, E)
    params = cell.init(KEY, None)
    weights = jnp.asarray(RNG.normal(size=(T, B, E)), jnp.float32)
    real = (np.arange(T)[:, None] < np.asarray(LENGTHS))[..., None]
    far = jnp.where(jnp.asarray(real[..., 0]), TOKENS, V + 100)

    def loss(params, xs):
        return (weights * jaxrnn.unroll(cell, params, xs, lengths=LENGTHS)[1]).sum()

    came = jax.grad(loss)(params, far)["table"]
    one_hot = real * np.eye(V)[np.asarray(TOKENS)]
    assert error(came, np.einsum("tbv,tbe->ve", one_hot, np.asarray(weights))) < 1e-6
    ys = jaxrnn.unroll(cell, params, jnp.array([0, V]))[1]
    assert jnp.isfinite(ys[0]).all() and jnp.isnan(ys[1]).all()


@jaxrnn.constructor
def joined(vocabulary, features):
    """Reads tokens, and features beside them."""
    inner = jaxrnn.embedding(vocabulary, features)
    return jaxrnn.stateless(
        lambda key, sizes: inner.init(key, sizes["token"]),
        lambda p, x: jnp.concatenate([jnp.take(p["table"], x["token"], axis=0), x["dt"]], -1),
    )


@jaxrnn.constructor
def split():
    """A step of two inputs with two outputs."""

    def step(params, state, x):
        state = state + x["dt"]
        return state, {"sum": state, "token": x["token"]}

    return jaxrnn.cell(lambda key, n: {}, lambda p, batch: jnp.zeros((*batch, 2)), step)


DT = jnp.asarray(RNG.normal(size=(T, B, 2)), jnp.float32)
XS = {"token": TOKENS, "dt": DT}


def test_a_dict_of_arrays():
    cell = jaxrnn.stack(joined(V, E), jaxrnn.gru(3))
    params = cell.init(KEY, {"token": None, "dt": 2})
    assert params["1"]["w"].shape == (E + 2, 3, 3)
    state, ys = jaxrnn.unroll(cell, params, XS, **HEAR)
    flat = np.concatenate([np.asarray(params["0"]["table"])[np.asarray(TOKENS)], DT], -1)
    wanted = jaxrnn.unroll(jaxrnn.gru(3), params["1"], jnp.asarray(flat), **HEAR)
    assert error((state[1], ys), wanted) < 1e-6
    long = jax.tree.map(lambda a: jnp.concatenate([a] * 30), XS)
    assert jaxrnn.unroll(cell, params, long)[1].shape == (180, B, 3)


def test_outputs_in_a_dict():
    state, ys = jaxrnn.unroll(split(), {}, XS, lengths=LENGTHS)
    real = np.arange(T)[:, None] < np.asarray(LENGTHS)
    sums = np.cumsum(np.where(real[..., None], DT, 0), 0)
    assert error((state, ys["sum"]), (sums[-1], np.where(real[..., None], sums, 0))) < 1e-6
    assert (ys["token"] == np.where(real, TOKENS, 0)).all()
    assert jaxrnn.trace(split(), {}, XS)["y"]["sum"].shape == (T, B, 2)


@pytest.mark.parametrize("flavour", ["nnx", "linen"])
def test_modules(flavour):
    flax = pytest.importorskip("flax")
    import jaxrnn.linen
    import jaxrnn.nnx

    batch = jax.tree.map(lambda a: a.swapaxes(0, 1), XS)
    for cell, sizes, xs in (
        (READER, None, batch["token"]),
        (jaxrnn.stack(joined(V, E), jaxrnn.gru(3)), {"token": None, "dt": 2}, batch),
    ):
        if flavour == "nnx":
            rnn = jaxrnn.nnx.RNN(cell, sizes, rngs=flax.nnx.Rngs(0))
            rnn.eval()
            run, step = rnn, rnn.step
            params = rnn.cell_and_params()[1]
        else:
            rnn = jaxrnn.linen.RNN(cell, dtype=jnp.float32)
            variables = rnn.init(KEY, xs)
            run = lambda *args, r=rnn, v=variables, **flags: r.apply(v, *args, **flags)
            step = lambda *args, r=rnn, v=variables: r.apply(v, *args, method="step")
            params = rnn.cell_and_params(variables)[1]
        ys = run(xs, lengths=LENGTHS, starts=STARTS.T)
        time_first = jax.tree.map(lambda a: a.swapaxes(0, 1), xs)
        wanted = jaxrnn.unroll(cell, params, time_first, **HEAR)[1]
        assert error(ys.swapaxes(0, 1), wanted) < 1e-6
        first = jax.tree.map(lambda a: a[:, 0], xs)
        y = step(cell.initial_state(params, (B,)), first)[1]
        assert error(y[0], wanted[0, 0]) < 1e-6


BAD = {
    "tokens for a GRU": (
        lambda: jaxrnn.unroll(jaxrnn.gru(4), PARAMS["2"], TOKENS),
        "xs: got int32, want a float",
    ),
    "features for a table": (
        lambda: jaxrnn.unroll(READER, PARAMS, DT),
        "xs: got float32, want an integer type",
    ),
    "a size": (lambda: READER.init(KEY, 3), "in_size: got 3, want None: tokens have no"),
    "no size": (lambda: jaxrnn.gru(4).init(KEY, None), "in_size: got None, want an int"),
    "table": (
        lambda: jaxrnn.unroll(READER, PARAMS | {"0": {"table": jnp.ones((V, 3))}}, TOKENS),
        "params['table']: got shape (5, 3), want (5, 4)",
    ),
    "lengths": (
        lambda: jaxrnn.unroll(READER, PARAMS, TOKENS, lengths=jnp.ones(2, int)),
        "lengths: got shape (2,), want [...batch] = (3,)",
    ),
    "mask": (
        lambda: jaxrnn.unroll(READER, PARAMS, TOKENS, mask=STARTS[1:]),
        "mask: got shape (5, 3), want [T, ...batch] = (6, 3)",
    ),
    "another batch": (
        lambda: jaxrnn.unroll(split(), {}, XS | {"dt": DT[:, :2]}),
        "xs['token']: got time and batch (6, 3), want (6, 2)",
    ),
    "no arrays": (lambda: jaxrnn.unroll(split(), {}, {}), "xs: got an empty dict"),
    "a number": (lambda: jaxrnn.unroll(READER, PARAMS, jnp.int32(3)), "xs: got shape (), want [T"),
    "in a dict": (
        lambda: jaxrnn.unroll(split(), {}, XS | {"dt": [1.0]}),
        "xs['dt']: got list, want",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, text = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert text in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
