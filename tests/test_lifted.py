"""Cells of a user's own step: `jaxrnn.lifted` and `jaxrnn.diagonal`, in public words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from truth import sigmoid

import jaxrnn

INIT = jax.nn.initializers.normal(0.5)
STEPS, BATCH, FEATURES, H = 7, 3, 2, 4
KEY = jax.random.key(0)


@jaxrnn.constructor
def reset_before(hidden):
    spec = {"w": ((jaxrnn.INPUTS, 2, hidden), INIT)}
    spec |= {name: ((hidden, hidden), INIT) for name in ("rf", "rn")}
    spec["scale"] = ((hidden,), INIT)

    def inputs(params, x):
        y = jnp.tensordot(x, params["w"], 1)
        return y[..., 0, :], y[..., 1, :]

    def step(others, state, x, dot):
        (h, c), (xf, xn) = state, x
        f = jax.nn.sigmoid(xf + dot("rf", h))
        h = h + f * (jnp.tanh(xn + dot("rn", f * h)) - h)
        return (h, c + others["scale"] * h), h

    outputs = lambda params, ys, x: 2 * ys
    return jaxrnn.lifted(
        spec,
        {"h": hidden, "c": hidden},
        inputs,
        step,
        products=("rf", "rn"),
        others=("scale",),
        outputs=outputs,
    )


@jaxrnn.constructor
def turning(hidden):
    """A complex state: each unit turns by its own angle, and decays."""
    spec = {"w": ((jaxrnn.INPUTS, hidden), INIT), "angle": ((hidden,), INIT)}

    def inputs(params, x):
        angle = params["angle"]
        return 0.9 * lax.complex(jnp.cos(angle), jnp.sin(angle)), x @ params["w"]

    outputs = lambda params, h, x: h.real
    return jaxrnn.diagonal(spec, hidden, inputs, outputs, complex_=True)


def lifted_truth(p, state, x):
    h, c = state
    xf, xn = (x @ p["w"][:, k] for k in range(2))
    f = sigmoid(xf + h @ p["rf"])
    h = h + f * (np.tanh(xn + (f * h) @ p["rn"]) - h)
    return (h, c + p["scale"] * h), 2 * h


def diagonal_truth(p, state, x):
    h = 0.9 * np.exp(1j * p["angle"]) * state[0] + x @ p["w"]
    return (h,), h.real


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "make, step",
    [(reset_before, lifted_truth), (turning, diagonal_truth)],
    ids=("lifted", "diagonal"),
)
def test_a_users_cell(make, step):
    """Values against NumPy, with mask and starts; the gradient against differences of them."""
    cell, rng = make(H), np.random.default_rng(0)
    assert cell == make(H) and repr(cell) == f"{make.__name__}(hidden=4)"
    params = jax.tree.map(lambda a: np.asarray(a, float), cell.init(jax.random.key(0), FEATURES))
    xs, mask = rng.normal(size=(STEPS, BATCH, FEATURES)), rng.random((STEPS, BATCH)) < 0.8
    starts = rng.random((STEPS, BATCH)) < 0.3
    weight = rng.normal(size=(STEPS, BATCH, H))

    def truth(params):
        state = tuple(np.asarray(a) for a in cell.initial_state(params, (BATCH,)))
        zero, ys = state, []
        for x, real, start in zip(xs, mask, starts):
            begun = [np.where((start & real)[:, None], z, s) for z, s in zip(zero, state)]
            new, y = step(params, tuple(begun), x)
            state = tuple(np.where(real[:, None], n, s) for n, s in zip(new, state))
            ys.append(np.where(real[:, None], y, 0))
        return state, np.stack(ys)

    def loss(params):
        state, ys = jaxrnn.unroll(cell, params, xs, mask=mask, starts=starts)
        return (ys * weight).sum(), (state, ys)

    gradient, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    wanted = truth(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    along = jax.tree.map(lambda a: rng.normal(size=a.shape), params)

    def moved(by):
        return (truth(jax.tree.map(lambda a, d: a + by * d, params, along))[1] * weight).sum()

    slope = sum((g * d).sum() for g, d in zip(*map(jax.tree.leaves, (gradient, along))))
    np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-7)


SPEC = {"w": ((jaxrnn.INPUTS, H), INIT), "r": ((H, H), INIT)}
inputs = lambda params, x: x @ params["w"]
step = lambda others, state, x, dot: ((x + dot("r", state[0]),), x)
READ = lambda params, h, x: h


def made(spec=SPEC, states={"h": H}, inputs=inputs, step=step, **options):  # noqa: B006
    return lambda: jaxrnn.lifted(spec, states, inputs, step, **{"products": ("r",)} | options)


def run(cell):
    def call():
        made = cell()
        jaxrnn.unroll(made, made.init(jax.random.key(0), FEATURES), jnp.ones((STEPS, FEATURES)))

    return call


def missing(**other):
    cell = jaxrnn.gru_d(H)
    xs = {"x": jnp.ones((STEPS, 2)), "observed": jnp.ones((STEPS, 2)), "dt": jnp.ones((STEPS, 1))}
    jaxrnn.unroll(cell, cell.init(KEY, {"x": 2, "observed": 2, "dt": 1}), xs | other)


WRONG = {
    "spec": (made(spec=[1]), TypeError, r"spec: got \[1\], want a dict from names to"),
    "pair": (made(spec=SPEC | {"r": (H, H)}), TypeError, r"'r'\]: got \(4, 4\), want \(shape"),
    "shape": (made(spec=SPEC | {"r": (H, INIT)}), TypeError, r"'r'\]: got \(4, .*want \(shape"),
    "size": (made(spec=SPEC | {"r": ((H, 0), INIT)}), ValueError, r"spec\['r'\]: got 0, want 1"),
    "INPUTS": (made(spec={"r": ((H, H), INIT)}), ValueError, "want it where inputs meet"),
    "states": (made(states=H), TypeError, "states: got 4, want a dict from names to widths"),
    "width": (made(states={"h": 1.5}), TypeError, r"states\['h'\]: got 1.5, want an int"),
    "products": (made(products=("u",)), ValueError, r"products: got \('u',\), want names of"),
    "others": (made(others=("u",)), ValueError, r"others: got \('u',\), want names of"),
    "beside": (made(beside=("x",)), ValueError, r"beside: got \('x',\), want different names"),
    "no dict": (
        lambda: jaxrnn.gru_d(H).init(KEY, FEATURES),
        ValueError,
        f"in_size: got {FEATURES}, want a dict of x, observed, dt",
    ),
    "sizes": (
        lambda: jaxrnn.gru_d(H).init(KEY, {"x": 2, "observed": 1, "dt": 1}),
        ValueError,
        r"in_size: got .*, want 2 for observed, as for x, and 1 for dt",
    ),
    "observed": (
        lambda: missing(observed=jnp.ones((STEPS, 1))),
        ValueError,
        rf"xs\['observed'\]: got shape \(\d+, 1\), want \({STEPS}, 2\)",
    ),
    "flags": (
        lambda: missing(observed=jnp.ones((STEPS, 2), bool)),
        TypeError,
        r"xs\['observed'\]: got bool, want a floating type",
    ),
    "result": (
        run(made(step=lambda others, state, x, dot: x)),
        TypeError,
        r"step: gave .*\(state, y\)",
    ),
    "state": (
        run(made(step=lambda others, state, x, dot: ((x[..., :1],), x))),
        ValueError,
        "step: gave .* with the state",
    ),
    "diagonal's spec": (lambda: jaxrnn.diagonal({}, H, inputs, READ), ValueError, "INPUTS"),
    "diagonal's inputs": (
        run(lambda: jaxrnn.diagonal(SPEC, H, inputs, READ)),
        TypeError,
        r"inputs: gave .*\(a, b\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
