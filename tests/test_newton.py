"""Newton's method in time: the numbers of the steps, or the steps themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn._src.ops.newton.affine_scan import affine_scan

F = 3


def drawn(cell, steps, rows, scale=1.0, dtype=None):
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.tree.map(
        lambda a: scale * (a + 0.1 * jax.random.normal(keys[0], a.shape)), cell.init(keys[1], F)
    )
    xs = jax.random.normal(keys[2], (steps, rows, F))
    return params, xs


def gru(params, xs):
    """Cho et al. 2014, with the reset after the product, in float64."""
    w, r, b, rb = (np.asarray(params[k], np.float64) for k in ("w", "r", "b", "rb"))
    xs, sigmoid = np.asarray(xs, np.float64), lambda a: 1 / (1 + np.exp(-a))
    h, hs = np.zeros((xs.shape[1], rb.size)), []
    for x in np.einsum("tbi,igh->tbgh", xs, w) + b:
        a = np.einsum("bk,kgh->bgh", h, r)
        reset, z = sigmoid(x[:, 0] + a[:, 0]), sigmoid(x[:, 1] + a[:, 1])
        h = (1 - z) * np.tanh(x[:, 2] + reset * (a[:, 2] + rb)) + z * h
        hs.append(h)
    return np.stack(hs)


def trained(cell, params):
    """Parameters that have learned to remember a sign for twenty steps."""

    def loss(params, key):
        xs = jax.random.normal(key, (20, 32, F))
        _, ys = jaxrnn.unroll(cell, params, xs)
        return ((ys[-1, :, 0] - 0.9 * jnp.sign(xs[0, :, 0])) ** 2).mean()

    def improve(carry, key):
        params, size = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        size = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g * g, size, gradient)
        step = lambda p, g, s: p - 0.02 * g / (jnp.sqrt(s) + 1e-3)
        return (jax.tree.map(step, params, gradient, size), size), value

    ones = jax.tree.map(jnp.ones_like, params)
    run = jax.jit(lambda params, keys: jax.lax.scan(improve, (params, ones), keys))
    (params, _), values = run(params, jax.random.split(jax.random.key(1), 700))
    assert values[-100:].mean() < 0.2 * values[0], "it has learned nothing"
    return params


def test_ten_thousand_steps():
    cell = jaxrnn.gru(16)
    fresh, xs = drawn(cell, 10_000, 2)
    for params in (fresh, trained(cell, fresh)):
        state, ys, (solved,) = jaxrnn.newton(cell, params, xs)
        assert solved.converged.all() and (solved.iterations > 2).all()
        assert (solved.iterations < 40).all()
        want = gru(params, xs)
        # A network that remembers has errors that add up, in its steps too.
        least = np.abs(jaxrnn.unroll(cell, params, xs)[1] - want).max()
        most = 1e-5 if params is fresh else max(1e-5, 2 * least)
        np.testing.assert_allclose(ys, want, rtol=0, atol=most)
        np.testing.assert_array_equal(state[0], ys[-1])


def slow_update(state, x, r):
    return (state[0] + 1e-6 * jnp.cos(100 * state[0] + x[0] + r[0]),)


def test_a_small_residual_is_not_agreement():
    """Each step moves by less than the tolerance, and all of them by a thousand times as much."""
    cell = jaxrnn.gated(slow_update, gates=1)(2)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), F))
    _, ys, (solved,) = jaxrnn.newton(cell, params, jnp.zeros((20_000, 1, F)))
    want = [0.0]
    for _ in range(20_000):
        want.append(want[-1] + 1e-6 * np.cos(100 * want[-1]))
    assert solved.converged.all()
    np.testing.assert_allclose(ys[:, 0, 0], want[1:], rtol=0, atol=1e-5)


FLAGS = {
    "mask": np.random.default_rng(0).random((37, 4)) < 0.8,
    "starts": np.random.default_rng(1).random((37, 4)) < 0.1,
}
FLAGS["mask"][:, 0], FLAGS["starts"][:, 0], FLAGS["starts"][0, 1] = True, False, True


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "cell, reverse",
    (
        (jaxrnn.lstm(6, heads=2), True),
        (jaxrnn.learned_state(jaxrnn.para_lstm(3)), False),
        (jaxrnn.gru(33), False),
    ),
    ids=("dense", "diagonal", "quasi"),
)
def test_gradients(cell, reverse):
    params, xs = drawn(cell, 37, 4)
    xs = jnp.where(FLAGS["mask"][..., None], xs, jnp.nan)
    state = jax.tree.map(lambda a: a + 0.3, cell.initial_state(params, (4,)))
    weights = np.random.default_rng(2).normal(size=(38, 4, 64))

    def loss(params, xs, state, implementation):
        final, ys = jaxrnn.unroll(
            cell, params, xs, state, **FLAGS, reverse=reverse, implementation=implementation
        )
        total = (ys * weights[:37, :, : ys.shape[-1]]).sum()
        total += sum((a * weights[37, :, : a.shape[-1]]).sum() for a in jax.tree.leaves(final))
        return total, (final, ys)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    came, want = (run(params, xs, state, name) for name in ("newton", "reference"))
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1, np.abs(b).max()))


@pytest.mark.usefixtures("x64")
def test_rows_that_diverge_take_steps():
    """Large inputs keep a row's units at their ends; the other row is chaotic."""
    cell = jaxrnn.elman(16)
    params, xs = drawn(cell, 300, 2, scale=4.0)
    params["b"] = jnp.zeros_like(params["b"])
    xs = xs * jnp.array([100.0, 0.1])[None, :, None]
    state, ys, (solved,) = jaxrnn.newton(cell, params, xs)
    np.testing.assert_array_equal(solved.converged, [True, False])
    assert solved.iterations[0] < 30 and solved.iterations[1] == 64
    # Rounding grows in the second row: each step is compared with one from the step before.
    before = jnp.concatenate([jnp.zeros_like(ys[:1]), ys[:-1]])
    (after,), _ = jax.vmap(cell.step, (None, 0, 0))(params, (before,), xs)
    np.testing.assert_allclose(ys, after, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(state[0], ys[-1])
    said = str(jaxrnn.explain(cell, params, xs, implementation="newton"))
    assert "newton     runs: dense Jacobian, 1 blocks 16 x 16; 64 iterations, 1 of 2 rows" in said


@pytest.mark.usefixtures("x64")
def test_transforms():
    """An ensemble, and the derivative of a gradient."""
    cell = jaxrnn.para_gru(3)
    params, xs = drawn(cell, 35, 2)
    both = jax.tree.map(lambda a: jnp.stack([a, 5 * a]), params)

    def loss(name, params):
        return (jaxrnn.unroll(cell, params, xs, implementation=name)[1] ** 3).sum()

    def run(name):
        gradient = jax.grad(functools.partial(loss, name))
        return jax.vmap(lambda params: jax.jvp(gradient, (params,), (params,)))(both)

    came, want = (jax.jit(run, static_argnums=0)(name) for name in ("newton", "reference"))
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * max(1, np.abs(b).max()))


