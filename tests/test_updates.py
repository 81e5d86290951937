"""Whole programs inside of updates: loops, branches, rules of their own; what no kernel has."""

import cases
import fuzz_updates
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn
from jaxrnn._src.ops.recurrence.packed import _apart

kernel = pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
SUB = 6


def ltc(run):
    """A liquid time constant, Hasani et al. 2020: ``run`` takes the sub-steps of its equation."""

    def ltc_update(state, x, r):
        f = jax.nn.sigmoid(x[0] + r[0])
        sub = lambda h: (h + f * 0.8 / SUB) / (1 + (1.0 + f) / SUB)
        return (run(sub, state[0]),)

    return ltc_update


def scanned(sub, h):
    return lax.scan(lambda h, _: (sub(h), None), h, None, length=SUB)[0]


def stacked(sub, h):
    return lax.scan(lambda h, _: (sub(h), sub(h)), h, None, length=SUB, reverse=True)[1][0]


def written_out(sub, h):
    for _ in range(SUB):
        h = sub(h)
    return h


def counted(sub, h):
    return lax.fori_loop(0, SUB, lambda i, h: sub(h), h)


def branching(sub, h):
    """All but the last step by the loop, which is told by its count."""
    step = lambda i, h: lax.cond(i < SUB, jax.checkpoint(sub), lambda h: h, h)
    return lax.fori_loop(0, SUB + 2, step, h)


def in_numpy(params, xs, d_ys, d_final):
    """The sum of results times numbers; its derivative is the imaginary part of a small step."""
    w, r, b = (params[name][..., 0, :] for name in "wrb")
    h, total = 0, 0
    for x, d_y in zip(xs, d_ys, strict=True):
        f = (
            1 / (1 + np.exp(-(x @ w + h @ r + b)))
            if np.ndim(h)
            else 1 / (1 + np.exp(-(x @ w + b)))
        )
        for _ in range(SUB):
            h = (h + f * 0.8 / SUB) / (1 + (1.0 + f) / SUB)
        total += (h * d_y).sum()
    return total + (h * d_final).sum()


def gradients_in_numpy(params, *rest):
    def moved(name, place):
        step = np.zeros(params[name].shape, complex)
        step[place] = 1e-30j
        return in_numpy(params | {name: params[name] + step}, *rest).imag / 1e-30

    return {
        name: np.array([moved(name, i) for i in np.ndindex(a.shape)]).reshape(a.shape)
        for name, a in params.items()
    }


@kernel
@pytest.mark.parametrize("run", [scanned, stacked, written_out, counted, branching])
def test_loops_run_as_often_as_they_say(x64, run):
    cell = jaxrnn.gated(ltc(run), gates=1)(3)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: rng.normal(size=a.shape), jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    )
    xs, d_ys, d_final = (
        rng.normal(size=(4, 2, 2)),
        rng.normal(size=(4, 2, 3)),
        rng.normal(size=(2, 3)),
    )
    wanted = in_numpy(params, xs, d_ys, d_final), gradients_in_numpy(params, xs, d_ys, d_final)
    assert jaxrnn.explain(cell, params, xs).choices[0].runs == "cpu"

    def loss(params, implementation):
        (final,), ys = jaxrnn.unroll(cell, params, jnp.asarray(xs), implementation=implementation)
        return (ys * d_ys).sum() + (final * d_final).sum()

    for implementation in ("cpu", "xla"):
        came = jax.jit(jax.value_and_grad(lambda p, i=implementation: loss(p, i)))(params)
        assert cases.error(came, wanted) < 1e-12


@jax.custom_vjp
def gate(x):
    return jnp.tanh(x)


def _gate_backward(y, g):
    """No derivative of tanh: 1 + y + y^2, as a loop."""
    return (g * lax.fori_loop(0, 2, lambda i, total: 1 + y * total, jnp.ones_like(y)),)


gate.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), _gate_backward)


@jax.custom_jvp
def forward_gate(x):
    return jnp.tanh(x)


@forward_gate.defjvp
def _(primals, tangents):
    y = forward_gate(*primals)
    total, _ = lax.scan(lambda t, _: (1 + y * t, None), jnp.ones_like(y), None, length=2)
    return y, total * tangents[0]


