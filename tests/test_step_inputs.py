"""Inputs that no weight multiplies, on the kernels: an update of the time between steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from cases import error
from emulated import emulated
from interpreted import interpreted

import jaxrnn
import jaxrnn.nnx

T, B, INPUTS, HIDDEN = 7, 4, 3, 6


def decaying_update(state, x, r, dt, away, u):
    """An LSTM whose c fades between steps, by dt, and is left where ``away`` is 1."""
    (_, c), (i, f, g, o), (ri, ro) = state, x, r
    c = c * jnp.exp(-jnp.square(u) * dt)
    new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i + ri) * jnp.tanh(g)
    c = away * c + (1 - away) * new
    return jax.nn.sigmoid(o + ro) * jnp.tanh(c), c


decaying = jaxrnn.gated(
    decaying_update,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    recurrent=("i", "o"),
    inputs=("dt", "away"),
    unit={"u": jax.nn.initializers.ones},
)


def by_paper(params, state, x):
    """The same of one row in NumPy."""
    h, c = state
    i, f, g, o = np.einsum("i,igh->gh", x["x"], params["w"]) + params["b"]
    ri, ro = np.einsum("d,dgh->gh", h, params["r"])
    c = c * np.exp(-(params["u"] ** 2) * x["dt"])
    new = truth.sigmoid(f) * c + truth.sigmoid(i + ri) * np.tanh(g)
    c = x["away"] * c + (1 - x["away"]) * new
    return truth.sigmoid(o + ro) * np.tanh(c), c


def given(cell, rng, dtype=float):
    shapes = jax.eval_shape(
        lambda: cell.init(jax.random.key(0), {"x": INPUTS, "dt": 1, "away": 1})
    )
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)
    xs = {
        "x": draw(T, B, INPUTS),
        "dt": np.exp(3 * draw(T, B, 1)),  # from a thousandth to a thousand
        "away": rng.integers(2, size=(T, B, 1)).astype(dtype),
    }
    return jax.tree.map(lambda a: draw(*a.shape), shapes), xs, (draw(B, HIDDEN), draw(B, HIDDEN))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residuals", ["gates", "chunks"])
def test_numbers_and_gradients_of_the_definition(residuals):
    """Of a loop in NumPy, differentiated along a direction by a complex step; NaN in padding."""
    rng = np.random.default_rng(0)
    cell = decaying(HIDDEN, residuals=residuals)
    arrays = given(cell, rng)
    along = jax.tree.map(lambda a: rng.normal(size=a.shape), arrays)
    mask = rng.random((T, B)) < 0.7
    params, xs, state = jax.tree.map(lambda a, b: a + 1j * truth.TINY * b, arrays, along)

    def of_row(k):
        row, ys = tuple(s[k] for s in state), []
        for t in range(T):
            x = jax.tree.map(lambda a, t=t: a[t, k], xs)
            row = by_paper(params, row, x) if mask[t, k] else row
            ys.append(row[0] * mask[t, k])
        return row, np.stack(ys)

    want = jax.tree.map(lambda *rows: np.stack(rows, -2), *map(of_row, range(B)))
    weights = jax.tree.map(lambda a: rng.normal(size=a.shape), want)
    slope = sum((w * a.imag).sum() for w, a in zip(*map(jax.tree.leaves, (weights, want))))

    @jax.jit
    def each(params, xs, state):
        def loss(which, params, xs, state):
            out = jaxrnn.unroll(cell, params, xs, state, mask=mask, implementation=which)
            return sum((w * a).sum() for w, a in zip(*map(jax.tree.leaves, (weights, out)))), out

        grad = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)
        return [grad(which, params, xs, state) for which in ("reference", "xla", "cpu")]

    params, xs, state = arrays
    real = mask[..., None]
    for (_, came), gradient in each(
        params, {n: np.where(real, a, np.nan) for n, a in xs.items()}, state
    ):
        for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
            assert error(a, b.real) < 1e-12
        pairs = zip(*map(jax.tree.leaves, (gradient, along)), strict=True)
        found = sum(float((g * v).sum()) for g, v in pairs)
        assert abs(found / (slope / truth.TINY) - 1) < 1e-11


@pytest.mark.parametrize("name, within", [("tpu", interpreted), ("gpu", emulated)])
def test_kernels_of_accelerators(name, within):
    """Interpreted and emulated; the update takes its inputs as they are, though products round."""
    rng = np.random.default_rng(1)
    cell = decaying(HIDDEN)
    params, xs, state = given(cell, rng, np.float32)

    def run(which):
        def loss(params, xs):
            final, ys = jaxrnn.unroll(cell, params, xs, state, implementation=which)
            return sum(jnp.sin(a).sum() for a in (ys, *final))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, xs)

    want = run("reference")
    with within():
        came = run(name)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        assert error(a, b) < 5e-3


def test_nothing_is_rounded():
    """In products of bfloat16 an input keeps the 24 bits of a float32.

    XLA for CPUs has no such product in every version: it is the kernel that takes it here.
    """

    def held_update(state, x, r, dt):
        return (dt + 0 * (x[0] + r[0]),)

    cell = jaxrnn.gated(held_update, gates=1, inputs=("dt",))(3)
    narrow = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    params = narrow(cell.init(jax.random.key(0), {"x": 2, "dt": 1}))
    dt = np.float32(np.random.default_rng(0).normal(size=(T, B, 1)) * 1000)
    x = narrow(jnp.ones((T, B, 2)))

    def loss(dt):
        (h,), ys = jaxrnn.unroll(cell, params, {"x": x, "dt": dt}, implementation="cpu")
        return h.sum(), (h, ys)

    slope, (h, ys) = jax.jit(jax.grad(loss, has_aux=True))(dt)
    assert (h == dt[-1]).all() and ys.dtype == jnp.bfloat16
    assert (slope[-1] == 3).all() and not slope[:-1].any()


def test_explain_trace_and_wrappers():
    cell = decaying(HIDDEN)
    params, xs, _ = given(cell, np.random.default_rng(2), np.float32)
    for platform, runs in (("cpu", "cpu"), ("tpu", "tpu"), ("cuda", "xla")):
        (choice,) = jaxrnn.explain(cell, params, xs, platform=platform).choices
        assert choice.runs == runs
    found = jaxrnn.trace(cell, params, xs)
    want = jaxrnn.unroll(cell, params, xs)
    assert error(found["c"][-1], want[0][1]) < 1e-6 and {"a_i", "a_f"} <= set(found)
    assert (
        error(found["a_f"], np.einsum("tbi,ih->tbh", xs["x"], params["w"][:, 1]) + params["b"][1])
        < 1e-5
    )
    zoned = jaxrnn.zoneout(cell, 0.3)
    dropped = jaxrnn.variational_dropout(cell, 0.3)
    for other in (zoned, dropped):
        noisy = jaxrnn.unroll(other, params, xs, key=jax.random.key(0))[1]
        assert noisy.shape == want[1].shape and not jnp.allclose(noisy, want[1])
    assert cell == decaying(HIDDEN) and repr(cell) == "decaying(hidden=6)"


def test_module():
    from flax import nnx

    xs = given(decaying(HIDDEN), np.random.default_rng(3), np.float32)[1]
    sizes = {"x": INPUTS, "dt": 1, "away": 1}
    rnn = jaxrnn.nnx.RNN(decaying(HIDDEN), sizes, rngs=nnx.Rngs(0))
    assert rnn(jax.tree.map(lambda a: a.swapaxes(0, 1), xs)).shape == (B, T, HIDDEN)


MISTAKES = {
    "an array": (lambda xs: xs["x"], r"xs: got float32\[7, 4, 3\], want a dict of x, dt, away"),
    "one is missing": (
        lambda xs: {"x": xs["x"], "dt": xs["dt"]},
        r"xs: got \['dt', 'x'\], want a dict of x, dt, away",
    ),
    "too wide": (
        lambda xs: xs | {"dt": xs["x"]},
        r"xs\['dt'\]: got shape \(7, 4, 3\), want \(7, 4, 1\), one for each row",
    ),
    "no axis": (
        lambda xs: xs | {"dt": xs["dt"][..., 0]},
        r"xs\['dt'\]: got time and batch \(7,\), want \(7, 4\) as others",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_errors_of_a_call(name):
    cell = decaying(HIDDEN)
    params, xs, _ = given(cell, np.random.default_rng(0), np.float32)
    change, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        jaxrnn.unroll(cell, params, change(xs))


def test_errors_of_making():
    make = functools.partial(jaxrnn.gated, decaying_update, gates=4, states=2, recurrent=(0, 3))
    unit = {"u": jax.nn.initializers.ones}
    with pytest.raises(TypeError, match=r"inputs: got 'dt', want a tuple of names, as \('dt',\)"):
        make(unit=unit, inputs="dt")
    for names in (("x",), ("dt", "dt"), ("u",), ("a b",)):
        with pytest.raises(ValueError, match="inputs: got .*, want different names"):
            make(unit=unit, inputs=names)
    with pytest.raises(TypeError, match="missing a required argument: 'away'"):
        make(unit=unit, inputs=("dt",))
    with pytest.raises(ValueError, match=r"online: got decaying\(hidden=4\), want a cell whose"):
        jaxrnn.online(decaying(4), "snap1")
    with pytest.raises(ValueError, match=r"in_size: got 3, want a dict of x, dt, away"):
        decaying(4).init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"in_size\['dt'\]: got 2, want 1"):
        decaying(4).init(jax.random.key(0), {"x": 3, "dt": 2, "away": 1})
