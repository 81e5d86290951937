"""The Flax modules: generic in the cell, batch first, with the numbers of ``unroll``."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import NO_KERNEL, TOLERANCE, error, mgu
from flax import linen, nnx

import jaxrnn
import jaxrnn.files
import jaxrnn.interop
import jaxrnn.linen
import jaxrnn.nnx

B, T, INPUTS = 4, 6, 3
XS = jax.random.normal(jax.random.key(0), (B, T, INPUTS))
CELLS = {
    "lstm": jaxrnn.lstm(4),
    "mgu": mgu(4),  # a user's
    "attention": jaxrnn.attention(4, heads=2, window=3),
    "stack": jaxrnn.stack(jaxrnn.gru(4), jaxrnn.dropout(0.5), jaxrnn.project(2)),
}
DEEP = jaxrnn.stack(mgu(16), jaxrnn.dropout(0.1), jaxrnn.project(1))
TARGET = jnp.tanh(jnp.cumsum(XS[..., :1], 1))  # a toy problem: the sum so far of a feature
NOISY = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.gru(4))


def nnx_run(cell, seed=0, *, make=jaxrnn.nnx.RNN, train=False, **options):
    """The cell's parameters, and a function that calls an NNX module of it."""
    rnn = make(cell, INPUTS, rngs=nnx.Rngs(params=0, dropout=seed), **options)
    rnn.train() if train else rnn.eval()
    is_param = lambda p: isinstance(p, nnx.Param)  # noqa: E731
    return jax.tree.map(lambda p: p[...], rnn.params, is_leaf=is_param), rnn


def linen_run(cell, seed=0, *, make=jaxrnn.linen.RNN, train=False, **options):
    """The same of Linen, with a new key at each call."""
    rnn = make(cell, **options)
    variables = rnn.init(jax.random.key(0), XS)
    keys = iter(jax.random.split(jax.random.key(seed)))

    def call(*args, **options):
        rngs = {"dropout": next(keys)} if train else {}
        return rnn.apply(variables, *args, rngs=rngs, **options)

    return variables["params"]["cell"], call


FLAVOURS = {"nnx": (jaxrnn.nnx, nnx_run), "linen": (jaxrnn.linen, linen_run)}
each_flavour = pytest.mark.parametrize("library, run", FLAVOURS.values(), ids=FLAVOURS)


unroll = jax.jit(jaxrnn.unroll, static_argnames=("cell", "reverse"))


def agree(cell, params, rnn):
    """The module and ``unroll`` with all there is to give."""
    mask, starts = np.random.default_rng(1).random((2, B, T)) < 0.7
    lengths = np.array([6, 0, 3, 5], np.int32)
    state, plain = unroll(cell, params, XS.swapaxes(0, 1))
    for reverse in (False, True):
        wanted = unroll(
            cell,
            params,
            XS.swapaxes(0, 1),
            state,
            lengths=lengths,
            mask=mask.T,
            starts=starts.T,
            reverse=reverse,
        )
        came, ys = rnn(
            XS,
            initial_state=state,
            seq_lengths=lengths,
            mask=mask,
            starts=starts,
            reverse=reverse,
            return_state=True,
        )
        assert error((came, ys.swapaxes(0, 1)), wanted) < TOLERANCE["float32"][0]
    assert error(rnn(XS), plain.swapaxes(0, 1)) < 1e-6


@each_flavour
@pytest.mark.parametrize("name", CELLS)
def test_a_module_is_unroll(name, library, run):
    agree(CELLS[name], *run(CELLS[name]))


@each_flavour
@pytest.mark.parametrize("options", [{}, {"backward": jaxrnn.lstm(4), "merge": "sum"}])
def test_bidirectional(library, run, options):
    cell = jaxrnn.gru(4)
    agree(jaxrnn.bidirectional(cell, **options), *run(cell, make=library.Bidirectional, **options))


@each_flavour
def test_outputs_apart(library, run):
    """With ``merge=None`` both directions' outputs come, batch first like all others."""
    cell = jaxrnn.gru(4)
    together = run(cell, make=library.Bidirectional)[1](XS)
    apart = run(cell, make=library.Bidirectional, merge=None)[1](XS)
    assert error(jnp.concatenate(apart, -1), together) < 1e-6


@each_flavour
def test_batch_axes(library, run):
    cell = jaxrnn.gru(4)
    params, rnn = run(cell)
    ys = rnn(XS)
    assert error(rnn(XS[0]), ys[0]) < 1e-6
    assert error(rnn(XS.reshape(2, 2, T, INPUTS)), ys.reshape(2, 2, T, 4)) < 1e-6


