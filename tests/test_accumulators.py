"""Gradients of bfloat16 weights over a thousand steps: what carries them sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.dtypes import promoted

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
        lambda key, n: {}, lambda _, batch: zeros(params, batch),
        lambda _, h, x: leaky(params, h, x),
    )  # fmt: skip
    return jaxrnn.unroll(cell, {}, xs)


def remembering(params, xs):
    return jaxrnn.unroll(ATTENTIVE, jaxrnn.remember(params, xs[:3]), xs)


def linear(params, xs):
    return jaxrnn.linear_scan(params["b"], xs @ params["w"] * 0.1, implementation="reference")


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


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_bfloat16_weights(name):
    """Each entry within 0.004 of the largest of its array, against the same run in float64."""
    cell, run = KINDS[name]
    run = run if callable(run) else unrolled(cell, **run)
    params = cast(jax.jit(cell.init, static_argnums=1)(jax.random.key(0), H), BF16)
    came = gradient(run, params, XS)
    wanted = gradient(run, cast(params, float), XS.astype(float))
    for path, g in jax.tree.leaves_with_path(came):
        want = np.asarray(dict(jax.tree.leaves_with_path(wanted))[path])
        error = abs(np.asarray(g, float) - want).max() / abs(want).max()
        assert error < 4e-3, f"{jax.tree_util.keystr(path)}: {error:.1e}"
