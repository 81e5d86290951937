"""Flax's recurrent modules as our cells and back: their numbers in float64, with their weights."""

import functools
import pickle

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
    "smooth gru": (
        linen.GRUCell,
        SMOOTH,
        jaxrnn.gru(H, activation="softplus", gate_activation="hard_sigmoid"),
    ),
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
    "smooth gru": (
        nnx.GRUCell,
        SMOOTH,
        jaxrnn.gru(H, activation="softplus", gate_activation="hard_sigmoid"),
    ),
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
    params |= {"rb": jnp.zeros(H)} if "gru" in name else {}
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


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_an_rnn_is_its_cell(library):
    """Whichever way it runs: reversed it is ours reversed, also with lengths."""
    kind = {"linen": linen, "nnx": nnx}[library]
    if library == "linen":
        module, variables, carry = linen_made(linen.GRUCell, {})
        nested = {"params": {"cell": variables["params"]}}
        cell, params = from_flax(linen.RNN(module, time_major=True), nested)
        run = functools.partial(linen.RNN(module).apply, nested)
    else:
        module, carry = nnx_made(nnx.GRUCell, {})
        cell, params = from_flax(nnx.RNN(module, return_carry=True))
        run = nnx.RNN(module)
    assert isinstance(module, kind.Module)
    lengths, xs = jnp.array([5, 2, 3]), xs_for(None)
    options = {"reverse": True, "keep_order": True, "return_carry": True}
    final, ys = by_their_rules(run)(xs, initial_carry=carry, seq_lengths=lengths, **options)
    (h,), came = jaxrnn.unroll(
        cell, params, xs.swapaxes(0, 1), (carry,), lengths=lengths, reverse=True
    )
    wanted = np.array(ys) * (np.arange(T) < np.array(lengths)[:, None])[..., None]
    assert error((h, came.swapaxes(0, 1)), (final, jnp.array(wanted))) < 1e-12


def test_boxed_and_frozen_variables():
    """As `linen.with_partitioning` and older checkpoints have them."""
    from flax.core import freeze

    module, variables, _ = linen_made(linen.LSTMCell, {})
    boxed = jax.tree.map(lambda a: linen.Partitioned(a, (None,) * a.ndim), variables)
    assert error(from_flax(module, freeze(boxed))[1], from_flax(module, variables)[1]) == 0


def test_types_stay():
    cell = jaxrnn.lstm(H)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), randomised(cell))
    module, variables = to_linen(cell, params)
    for back in (from_flax(module, variables)[1], from_flax(to_nnx(cell, params))[1]):
        assert {a.dtype.name for a in back.values()} == {"bfloat16"}
    assert module.param_dtype == jnp.bfloat16


def test_the_minimal_gated_unit_is_a_cell():
    module, variables, _ = linen_made(linen.MGUCell, {})
    cell, params = from_flax(module, variables)
    assert repr(cell) == "flax_mgu(hidden=4)" and pickle.loads(pickle.dumps(cell)) == cell
    assert [a.shape for a in params.values()] == [(INPUTS, 2, H), (H, 2, H), (2, H), (H,)]


def changed(module, **options):
    """An nnx cell made otherwise, which warns of what it is given."""
    for name, value in options.items():
        setattr(module, name, value)
    return module