@each_flavour
def test_dropout_draws_from_flax(library, run):
    evaluated = run(NOISY)[1]
    _, rnn = run(NOISY, seed=1, train=True)
    first, second = rnn(XS), rnn(XS)
    assert (evaluated(XS) == evaluated(XS)).all()
    for other in (second, evaluated(XS), run(NOISY, seed=2, train=True)[1](XS)):
        assert (first != other).any()
    again = run(NOISY, seed=1, train=True)[1]
    assert (again(XS) == first).all() and (again(XS) == second).all()


@each_flavour
def test_dtype_of_the_products(library, run):
    """Parameters stay in float32, and are cast in a call."""
    cell = jaxrnn.lstm(4)
    params, rnn = run(cell, dtype=jnp.bfloat16)
    assert {p.dtype.name for p in jax.tree.leaves(params)} == {"float32"}
    ys = rnn(XS)
    assert ys.dtype == jnp.bfloat16
    assert 0 < error(ys, run(cell)[1](XS)) < TOLERANCE["bfloat16"][0]


def test_dtype_of_a_step():
    rnn = jaxrnn.nnx.RNN(jaxrnn.lstm(4), INPUTS, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    state, y = rnn.step(rnn.initial_state((B,)), XS[:, 0])
    assert y.dtype == jnp.bfloat16 and {s.dtype.name for s in state} == {"float32"}
    assert error(y, rnn(XS)[:, 0]) < TOLERANCE["bfloat16"][0]


def test_nnx_step():
    """A stream is the sequence, step by step."""
    rnn = jaxrnn.nnx.RNN(jaxrnn.gru(4), INPUTS, rngs=nnx.Rngs(0))
    state, ys = rnn.initial_state((B,)), []
    for t in range(T):
        state, y = rnn.step(state, XS[:, t])
        ys.append(y)
    came = state, jnp.stack(ys, 1)
    assert error(came, rnn(XS, return_state=True)) < TOLERANCE["float32"][0]


def test_trains_under_nnx():
    rnn = jaxrnn.nnx.RNN(DEEP, INPUTS, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(rnn, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(rnn, optimizer):
        loss, gradient = nnx.value_and_grad(lambda rnn: ((rnn(XS) - TARGET) ** 2).mean())(rnn)
        optimizer.update(rnn, gradient)
        return loss

    falls([step(rnn, optimizer) for _ in range(100)])


def test_trains_under_linen():
    rnn = jaxrnn.linen.RNN(DEEP)
    variables, optimizer = rnn.init(jax.random.key(0), XS), optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(variables, state, key):
        def loss(variables):
            return ((rnn.apply(variables, XS, rngs={"dropout": key}) - TARGET) ** 2).mean()

        loss, gradient = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state, loss

    state, losses = optimizer.init(variables), []
    for key in jax.random.split(jax.random.key(1), 100):
        variables, state, loss = step(variables, state, key)
        losses.append(loss)
    falls(losses)


def falls(losses):
    assert sum(losses[-10:]) / 10 < 0.2 * losses[0]


@each_flavour
def test_errors_are_those_of_unroll(library, run):
    _, rnn = run(CELLS["lstm"])
    flags = jnp.ones((T, B), bool)
    shape = "got shape .6, 4., want \\[...batch, T\\] = .4, 6."
    bad = (
        (ValueError, "xs: got shape .3,., want \\[...batch, T, I\\]", dict(xs=XS[0, 0])),
        (TypeError, "xs: got list, want an array \\[...batch", dict(xs=[[1.0]], mask=flags)),
        (ValueError, "seq_lengths: got values from 7 to 7", dict(seq_lengths=jnp.full(B, T + 1))),
        (ValueError, f"mask: {shape}", dict(mask=flags)),
        (ValueError, f"starts: {shape}", dict(starts=flags)),
        (ValueError, f"segment_ids: {shape}", dict(segment_ids=flags.astype(int))),
        (ValueError, "state: got .*, want .*float32\\[4, 4\\]", dict(initial_state=XS)),
    )
    for kind, text, options in bad:
        with pytest.raises(kind, match=text):
            rnn(**{"xs": XS} | options)
    with pytest.raises(ValueError, match="implementation: got 'fast', want"):
        run(CELLS["lstm"], implementation="fast")[1](XS)


@each_flavour
def test_both_vocabularies(library, run):
    """Flax's names of an argument and jaxrnn's; time may lead."""
    _, rnn = run(CELLS["lstm"])
    lengths = jnp.array([6, 0, 3, 5])
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (B, T))
    state = rnn(XS, return_state=True)[0]
    theirs = {"initial_state": state, "seq_lengths": lengths}
    ours = {"state": state, "lengths": lengths}
    wanted = rnn(XS, **theirs, mask=mask, starts=mask, return_state=True)
    came = rnn(XS, **ours, mask=mask, starts=mask, return_state=True)
    swapped = rnn(
        XS.swapaxes(0, 1), **ours, mask=mask.T, starts=mask.T, time_major=True, return_state=True
    )
    assert error(came, wanted) == 0
    ids = np.int32([[1, 1, 2, 0, 2, 3], [0, 0, 5, 5, 4, 4], [1] * 6, [0] * 6])
    flags = dict(zip(("mask", "starts"), jaxrnn.from_segment_ids(ids.T)))
    packed = rnn(XS, segment_ids=ids)
    assert error(packed, rnn(XS, **{name: flag.T for name, flag in flags.items()})) == 0
    assert (
        error(rnn(XS.swapaxes(0, 1), segment_ids=ids.T, time_major=True), packed.swapaxes(0, 1))
        < 1e-6
    )
    assert error((swapped[0], swapped[1].swapaxes(0, 1)), wanted) < 1e-6
    for theirs, ours in (("initial_state", "state"), ("seq_lengths", "lengths")):
        with pytest.raises(ValueError, match=f"{theirs}: got it and {ours}, want one"):
            rnn(XS, **{theirs: state, ours: state})
    with pytest.raises(ValueError, match="^lengths: got values from 7 to 7"):
        rnn(XS, lengths=jnp.full(B, T + 1))
    with pytest.raises(TypeError, match="time_major: got 1, want True or False"):
        rnn(XS, time_major=1)


@each_flavour
def test_deterministic_says_which_is_meant(library, run):
    evaluated = run(NOISY)[1](XS)
    _, rnn = run(NOISY, seed=1, train=True)
    assert (rnn(XS, deterministic=True) == evaluated).all()
    assert (rnn(XS, deterministic=False) != evaluated).any()
    assert run(CELLS["lstm"])[1](XS, deterministic=False).shape == (B, T, 4)  # it draws nothing


def test_deterministic_without_a_stream():
    _, rnn = linen_run(NOISY)
    with pytest.raises(ValueError, match="rngs: got no 'dropout' and deterministic=False, want"):
        rnn(XS, deterministic=False)


@each_flavour
def test_param_dtype(library, run):
    params, rnn = run(jaxrnn.int8(jaxrnn.gru(4)), param_dtype=jnp.bfloat16)
    types = {p.dtype.name for p in jax.tree.leaves(params)}
    assert types == {"int8", "bfloat16"}  # what is no floating number stays as it is
    params, rnn = run(CELLS["lstm"], param_dtype=jnp.float16, dtype=jnp.float32)
    assert {p.dtype.name for p in jax.tree.leaves(params)} == {"float16"}
    assert rnn(XS).dtype == jnp.float32


def test_linen_step():
    """A stream is the sequence, step by step; a module may also be initialised by one."""
    rnn = jaxrnn.linen.Bidirectional(jaxrnn.gru(4))
    with pytest.raises(ValueError, match="bidirectional has no step"):
        rnn.init(jax.random.key(0), None, XS[:, 0], method="step")
    rnn = jaxrnn.linen.RNN(CELLS["stack"], dtype=jnp.bfloat16)
    variables = rnn.init(jax.random.key(0), XS)
    state = rnn.apply(variables, (B,), method="initial_state")
    step = jax.jit(lambda state, x: rnn.apply(variables, state, x, method="step"))
    ys = []
    for t in range(T):
        state, y = step(state, XS[:, t])
        ys.append(y)
    came = state, jnp.stack(ys, 1)
    wanted = rnn.apply(variables, XS, return_state=True)
    assert y.dtype == jnp.bfloat16 and error(came, wanted) < TOLERANCE["bfloat16"][0]
    begun = rnn.init(jax.random.key(0), wanted[0], XS[:, 0], method="step")
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), begun, variables))