@kernel
@pytest.mark.parametrize("function", [gate, forward_gate])
def test_a_rule_of_the_users_is_kept(x64, function):
    def ruled_update(state, x, r):
        return (function(x[0] + r[0]),)

    cell = jaxrnn.gated(ruled_update, gates=1)(3)
    params = cell.init(jax.random.key(0), 2)
    rng = np.random.default_rng(1)
    xs, d_ys, d_final = (
        rng.normal(size=(4, 2, 2)),
        rng.normal(size=(4, 2, 3)),
        rng.normal(size=(2, 3)),
    )
    w, r, b = (np.asarray(params[name])[..., 0, :] for name in "wrb")
    hs = [np.zeros((2, 3))]
    for x in xs:
        hs.append(np.tanh(x @ w + hs[-1] @ r + b))
    d_h, d_xs, d_r = d_final, [], 0
    for h, y, d_y in zip(hs[-2::-1], hs[:0:-1], d_ys[::-1], strict=True):
        d_z = (d_h + d_y) * (1 + y + y * y)
        d_xs.insert(0, d_z @ w.T)
        d_r += h.T @ d_z
        d_h = d_z @ r.T

    @jax.jit
    def run(params, xs):
        out, pull = jax.vjp(
            lambda r, xs: jaxrnn.unroll(cell, params | {"r": r}, xs, implementation="cpu"),
            params["r"],
            xs,
        )
        return out[1], *pull(((jnp.asarray(d_final),), jnp.asarray(d_ys)))

    ys, of_r, of_xs = run(params, jnp.asarray(xs))
    assert cases.error(ys, np.stack(hs[1:])) < 1e-12
    assert cases.error([of_r[:, 0], of_xs], [d_r, np.stack(d_xs)]) < 1e-12


def why_not(update, platform, **form):
    cell = jaxrnn.gated(update, **({"gates": 1} | form))(4)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    xs = jax.ShapeDtypeStruct((3, 2, 2), jnp.float32)
    (choice,) = jaxrnn.explain(cell, params, xs, platform=platform).choices
    return choice.others.get(platform)


def while_update(state, x, r):
    step = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] + x[0] + r[0]))
    return (lax.while_loop(lambda carry: carry[0] < 3, step, (0, state[0]))[1],)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_while_loop_has_no_derivative(platform):
    if platform == "cpu" and cases.NO_KERNEL:
        pytest.skip(cases.NO_KERNEL)
    assert "while_loop" in why_not(while_update, platform)


def test_a_while_loop_runs_on_xla():
    cell = jaxrnn.gated(while_update, gates=1)(4)
    params = cell.init(jax.random.key(0), 2)
    xs = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    w, r, b = (np.asarray(params[name], float)[..., 0, :] for name in "wrb")
    h = np.zeros((2, 4))
    for x in xs:
        z = x @ w + h @ r + b
        for _ in range(3):
            h = np.tanh(h + z)
    (state,), _ = jaxrnn.unroll(cell, params, xs)
    assert cases.error(state, h) < cases.TOLERANCE["float32"][0]


UNKNOWN = {
    "round": lambda h, a: jnp.round(a) + h,
    "bfloat16": lambda h, a: a.astype(jnp.bfloat16).astype(h.dtype) + h,
    "of bfloat16": lambda h, a: h * ((a > 0).astype(jnp.bfloat16) * 0.1 > 0.1),
    "int32": lambda h, a: h * lax.select_n((a > 0).astype(jnp.int32), h, a),
    "reduce_precision": lambda h, a: lax.reduce_precision(a, 8, 7) + h,
    "differs between units": lambda h, a: a * jnp.arange(h.shape[-1], dtype=h.dtype),
    "how many units there are": lambda h, a: a / h.shape[-1] ** 0.5,
    "a scan that comes to more than": lambda h, a: lax.fori_loop(
        0, 3000, lambda i, h: jnp.tanh(h + a), h
    ),
}


@kernel
@pytest.mark.parametrize("named", UNKNOWN)
def test_what_programs_have_not_is_named(plain_jax, named):
    assert named in why_not(lambda s, x, r: (UNKNOWN[named](s[0], x[0] + r[0]),), "cpu")


@pytest.mark.parametrize("named", ["scan", "differs between units", "how many units there are"])
def test_what_the_kernel_for_tpus_has_not(plain_jax, named):
    function = {"scan": ltc(scanned)}.get(named)
    found = why_not(function or (lambda s, x, r: (UNKNOWN[named](s[0], x[0] + r[0]),)), "tpu")
    assert named in found