def test_what_cannot_come():
    module, variables, _ = linen_made(linen.GRUCell, {})
    params = variables["params"]
    conv, conv_variables, _ = linen_made(linen.ConvLSTMCell, {"kernel_size": (3, 2)})
    nnx_module, _ = nnx_made(nnx.GRUCell, {})
    rnn, nested = linen.RNN(module), {"params": {"cell": params}}
    ones = jax.nn.initializers.ones
    both = {"params": {"forward_rnn": {"cell": params}, "backward_rnn": {"cell": params}}}
    other = linen.RNN(linen.GRUCell(H))
    given = lambda **options: linen.GRUCell(H, **options)  # noqa: E731
    one = lambda **options: linen.ConvLSTMCell(H, (3, 2), **options)  # noqa: E731
    bad = (
        (TypeError, "source: got str, want a module of flax.linen or flax.nnx", "x", None),
        (
            TypeError,
            "source: got Dense, want one of .*GRUCell.* of flax.linen",
            linen.Dense(3),
            variables,
        ),
        (
            TypeError,
            "source: got Linear, want one of .*GRUCell.* of flax.nnx",
            nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
            None,
        ),
        (TypeError, "variables: got NoneType, want {'params': ...}", module, None),
        (TypeError, "variables: got dict, want {'params': ...}", module, params),
        (TypeError, "variables: got some, want None: an nnx", nnx_module, variables),
        (
            ValueError,
            r"variables\['params'\]: got \[\], want \['hn/bias'",
            module,
            {"params": {"cell": {}}},
        ),
        (ValueError, r"\['params'\]: got \['hn', .*, want \['cell'\]", rnn, variables),
        (
            ValueError,
            r"'cell'\]: got \['hn/bias', .*, want .*'in/bias'",
            rnn,
            {"params": {"cell": {name: params[name] for name in params if name != "in"}}},
        ),
        (
            ValueError,
            r"'hr/kernel'\]: got shape \(3, 3\), want \(4, 4\)",
            module,
            {"params": params | {"hr": {"kernel": jnp.ones((3, 3))}}},
        ),
        (
            TypeError,
            r"'hr/kernel'\]: got int64, want a floating type",
            module,
            {"params": params | {"hr": {"kernel": jnp.ones((H, H), int)}}},
        ),
        (
            ValueError,
            "gate_fn: got relu, want sigmoid: flax_mgu has no other",
            linen.MGUCell(H, gate_fn=jax.nn.relu),
            variables,
        ),
        (
            ValueError,
            "activation_fn: got relu, want tanh: flax_mgu",
            linen.MGUCell(H, activation_fn=jax.nn.relu),
            variables,
        ),
        (ValueError, "carry_init: got ones, want zeros: gru", given(carry_init=ones), variables),
        (
            ValueError,
            "dtype: got bfloat16, want None or float64",
            given(dtype=jnp.bfloat16),
            variables,
        ),
        (
            ValueError,
            "reverse: got True, want False: .*jaxrnn.unroll",
            linen.RNN(module, reverse=True),
            nested,
        ),
        (
            ValueError,
            "backward_rnn: got the cell of forward_rnn",
            linen.Bidirectional(rnn, rnn),
            both,
        ),
        (
            TypeError,
            "backward_rnn: got GRUCell, want an RNN",
            linen.Bidirectional(rnn, module),
            both,
        ),
        (
            ValueError,
            r"\['params'\]: got \['cell'\], want \['backward_rnn', 'forward_rnn'\]",
            linen.Bidirectional(rnn, other),
            nested,
        ),
        (
            ValueError,
            "carry_init: got ones, want zeros",
            changed(nnx_made(nnx.GRUCell, {})[0], carry_init=ones),
            None,
        ),
        (
            ValueError,
            "source: got .*'extra'.*, want .*'dense_i/kernel'",
            changed(nnx_made(nnx.GRUCell, {})[0], extra=nnx.Param(jnp.ones(H))),
            None,
        ),
        (
            ValueError,
            "shape: got None, want the 2 sizes of the input's places",
            conv,
            conv_variables,
        ),
        (
            ValueError,
            "padding: got 'VALID', want 'SAME': conv_lstm",
            one(padding="VALID"),
            conv_variables,
        ),
        (
            ValueError,
            r"strides: got \(2, 2\), want None: conv_lstm",
            one(strides=[2, 2]),
            conv_variables,
        ),
    )
    for kind, text, source, given in bad:
        with pytest.raises(kind, match=text):
            from_flax(source, given)
    with pytest.raises(ValueError, match=r"shape: got \(4, 3\), want None: GRUCell"):
        from_flax(module, variables, shape=PLACES)
    with pytest.raises(ValueError, match=r"shape: got \(4,\), want the 2 sizes"):
        from_flax(conv, conv_variables, shape=(4,))
    linen_softmax = linen.SimpleCell(H, activation_fn=jax.nn.softmax)
    with pytest.raises(TypeError, match="not elementwise"):
        from_flax(linen_softmax, linen_made(linen.SimpleCell, {})[1])


def test_what_cannot_go():
    gru, conv = jaxrnn.gru(H), jaxrnn.conv_lstm(H, shape=PLACES, stride=2)
    params = randomised(gru)
    lstm = functools.partial(jaxrnn.lstm, H)
    bad = (
        (TypeError, "cell: got 3, want a Cell", to_linen, 3),
        (
            TypeError,
            r"got sru\(hidden=4\), want one of \['elman', .*flax.linen",
            to_linen,
            jaxrnn.sru(H),
        ),
        (
            TypeError,
            r"cell: got ugrnn.*, want one of \['elman', .*flax.nnx",
            to_nnx,
            jaxrnn.ugrnn(H),
        ),
        (TypeError, "cell: got stack.*want one of", to_linen, jaxrnn.stack(gru)),
        (
            ValueError,
            "heads=2, want 1: flax.linen.GRUCell has no other",
            to_linen,
            jaxrnn.gru(H, heads=2),
        ),
        (
            ValueError,
            "reset_after=False, want True: flax.nnx.GRUCell",
            to_nnx,
            jaxrnn.gru(H, reset_after=False),
        ),
        (ValueError, "peepholes=True, want False", to_linen, lstm(peepholes=True)),
        (ValueError, "coupled=True, want False", to_linen, lstm(coupled=True)),
        (ValueError, "cell_clip=3.0, want None", to_nnx, lstm(cell_clip=3.0)),
        (ValueError, "projection=2, want None", to_nnx, lstm(projection=2)),
        (ValueError, "stride=2, want 1: flax.linen.ConvLSTMCell", to_linen, conv),
    )
    for kind, text, convert, cell in bad:
        with pytest.raises(kind, match=text):
            convert(cell, params)
    both = jaxrnn.bidirectional(gru)
    bad = (
        (r"params\['rb'\]: got other numbers than 0, but flax.nnx.GRUCell", to_nnx, gru, params),
        (r"params: got \['b'\], want \['b', 'r', 'rb', 'w'\]", to_linen, gru, {"b": params["b"]}),
        (
            r"params\['r'\]: got shape \(3, 3, 3\), want \(4, 3, 4\)",
            to_linen,
            gru,
            params | {"r": jnp.ones((3, 3, 3))},
        ),
        (
            r"params: got \['b', .*, want a dict of \['backward', 'forward'\]",
            to_linen,
            both,
            params,
        ),
    )
    for text, convert, cell, params in bad:
        with pytest.raises(ValueError, match=text):
            convert(cell, params)
