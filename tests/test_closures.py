"""What a user's function closes over is differentiated, batched and sharded like any operand."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NO_KERNEL, cotangents, error, floating

import jaxrnn

H, KEY = 4, jax.random.key(0)
XS = np.random.default_rng(1).normal(size=(6, 2, 3))

pytestmark = pytest.mark.usefixtures("x64", "plain_jax")


def scaled_update(a):
    def scaled_update(state, x, r):
        return (jnp.tanh(a * (x[0] + r[0])),)

    return jaxrnn.gated(scaled_update, gates=1)(H)


def act(a):
    return lambda z: jnp.tanh(a * z)


# Every place where a caller hands in a function that may become static: a -> cell.
GATED = {
    "update": scaled_update,
    "elman": lambda a: jaxrnn.elman(H, activation=act(a)),
    "leaky": lambda a: jaxrnn.leaky(H, alpha=0.3, activation=act(a)),
    "ran": lambda a: jaxrnn.ran(H, activation=act(a)),
    "lstm": lambda a: jaxrnn.lstm(H, activation=act(a)),
    "lstm gates": lambda a: jaxrnn.lstm(H, gate_activation=lambda z: jax.nn.sigmoid(a * z)),
    "gru": lambda a: jaxrnn.gru(H, activation=act(a)),
    "heads": lambda a: jaxrnn.elman(H, activation=act(a), heads=2),
    "chunks": lambda a: jaxrnn.elman(H, activation=act(a), residuals="chunks"),
}
LIFTED = {
    "indrnn": lambda a: jaxrnn.indrnn(H, activation=act(a)),
    "gru before": lambda a: jaxrnn.gru(H, gate_activation=act(a), reset_after=False),
    "lstmp": lambda a: jaxrnn.lstm(H, activation=act(a), projection=3),
}
PLAIN = {
    "cell": lambda a: jaxrnn.cell(
        lambda key, n: {"w": jax.random.normal(key, (n, H))},
        lambda params, batch: jnp.zeros((*batch, H)),
        lambda params, h, x: (jnp.tanh(a * (h + x @ params["w"])),) * 2,
    ),
    "stateless": lambda a: jaxrnn.stateless(lambda key, n: {}, lambda params, x: act(a)(x)),
    "project": lambda a: jaxrnn.project(H, activation=act(a)),
    "conv1d": lambda a: jaxrnn.conv1d(H, kernel=2, activation=act(a)),
    "with_params": lambda a: jaxrnn.with_params(
        jaxrnn.gru(H), lambda params, key: params | {"r": a * params["r"]}
    ),
    "merge": lambda a: jaxrnn.parallel(
        jaxrnn.gru(H), jaxrnn.elman(H), merge=lambda y, z: y + act(a)(z)
    ),
    "bidirectional": lambda a: jaxrnn.bidirectional(
        jaxrnn.gru(H), merge=lambda y, z: y + act(a)(z)
    ),
    "drop": lambda a: jaxrnn.stack(jaxrnn.dropout(0.5), scaled_update(a)),
}
MAKERS = GATED | LIFTED | PLAIN


@functools.cache
def given(name):
    params = MAKERS[name](1.0).init(KEY, 3)
    return jax.tree.map(lambda p: p + 0.1, params)


def total(name, a, implementation=None, params=None):
    """A number that everything in the results goes into."""
    cell, params = MAKERS[name](a), given(name) if params is None else params
    out = jaxrnn.unroll(cell, params, XS, implementation=implementation)
    pairs = zip(jax.tree.leaves(cotangents(out)), jax.tree.leaves(floating(out)), strict=True)
    return sum((weight * value).sum() for weight, value in pairs)


@pytest.mark.parametrize("name", MAKERS)
def test_a_number_that_is_closed_over(name):
    """Its value, derivatives by it and a batch of it, against a scan of the step."""
    size = 1e-5
    values, at, ones = np.array([1.3, 0.4, 1.3 + size, 1.3 - size]), np.array(1.3), np.array(1.0)
    params = given(name)
    # Made of cells, each with implementations of its own.
    made_of_others = name in ("merge", "bidirectional", "conv1d", "with_params", "drop")

    def of(implementation):
        run = lambda a, params: total(name, a, implementation, params)
        return run, jax.value_and_grad(run, (0, 1))

    @jax.jit
    def scanned(values):
        _, both = of(None if made_of_others else "reference")
        return jax.lax.scan(lambda _, a: (None, both(a, params)), None, values)[1]

    @jax.jit
    def found(at, values):
        run, both = of(None)
        moved = jax.jvp(lambda a: run(a, params), (at,), (ones,))
        return (
            both(at, params),
            moved,
            jax.vmap(lambda a: both(a, params))(values),
            jax.lax.scan(lambda _, a: (None, run(a, params)), None, values)[1],
        )

    wanted = scanned(values)
    totals, (slopes, _) = jax.tree.map(np.asarray, wanted)
    slope, first = (totals[2] - totals[3]) / (2 * size), jax.tree.map(lambda a: a[0], wanted)
    assert abs(slopes[0]) > 1e-3 and abs(slopes[0] - slope) < 1e-6 * abs(slope)
    came = found(at, values)
    assert error(came, (first, (totals[0], slopes[0]), wanted, totals)) < 1e-10
    if name in GATED:
        both = of("xla")[1]
        by_xla = jax.jit(lambda *a: (both(a[0], params), jax.vmap(both, (0, None))(*a[1:])))
        assert error(by_xla(at, values, params), (first, wanted)) < 1e-10
    eager = jax.grad(functools.partial(total, name))(jnp.array(1.3))  # outside of jit
    assert abs(eager - slopes[0]) < 1e-10 * abs(slopes[0])


@pytest.mark.parametrize("how", ("row", "one", "table", "count", "flag"))
def test_arrays_that_are_closed_over(how):
    """A number for each unit is a weight; of what no kernel can take, the step is scanned."""

    def make(a):
        def closing_update(state, x, r):
            z = x[0] + r[0]
            if how in ("row", "one"):
                return (jnp.tanh(a * z),)
            if how == "table":
                return (jnp.tanh(a[2] * z),)
            if how == "count":
                return (jnp.tanh(z) * a.astype(z.dtype),)
            return (jnp.where(a, jnp.tanh(z), z),)

        return jaxrnn.gated(closing_update, gates=1)(H)

    a = {
        "row": jnp.array([0.3, 1.0, -0.7, 2.0]),
        "one": jnp.array([0.7]),
        "table": jnp.arange(3.0) / 2,
        "count": jnp.int32(2),
        "flag": jnp.array([True, False, True, True]),
    }[how]
    params = jax.tree.map(lambda p: p + 0.1, make(a).init(KEY, 3))

    def loss(a, params, implementation=None):
        _, ys = jaxrnn.unroll(make(a), params, XS, implementation=implementation)
        return (ys * jnp.cos(jnp.arange(ys.size).reshape(ys.shape))).sum()

    def both(implementation):
        grads = jax.value_and_grad(loss, (0, 1), allow_int=True)
        return jax.jit(lambda a: floating(grads(a, params, implementation)))(a)

    wanted = both("reference")
    assert error(both(None), wanted) < 1e-10
    assert (
        error(floating(jax.value_and_grad(loss, 1)(a, params)), (wanted[0], wanted[1][1])) < 1e-10
    )
    if how == "row":
        at = lambda i, h: loss(a.at[i].add(h), params)
        slope = jnp.stack([(at(i, 1e-5) - at(i, -1e-5)) / 2e-5 for i in range(H)])
        assert error(wanted[1][0], slope) < 1e-6
    runs = []

    def explained(a):
        (choice,) = jaxrnn.explain(make(a), params, XS).choices
        runs.append(choice)
        return a

    jax.eval_shape(explained, a)
    if how in ("row", "one", "flag"):
        assert runs[0].runs == ("xla" if NO_KERNEL else "cpu")
    else:
        assert runs[0].runs == "reference" and "closes over a traced" in runs[0].others["xla"]
        with pytest.raises(ValueError, match=r"implementation='xla' cannot run this: .* traced"):
            jax.jit(lambda a: loss(a, params, "xla"))(a)


def test_arrays_of_other_units_are_refused():
    update = lambda state, x, r: (jnp.tanh(jnp.arange(5.0) * (x[0] + r[0])),)
    update.__name__ = "five_update"
    five = jaxrnn.gated(update, gates=1)
    assert jaxrnn.unroll(five(5), five(5).init(KEY, 3), XS)[1].shape == (6, 2, 5)
    with pytest.raises(ValueError, match="hidden: got 4, want 5"):
        five(4)


def test_a_function_that_closes_over_something_compiles_once(caplog):
    """And what it closes over is not kept when it is gone."""
    cell, params = scaled_update(jnp.array(0.5)), given("update")
    step = jax.jit(lambda a: jaxrnn.unroll(scaled_update(a), params, XS)[1])
    jaxrnn.unroll(cell, params, XS)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        jaxrnn.unroll(cell, params, XS)
    assert not [m for m in caplog.messages if "Finished XLA compilation" in m]
    with jax.checking_leaks():
        step(0.3)
    array = jnp.full((), 0.7) + 0
    kept = weakref.ref(array)
    cell = scaled_update(array)
    jaxrnn.unroll(cell, params, XS)
    del cell, array
    jax.clear_caches()
    gc.collect()
    assert kept() is None


def test_sharded_rows_and_a_number_that_is_closed_over():
    """Under jit, in shard_map where it varies by device, and on explicit axes."""
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    params, values = given("update"), np.linspace(0.5, 1.5, 2)
    xs, rows = jnp.concatenate([XS] * 2, 1), P(None, "rows")
    run = lambda a, xs: jaxrnn.unroll(scaled_update(a), params, xs)[1]
    loss = lambda a, xs: (run(a, xs) ** 2).sum()
    wanted = jax.jit(jax.value_and_grad(loss))(values[0], xs)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            put = jax.device_put(xs, NamedSharding(mesh, rows))
            assert error(jax.jit(jax.value_and_grad(loss))(values[0], put), wanted) < 1e-10
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda a, xs: run(a[0], xs), mesh=mesh, in_specs=(P("rows"), rows), out_specs=rows
    )
    halves = [run(a, part) for a, part in zip(values, jnp.split(xs, 2, 1))]
    assert error(jax.jit(mapped)(values, xs), jnp.concatenate(halves, 1)) < 1e-10


def test_weights_of_units_beside_a_number_that_is_closed_over():
    """Both are handed to the update, each in its place."""

    def make(a):
        def closing_update(state, x, r, gain, shift):
            return (jnp.tanh(a * (x[0] + r[0])) * gain + shift,)

        unit = {"gain": jax.nn.initializers.normal(), "shift": jax.nn.initializers.normal()}
        return jaxrnn.gated(closing_update, gates=1, unit=unit)(4)

    params, xs = make(1.0).init(KEY, 3), np.random.default_rng(0).normal(size=(5, 2, 3))

    @jax.jit
    def run(a, params):
        return jaxrnn.unroll(make(a), params, jnp.asarray(xs))[1]

    w, r, b, gain, shift = (np.asarray(params[n]) for n in ("w", "r", "b", "gain", "shift"))
    h, wanted = np.zeros((2, 4)), []
    for x in xs:
        h = np.tanh(1.3 * (x @ w[:, 0] + h @ r[:, 0] + b[0])) * gain + shift
        wanted.append(h)
    assert error(run(1.3, params), np.array(wanted)) < 1e-12
