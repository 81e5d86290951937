"""Gradients of bfloat16 weights over a thousand steps: what carries them sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.linear import affine

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
T, B, H = 1024, 2, 4
BF16 = jnp.bfloat16
RNG = np.random.default_rng(0)
XS = jnp.asarray(RNG.normal(size=(T, B, H)) + 0.3, BF16)
STARTS = RNG.random((T, B)) < 0.02
OF_YS = RNG.random((T, B, 1))
OF_STATE = RNG.normal(size=(B, 1))


def leaky(params, h, x):
    """A step as a user writes one, for any type of the parameters."""
    h = 0.9 * h + 0.1 * (x @ params["w"] + jnp.broadcast_to(params["b"], x.shape)).astype(h.dtype)
    return h, h.astype(x.dtype)


def zeros(params, batch):
    return jnp.zeros((*batch, H), promoted(params["w"].dtype, jnp.dtype("float32")))


def init(key, in_size):
    return {"w": jax.random.normal(key, (in_size, H)) / 2, "b": jnp.linspace(0.3, 0.9, H)}


USERS = jaxrnn.cell(init, zeros, leaky)


def closed_over(params, xs):
    """The weights are not the cell's: its step closes over them."""
    cell = jaxrnn.cell(
        lambda key, n: {},
        lambda _, batch: zeros(params, batch),
        lambda _, h, x: leaky(params, h, x),
    )
    return jaxrnn.unroll(cell, {}, xs)


def remembering(params, xs):
    return jaxrnn.unroll(ATTENTIVE, jaxrnn.remember(params, xs[:3]), xs)


def linear(params, xs):
    added = 0.1 * affine(xs, params["w"]).astype(xs.dtype)
    return jaxrnn.linear_scan(params["b"], added, implementation="reference")


def traced(params, xs):
    found = jaxrnn.trace(USERS, params, xs)
    return found["h"][-1], found["y"]


def unrolled(cell, **options):
    return lambda params, xs: jaxrnn.unroll(cell, params, xs, **options)


RATE = 0.1
ATTENTIVE = jaxrnn.attentive(jaxrnn.elman(H), memory=H)
KINDS = {  # the cell whose parameters they are, and what runs it
    "user": (USERS, unrolled(USERS)),
    "closure": (USERS, closed_over),
    "trace": (USERS, traced),
    "starts": (jaxrnn.learned_state(jaxrnn.stack(USERS)), {"starts": STARTS}),
    "zoneout": (jaxrnn.zoneout(jaxrnn.elman(H), RATE), {}),
    "recurrent_dropout": (jaxrnn.recurrent_dropout(jaxrnn.gru(H), RATE), {"key": KEY}),
    "variational_dropout": (jaxrnn.variational_dropout(jaxrnn.elman(H), RATE), {"key": KEY}),
    "attentive": (ATTENTIVE, remembering),
    "truncated": (jaxrnn.truncated(USERS, 2), {}),
    "chunks": (jaxrnn.elman(H, residuals="chunks"), {}),
    "recurrence": (jaxrnn.elman(H), {"implementation": "reference"}),
    "loop": (jaxrnn.layer_norm_gru(H), {"implementation": "reference"}),
    "linear": (USERS, linear),
}


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def gradient(run, params, xs):
    def loss(params, xs):
        state, ys = run(params, xs)
        state = jax.tree.leaves(state)[0]
        weighted = (ys.astype(float) * OF_YS).sum(), (state.real.astype(float) * OF_STATE).sum()
        return sum(weighted)

    return jax.jit(jax.grad(loss))(params, xs)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, BF16) for name in KINDS), ("user", jnp.float16)]
)
def test_gradients_of_narrow_weights(name, dtype):
    """Each entry within 0.004 of the largest of its array, against the same run in float64."""
    cell, run = KINDS[name]
    run = run if callable(run) else unrolled(cell, **run)
    params = cast(jax.jit(cell.init, static_argnums=1)(jax.random.key(0), H), dtype)
    xs = XS.astype(dtype)
    came = gradient(run, params, xs)
    wanted = gradient(run, cast(params, float), xs.astype(float))
    for path, g in jax.tree.leaves_with_path(came):
        want = np.asarray(dict(jax.tree.leaves_with_path(wanted))[path])
        error = abs(np.asarray(g, float) - want).max() / abs(want).max()
        assert error < 4e-3, f"{jax.tree_util.keystr(path)}: {error:.1e}"


def test_transforms_see_the_same_numbers():
    """Values and tangents to the bit as a plain scan gives them, gradients close to float64's."""
    xs, rows = XS[:16], jnp.asarray([[0.5, -1.0, 2.0, 0.0], [1.0, 0.25, 0.5, -0.5]], BF16)
    params = cast(init(KEY, H), BF16)

    def plain(b, xs):
        own = params | {"w": params["w"].astype(b.dtype), "b": b}
        return jax.lax.scan(lambda h, x: leaky(own, h, x), zeros(own, (B,)), xs)

    def ours(b, xs):
        return jaxrnn.unroll(USERS, params | {"b": b}, xs)

    def loss(run):
        return lambda b, xs: jnp.sin(run(b, xs)[1].astype(float)).sum()

    def exact(run):
        ahead = jax.vmap(lambda t: jax.jvp(lambda b: run(b, xs), (rows[0],), (t,))[1])
        return run(rows[0], xs), ahead(rows)

    came, wanted = jax.jit(lambda: exact(ours))(), jax.jit(lambda: exact(plain))()
    jax.tree.map(np.testing.assert_array_equal, came, wanted)

    @jax.jit
    def close(rows, xs):
        gradient = jax.vmap(jax.grad(loss(ours)), (0, None))
        again = jax.vmap(jax.grad(jax.checkpoint(loss(ours))), (0, None))
        return gradient(rows, xs), again(rows, xs), jax.hessian(loss(ours))(rows[0], xs)

    exported = jax.export.deserialize(jax.export.export(close)(rows, xs).serialize()).call
    gradient, again, hessian = exported(rows, xs)
    rows, xs = rows.astype(float), xs.astype(float)
    truth = lambda rows, xs: (
        jax.vmap(jax.grad(loss(plain)), (0, None))(rows, xs),
        jax.hessian(loss(plain))(rows[0], xs),
    )
    want, curved = jax.jit(truth)(rows, xs)
    for a, b in ((gradient, want), (again, want), (hessian, curved)):
        assert abs(a.astype(float) - b).max() < 0.02 * abs(b).max()


def test_integrated_gradients_sum_their_points():
    function = lambda xs: jnp.exp(xs.astype(float)).sum()
    came = jaxrnn.inside.integrated_gradients(function, XS[:2], points=400)
    want = jnp.expm1(XS[:2].astype(float))
    assert came.dtype == BF16 and abs(came.astype(float) - want).max() < 4e-3 * abs(want).max()