def test_a_modules_parameters_go_out_and_in(tmp_path):
    """A file, another library, a trace, another module: all take what a module holds."""
    rnn = jaxrnn.nnx.RNN(CELLS["lstm"], INPUTS, rngs=nnx.Rngs(0))
    cell, params = rnn.cell_and_params()
    assert cell == CELLS["lstm"] and all(type(a) is type(XS) for a in params.values())
    for given in (rnn.params, nnx.state(rnn)["params"], params):
        jaxrnn.files.save(tmp_path / "saved", cell, given)
        loaded = jaxrnn.files.load(tmp_path / "saved")[1]
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), loaded, params))
        came = jaxrnn.interop.to_haiku(cell, given)
        wanted = jaxrnn.interop.to_haiku(cell, params)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), came, wanted))
        assert sorted(jaxrnn.trace(cell, given, XS[0])) == sorted(
            jaxrnn.trace(cell, params, XS[0])
        )
    assert (jaxrnn.nnx.RNN(cell, INPUTS, params=loaded)(XS) == rnn(XS)).all()
    linen_rnn = jaxrnn.linen.RNN(cell)
    variables = {"params": {"cell": loaded}}
    assert (linen_rnn.apply(variables, XS) == rnn(XS)).all()
    again = linen_rnn.cell_and_params(variables)
    assert again[0] == cell and again[1] == loaded
    assert jaxrnn.linen.RNN(jaxrnn.dropout(0.5)).cell_and_params({})[1] == {}


