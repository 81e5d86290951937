"""Gradients forward in time, against back-propagation and the papers' equations in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth

import jaxrnn
from jaxrnn._src.ops import dependence
from jaxrnn._src.wrappers.online_gradients import rank_one

pytestmark = pytest.mark.usefixtures("x64")
T, B, FEATURES = 6, 3, 4


def drawn(cell, steps=T, rows=B, features=FEATURES):
    keys = jax.random.split(jax.random.key(0), 4)
    params = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(keys[0], a.shape), cell.init(keys[1], features)
    )
    xs = jax.random.normal(keys[2], (steps, rows, features))
    ys = jax.eval_shape(lambda: jaxrnn.unroll(cell, params, xs)[1])
    return params, xs, jax.random.normal(keys[3], ys.shape)


def gradient(cell):
    def loss(params, xs, weights, **options):
        return (jnp.tanh(jaxrnn.unroll(cell, params, xs, **options)[1]) * weights).sum()

    return jax.jit(jax.grad(loss))


def error(came, want):
    off = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), came, want)
    return max(jax.tree.leaves(off))


@pytest.mark.parametrize("cell", (jaxrnn.lstm(4, heads=2), jaxrnn.rg_lru(4, heads=2)), ids=repr)
def test_labels_are_those_of_the_jacobian(cell):
    params, xs, _ = drawn(cell, 1, 1)
    state = jax.tree.map(lambda a: jnp.full_like(a, 2), cell.initial_state(params, ()))
    run = lambda params, state, x: cell.step(params, state, x)[0][0]
    closed = jax.make_jaxpr(run)(params, state, xs[0, 0])
    dense = jax.jit(jax.jacrev(run, (0, 1, 2), allow_int=True))(params, state, xs[0, 0])
    found = zip(dependence.labels(closed, 0), jax.tree.leaves(dense), closed.in_avals)
    for label, jacobian, aval in found:
        if not jnp.issubdtype(aval.dtype, jnp.floating):
            continue
        seen = np.asarray(jacobian) != 0
        one = np.where(seen.any(0), seen.argmax(0), dependence.NOBODY)
        np.testing.assert_array_equal(label, np.where(seen.sum(0) > 1, dependence.SEVERAL, one))


@pytest.mark.parametrize(
    "cell",
    (
        jaxrnn.lru(4, state=3),
        jaxrnn.indrnn(5),
        jaxrnn.rg_lru(4, heads=2),
        jaxrnn.qrnn(3),
        jaxrnn.parallel(jaxrnn.min_gru(3), jaxrnn.sru(3, project=True)),
    ),
    ids=repr,
)
def test_rtrl_is_back_propagation(cell):
    given = drawn(cell)
    mask = [[1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1]]
    starts = [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    options = {"mask": np.array(mask, bool), "starts": np.array(starts, bool)}
    came = gradient(jaxrnn.online(cell, "rtrl"))(*given, **options)
    assert error(came, gradient(cell)(*given, **options)) < 1e-10


def test_memory_does_not_grow_with_time():
    """What a program of many steps needs beside what it is given, and what it gives."""
    cell, rows = jaxrnn.lru(4, state=3), 2
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))

    def forward_in_time(params, xs):
        online = jaxrnn.online(cell)

        def step(carry, x):
            def loss(params):
                after, y = online.step(params, carry[0], x)
                return (y**2).sum(), after

            gradient, state = jax.grad(loss, has_aux=True)(params)
            return (state, jax.tree.map(jnp.add, carry[1], gradient)), None

        first = online.initial_state(params, (rows,)), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, first, xs)[0][1]

    def through_time(params, xs):
        return jax.grad(lambda params: (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum())(params)

    def needed(run, steps):
        xs = jax.ShapeDtypeStruct((steps, rows, FEATURES), "float64")
        return jax.jit(run).lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert needed(forward_in_time, 32) == needed(forward_in_time, 2048)
    assert needed(through_time, 2048) > 32 * needed(through_time, 32)


def test_steps_give_the_sum():
    """A step knows all before it, though what it is given does not grow."""
    cell = jaxrnn.lru(4, state=3)
    online = jaxrnn.online(cell)
    params, xs, weights = drawn(cell)

    @jax.jit
    def one(params, state, x, weights):
        def loss(params):
            after, y = online.step(params, state, x)
            return (jnp.tanh(y) * weights).sum(), after

        return jax.grad(loss, has_aux=True)(params)

    state, total = online.initial_state(params, (B,)), jax.tree.map(jnp.zeros_like, params)
    for x, weight in zip(xs, weights):
        each, state = one(params, state, x, weight)
        total = jax.tree.map(jnp.add, total, each)
    assert error(total, gradient(cell)(params, xs, weights)) < 1e-10


def numbers(params):
    """Parameters as one row, and the way back."""
    leaves, tree = jax.tree.flatten(params)
    ends = np.cumsum([a.size for a in leaves])[:-1]

    def back(row):
        parts = np.split(row, ends)
        return tree.unflatten(p.reshape(a.shape) for p, a in zip(parts, leaves))

    return np.concatenate([np.ravel(a) for a in leaves]), back


def derivative(function, at):
    """By each of some numbers, exact to rounding: [results, numbers]."""
    columns = [function(at + 1j * truth.TINY * one).imag / truth.TINY for one in np.eye(at.size)]
    return np.stack(columns, 1)


def snap1(step, params, xs, weights, units):
    """Menick et al. 2020, section 3: J = pattern * (I + D J), and the gradient of all steps."""
    flat, back = numbers(params)
    total = np.zeros_like(flat)
    for x, weight in zip(np.moveaxis(xs, 1, 0), np.moveaxis(weights, 1, 0)):
        state, j = np.zeros(units), 0
        for one, w in zip(x, weight):

            def run(row, state=state, one=one, count=units // w.size):
                return np.concatenate(step(back(row), np.split(state, count), one))

            now = derivative(run, flat)
            past = derivative(lambda s: run(flat, s), state)  # noqa: B023, it is called here
            j = (now != 0) * (now + past @ j) if np.ndim(j) else now
            state = run(flat)
            h = state[: w.size]
            total += (w / np.cosh(h) ** 2) @ j[: w.size]
    return back(total)


@pytest.mark.parametrize(
    "cell, step, states",
    ((jaxrnn.lstm(4, heads=2), truth.lstm, 2), (jaxrnn.gru(3), truth.gru, 1)),
    ids=("lstm", "gru"),
)
def test_snap1_is_that_of_the_paper(cell, step, states):
    given = drawn(cell, rows=2)
    came = gradient(jaxrnn.online(cell, "snap1"))(*given)
    want = snap1(step, *jax.tree.map(np.asarray, given), states * given[2].shape[-1])
    assert error(came, want) < 1e-12
    assert error(came, gradient(cell)(*given)) > 1e-3, "it is an approximation"


def eprop(params, xs, weights):
    """Bellec et al. 2020, for LSTMs: eligibility traces of c, and of h what they make at once."""
    total = jax.tree.map(np.zeros_like, params)
    sigmoid = truth.sigmoid
    for x, weight in zip(np.moveaxis(xs, 1, 0), np.moveaxis(weights, 1, 0)):
        h = c = np.zeros(weight.shape[-1])
        trace = {name: 0 for name in params}
        for one, w in zip(x, weight):
            before = {"w": one, "r": h, "b": np.ones(1)}
            a = np.einsum("i,igh->gh", one, params["w"]) + params["b"]
            a = a + np.einsum("d,dgh->gh", h, params["r"])
            i, f, o, g = sigmoid(a[0]), sigmoid(a[1]), sigmoid(a[3]), np.tanh(a[2])
            of_c = np.stack([g * i * (1 - i), c * f * (1 - f), i * (1 - g**2), np.zeros_like(c)])
            c = f * c + i * g
            h = o * np.tanh(c)
            of_h = np.zeros_like(of_c)
            of_h[3] = np.tanh(c) * o * (1 - o)
            signal = w / np.cosh(h) ** 2
            for name, pre in before.items():
                trace[name] = f * trace[name] + pre[:, None, None] * of_c
                eligible = o / np.cosh(c) ** 2 * trace[name] + pre[:, None, None] * of_h
                total[name] += (signal * eligible).reshape(total[name].shape)
    return total


def test_eprop_is_that_of_the_paper():
    cell = jaxrnn.lstm(3)
    given = drawn(cell, rows=2)
    came = gradient(jaxrnn.online(cell, "eprop"))(*given)
    assert error(came, eprop(*jax.tree.map(np.asarray, given))) < 1e-12


def test_uoro_is_exact_in_expectation(monkeypatch):
    """The mean over all signs that could be drawn, each in a row of the batch."""
    cell, steps, units = jaxrnn.lstm(2), 3, 4
    every = np.array(list(itertools.product((1.0, -1.0), repeat=2 * units)))  # two steps matter
    table = jnp.array(np.concatenate([every, every[:, :units]], 1).reshape(-1, steps, 2, 2))

    def signs(key, count, states):
        del key, states
        now = jnp.take_along_axis(table, count[:, None, None, None], 1)[:, 0]
        return now[:, 0], now[:, 1]

    monkeypatch.setattr(rank_one, "_signs", signs)
    params, xs, weights = drawn(cell, steps, 1, 2)
    whole = lambda a: jnp.broadcast_to(a, (steps, len(every), 2))
    came = gradient(jaxrnn.online(cell, "uoro"))(
        params, whole(xs), whole(weights) / len(every), key=jax.random.key(0)
    )
    assert error(came, gradient(cell)(params, xs, weights)) < 1e-12


def test_uoro_draws_from_its_key():
    online = jaxrnn.online(jaxrnn.gru(3), "uoro")
    params, xs, weights = drawn(online)
    run = gradient(online)
    one, other = (run(params, xs, weights, key=jax.random.key(k)) for k in (0, 1))
    assert error(one, other) > 1e-2
    with pytest.raises(ValueError, match="key: got None"):
        run(params, xs, weights)
    state, ys = jaxrnn.unroll(online, params, xs)
    np.testing.assert_allclose(ys, jaxrnn.unroll(jaxrnn.gru(3), params, xs)[1], atol=1e-12)


@pytest.mark.parametrize(
    "cell, rule, words",
    (
        (jaxrnn.lstm(3), "rtrl", "units see others"),
        (jaxrnn.mlstm(4, heads=2, gate="sigmoid"), "rtrl", "several units"),
        (jaxrnn.lru(3), "snap1", "made by jaxrnn.gated"),
        (jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.indrnn(3)), "uoro", "random numbers"),
        (jaxrnn.learned_state(jaxrnn.indrnn(3)), "rtrl", "initial state"),
        (jaxrnn.stack(jaxrnn.indrnn(3), jaxrnn.indrnn(4)), "rtrl", "shapes"),
    ),
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_rule_cannot_take(cell, rule, words):
    params = cell.init(jax.random.key(0), 3 if "lru" in repr(cell) else 4)
    with pytest.raises(ValueError, match=words):
        online = jaxrnn.online(cell, rule)
        online.step(params, online.initial_state(params, ()), jnp.ones(4))


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="rule: got 'bptt'"):
        jaxrnn.online(jaxrnn.gru(3), "bptt")