MIXING = {
    "stack of sums": lambda h, a: jnp.stack([a, h, a]).sum(1),
    "sum of a stack": lambda h, a: jnp.stack([a, h, a]).sum() + h,
    "sum in a loop": lambda h, a: lax.fori_loop(0, 2, lambda i, h: h + a.sum(), h),
    "scan over units": lambda h, a: lax.scan(lambda c, v: (c + v, None), h[0], a)[0] + h,
    "gather": lambda h, a: a[jnp.array([2, 0, 1])] + h,
    "scatter": lambda h, a: a.at[0].set(1.0) + h,
    "shift": lambda h, a: lax.pad(a, jnp.float32(0), [(1, -1, 0)]) + h,
    "reversal": lambda h, a: jnp.flip(a),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_units_is_refused(plain_jax, name):
    with pytest.raises(TypeError, match="not elementwise"):
        jaxrnn.gated(lambda s, x, r: (MIXING[name](s[0], x[0] + r[0]),), gates=1)


@jax.custom_vjp
def uneven(x, r):
    return x + r


uneven.defvjp(lambda x, r: (x + r, None), lambda _, g: (g, 3 * g))
both = jax.jit(lambda x, r: jnp.tanh(x + r))
APART = {
    "a sum in a call": (lambda s, x, r: (both(x[0], r[0]) * both(x[1], r[1]),), ()),
    "two calls of one function": (lambda s, x, r: (both(x[0], r[1]) * both(x[1], r[0]),), (0, 1)),
    "a rule that tells them apart": (lambda s, x, r: (uneven(x[0], r[0]) * (x[1] + r[1]),), (0,)),
    "used again": (lambda s, x, r: ((x[0] + r[0]) * x[0] - (x[1] + r[1]),), (0,)),
    "returned": (lambda s, x, r: (x[0] + r[0] + (x[1] + r[1]), x[1]), (1,)),
}


@pytest.mark.parametrize("name", APART)
def test_which_gates_are_sums(name):
    update, wanted = APART[name]
    assert _apart(update, 2, 1, ()) == wanted


@kernel
def test_random_updates(x64, plain_jax):
    """Programs of updates and their derivatives, against NumPy one operation at a time."""
    count = 200
    found = fuzz_updates.of_programs(map(fuzz_updates.Update, range(count)))
    for update, came, wanted in found:
        error = fuzz_updates.error(came, wanted)
        assert error < 1e-9, f"seed {update.seed}: {error}\n{fuzz_updates.jaxpr(update)}"
    assert 0.8 * count < len(found) < count  # some have what programs have not


@kernel
def test_a_users_function_may_have_a_name_of_jax(x64):
    """Erf's derivative has a function of this name since JAX 0.12, which programs rewrite."""

    @jax.jit
    def exp_neg_sq(x):
        return 3 * x

    def named_update(state, x, r):
        return (exp_neg_sq(x[0] + r[0]),)

    cell = jaxrnn.gated(named_update, gates=1)(3)
    params = cell.init(jax.random.key(0), 2)
    _, ys = jaxrnn.unroll(cell, params, jnp.ones((1, 2)), implementation="cpu")
    assert cases.error(ys[0], 3 * np.asarray(params["w"]).sum((0, 1))) < 1e-12


def test_a_known_choice_beyond_the_last_case(x64):
    """A loop's count picks between numbers; what is beyond them picks the last, as in XLA."""

    def picking_update(state, x, r):
        cases = lambda h: (jnp.asarray(0.5, h.dtype), jnp.asarray(2.0, h.dtype))
        pick = lambda i, h: jnp.tanh(h * jax.lax.select_n(i, *cases(h)))
        return (jax.lax.fori_loop(0, 4, pick, state[0] + x[0] + r[0]),)

    cell = jaxrnn.gated(picking_update, gates=1)(4)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
    runs = [None, "xla", "reference"]
    came, xla, wanted = (jaxrnn.unroll(cell, params, xs, implementation=run) for run in runs)
    assert cases.error(came, wanted) < 1e-12 and cases.error(xla, wanted) < 1e-12
    h = np.asarray(xs[0]) @ np.asarray(params["w"])[:, 0] + np.asarray(params["b"])[0]
    for factor in (0.5, 2.0, 2.0, 2.0):
        h = np.tanh(h * factor)
    assert cases.error(wanted[1][0], h) < 1e-12