WRONG = {  # a call, and what its text has
    "nnx, a constructor": (
        lambda: jaxrnn.nnx.RNN(jaxrnn.lstm, 3, rngs=nnx.Rngs(0)),
        "cell: got lstm, want a Cell",
    ),
    "nnx, a cell of Flax": (
        lambda: jaxrnn.nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), 3, rngs=nnx.Rngs(0)),
        "cell: got flax's GRUCell, want a Cell, as jaxrnn.lstm",
    ),
    "nnx, a class of Flax": (
        lambda: jaxrnn.nnx.RNN(nnx.GRUCell, 3, rngs=nnx.Rngs(0)),
        "GRUCell'>, want a Cell",
    ),
    "nnx, a key": (
        lambda: jaxrnn.nnx.RNN(jaxrnn.lstm(4), 3, rngs=jax.random.key(0)),
        "rngs: got key<fry>[], want an nnx.Rngs, as nnx.Rngs(0)",
    ),
    "nnx, no rngs": (lambda: jaxrnn.nnx.RNN(jaxrnn.lstm(4), 3), "rngs: got None, want an nnx"),
    "nnx, no rngs to draw with": (
        lambda: jaxrnn.nnx.RNN(jaxrnn.dropout(0.5), 3, params={}),
        "rngs: got None, want",
    ),
    "linen, a cell of Flax": (
        lambda: jaxrnn.linen.RNN(linen.GRUCell(4)),
        "cell: got flax's GRUCell, want a Cell",
    ),
    "linen, a constructor": (lambda: jaxrnn.linen.RNN(jaxrnn.gru), "cell: got gru, want a Cell"),
    "a module for its parameters": (
        lambda: jaxrnn.unroll(
            jaxrnn.gru(4), jaxrnn.nnx.RNN(jaxrnn.gru(4), 3, rngs=nnx.Rngs(0)), XS
        ),
        "params: got jaxrnn's RNN, want a dict of ['b', 'r', 'rb', 'w']"
        ": they are in module.cell_and_params()",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_says_what_is_wrong(name):
    call, text = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert text in str(caught.value)


def test_nnx_knows_its_features():
    rnn = jaxrnn.nnx.RNN(CELLS["lstm"], INPUTS, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="xs: got I = 2 features, want 3"):
        rnn(XS[..., :2])


def test_inside_another_linen_module():
    class Tagger(linen.Module):
        @linen.compact
        def __call__(self, xs):
            return linen.Dense(2)(jaxrnn.linen.Bidirectional(jaxrnn.lstm(4))(xs))

    ys, variables = Tagger().init_with_output(jax.random.key(0), XS)
    assert ys.shape == (B, T, 2)
    assert set(variables["params"]) == {"Dense_0", "Bidirectional_0"}


def test_nnx_split_and_merge():
    rnn = jaxrnn.nnx.RNN(CELLS["stack"], INPUTS, rngs=nnx.Rngs(0))
    rnn.eval()
    graph, params, rest = nnx.split(rnn, nnx.Param, ...)
    doubled = nnx.merge(graph, jax.tree.map(lambda a: 2 * a, params), rest)
    assert (nnx.merge(graph, params, rest)(XS) == rnn(XS)).all()
    assert (doubled(XS) != rnn(XS)).any()


def test_nnx_ensemble():
    """``nnx.vmap`` over modules, each with its own weights and dropout."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return jaxrnn.nnx.RNN(NOISY, INPUTS, rngs=rngs)

    members = make(nnx.Rngs(0))
    members.eval()
    ys = nnx.vmap(lambda rnn, xs: rnn(xs), in_axes=(0, None))(members, XS)
    graph, state = nnx.split(members)
    for i in range(3):
        one = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state))
        assert error(ys[i], one(XS)) < TOLERANCE["float32"][0]
    assert (ys[0] != ys[1]).any()


@pytest.mark.skipif(NO_KERNEL is not None, reason=str(NO_KERNEL))
def test_a_batch_that_comes_first_is_read_in_place():
    """No float of all steps is transposed, beside dropout and in both directions."""
    key, two = jax.random.key(0), jaxrnn.bidirectional(jaxrnn.lstm(4))
    rnn = jaxrnn.linen.RNN(jaxrnn.stack(jaxrnn.gru(4), jaxrnn.dropout(0.5), two))
    variables = rnn.init(key, XS)

    def loss(variables, xs):
        return (rnn.apply(variables, xs, rngs={"dropout": key}) ** 2).sum()

    program = jax.jit(jax.grad(loss, (0, 1))).lower(variables, XS).compile().as_text()
    assert "jaxrnn_backward" in program
    assert not re.findall(r"= f32\[\d+,\d+,\d+\]\S* (?:transpose|copy)\(.*", program)


UNITS = {"w": (None, None, "units"), "r": (None, None, "units"), "b": (None, "units")}


def test_axes_of_parameters_have_names():
    """What Flax divides weights over devices by; the numbers are those without."""
    cell = jaxrnn.stack(jaxrnn.lstm(8), jaxrnn.gru(8))
    mesh = jax.make_mesh((8,), ("units",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "units"))

    plain = jaxrnn.linen.RNN(cell)
    rnn = jaxrnn.linen.RNN(cell, partitioning=UNITS)
    variables = rnn.init(jax.random.key(0), XS)
    specs = linen.logical_to_mesh_sharding(
        linen.get_partition_spec(variables), mesh, [("units", "units")]
    )
    assert specs["params"]["cell"]["1"]["r"] == over
    placed = jax.device_put(linen.unbox(variables), specs)
    assert placed["params"]["cell"]["0"]["w"].sharding.is_equivalent_to(over, 3)
    wanted = plain.apply(linen.unbox(variables), XS)
    for given in (variables, placed):
        np.testing.assert_allclose(jax.jit(rnn.apply)(given, XS), wanted, rtol=0, atol=1e-6)
    assert rnn.apply(variables, (B,), method="initial_state")[0][0].shape == (B, 8)

    with jax.set_mesh(mesh):
        rnn = jaxrnn.nnx.RNN(cell, INPUTS, partitioning=UNITS, rngs=nnx.Rngs(0))
        spec = nnx.get_partition_spec(nnx.state(rnn))["params"]["1"]["r"].get_value()
        assert spec == over.spec
        assert rnn.params["1"]["r"][...].sharding.is_equivalent_to(over, 3)
        came = nnx.jit(lambda rnn, xs: rnn(xs))(rnn, XS)
    params = jax.tree.map(np.asarray, rnn.cell_and_params()[1])
    alone = jaxrnn.nnx.RNN(cell, INPUTS, params=params)
    np.testing.assert_allclose(came, alone(XS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "partitioning, error, words",
    [
        (
            {"kernel": (None, None)},
            ValueError,
            "partitioning: got the name 'kernel', want some of",
        ),
        ({"b": ("units",)}, ValueError, r"partitioning\['b'\]: got \('units',\), want 2, one for"),
        ({"b": "units"}, TypeError, r"partitioning\['b'\]: got .*want a tuple with the name"),
    ],
)
def test_names_that_do_not_fit(partitioning, error, words):
    with pytest.raises(error, match=words):
        jaxrnn.nnx.RNN(jaxrnn.lstm(8), INPUTS, partitioning=partitioning, rngs=nnx.Rngs(0))
    with pytest.raises(error, match=words):
        jaxrnn.linen.RNN(jaxrnn.lstm(8), partitioning=partitioning).init(jax.random.key(0), XS)