def test_the_affine_scan():
    """Of every number of levels, and with steps left over."""
    draw = np.random.default_rng(0)
    for steps in (40, 521):
        A = draw.normal(size=(steps, 2, 3, 3)).astype(np.float32) / 3
        b = draw.normal(size=(steps, 2, 3)).astype(np.float32)
        z = draw.normal(size=(2, 3)).astype(np.float32)
        zs = affine_scan(*map(jnp.asarray, (A, b, z)))
        for t in range(steps):
            z = np.einsum("nij,nj->ni", A[t].astype(float), z) + b[t]
            np.testing.assert_allclose(zs[t], z, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "cell, words",
    (
        (jaxrnn.lru(3), "this operation has only"),
        (jaxrnn.mlstm(4, heads=2), "this operation has only"),
        (jaxrnn.layer_norm_lstm(3), "a step has matrix products of its own"),
        (jaxrnn.conv1d(3, kernel=2), None),
    ),
    ids=repr,
)
def test_other_cells(cell, words):
    params, xs = cell.init(jax.random.key(0), F), jnp.ones((5, 2, F))
    if words is None:  # nothing goes through time
        assert jaxrnn.newton(cell, params, xs)[2] == ()
        return
    with pytest.raises(ValueError, match=f"implementation.*newton.*{words}"):
        jaxrnn.newton(cell, params, xs)


def test_a_recurrence_in_a_loop():
    """``unroll`` runs it; what the method did in each turn of the loop nobody outside knows."""
    cell = jaxrnn.truncated(jaxrnn.gru(2), 3)
    params, xs = drawn(cell, 7, 2)
    ys, want = (jaxrnn.unroll(cell, params, xs, implementation=n)[1] for n in ("newton", "xla"))
    np.testing.assert_allclose(ys, want, rtol=0, atol=1e-5)
    first, last = jaxrnn.explain(cell, params, xs, implementation="newton").choices
    assert first.runs == "newton" and first.solved is None and last.solved.converged.all()
    with pytest.raises(ValueError, match=r"cell: got truncated\(.*want a cell that has no loop"):
        jaxrnn.newton(cell, params, xs)


def test_every_state():
    cell = jaxrnn.lstm(2)
    params, xs = drawn(cell, 5, 2)
    given = {"lengths": jnp.array([5, 3]), "reverse": True, "return_states": True}
    came, want = (
        jaxrnn.unroll(cell, params, xs, **given, implementation=name) for name in ("newton", "xla")
    )
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_no_steps_and_one():
    cell = jaxrnn.gru(2)
    params, xs = drawn(cell, 1, 2)
    assert jaxrnn.newton(cell, params, xs[:0])[1].shape == (0, 2, 2)
    state, ys, (solved,) = jaxrnn.newton(cell, params, xs[:, 0])
    np.testing.assert_allclose(
        ys[-1], cell.step(params, cell.initial_state(params, ()), xs[0, 0])[1], atol=1e-6
    )
    assert solved.iterations.shape == ()
