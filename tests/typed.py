"""A user's script that type checkers accept: `make lint`. `test_typed.py` runs it."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
import jaxrnn.nnx

CELL = jaxrnn.stack(
    jaxrnn.lstm(8, activation=jax.nn.relu, residuals="states"),
    jaxrnn.residual(jaxrnn.gru(hidden=8, heads=2)),
    jaxrnn.dropout(0.1, per="sequence"),
    jaxrnn.bidirectional(jaxrnn.s5(8), jaxrnn.attention(8, heads=2), merge="sum"),
    jaxrnn.project(2),
)
assert_type(CELL, jaxrnn.Cell)


def mgu_update(state: Any, x: Any, r: Any) -> tuple[jax.Array]:
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = jax.nn.sigmoid(xf + rf)
    return (h + f * (jnp.tanh(xn + f * rn) - h),)


mgu = jaxrnn.gated(mgu_update, gates=2, bias=(1.0, 0.0))


@jaxrnn.constructor
def smooth(rate: float = 0.5) -> jaxrnn.Cell:
    def step(params: Any, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = state + rate * (x - state)
        return state, state

    return jaxrnn.cell(lambda key, size: {}, lambda params, batch: jnp.zeros((*batch, 1)), step)


def train(steps: int) -> jax.Array:
    params = CELL.init(jax.random.key(0), 3)
    optimizer = optax.sgd(1e-3)
    state = optimizer.init(params)
    xs, lengths = np.ones((5, 4, 3), np.float32), np.array([5, 4, 3, 0])

    def loss(params: Any, key: jax.Array) -> jax.Array:
        _, ys = jaxrnn.unroll(CELL, params, xs, lengths=lengths, key=key)
        return jnp.square(ys).mean()

    value = jnp.zeros(())
    for key in jax.random.split(jax.random.key(1), steps):
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return value


def others() -> None:
    for cell in (mgu(8, residuals="chunks"), smooth(rate=0.25), jaxrnn.layer_norm()):
        params = cell.init(jax.random.key(0), 1)
        state, y = cell.step(params, cell.initial_state(params, (4,)), jnp.ones((4, 1)), key=None)
        assert_type(y, jax.Array)
        assert_type(jaxrnn.explain(cell, params, jnp.ones((5, 1)), platform="tpu").platform, str)
    rnn = jaxrnn.nnx.RNN(jaxrnn.lstm(8), in_features=3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    rnn(jnp.ones((2, 5, 3)), seq_lengths=[5, 3])


# Each is an error of both checkers, which also report an ignored error that there is not.
WRONG = [
    lambda: jaxrnn.lstm(hidden_size=64),  # type: ignore[call-arg]
    lambda: jaxrnn.gru(64, residual="states"),  # type: ignore[call-arg]
    lambda: jaxrnn.gru(64, residuals="state"),  # type: ignore[arg-type]
    lambda: jaxrnn.stack(jaxrnn.gru),  # type: ignore[arg-type]
    lambda: jaxrnn.parallel(jaxrnn.gru(64), merged="sum"),  # type: ignore[call-arg]
    lambda: mgu(64, head=2),  # type: ignore[call-arg]
    lambda: smooth(rates=0.5),  # type: ignore[call-arg]
    lambda: jaxrnn.gated(mgu_update, gate=2),  # type: ignore[call-arg]
    lambda: jaxrnn.unroll(mgu(8), {}, jnp.ones((5, 3)), length=5),  # type: ignore[call-arg]
    lambda: jaxrnn.unroll(mgu(8), {}, jnp.ones((5, 3)), implementation="gpus"),  # type: ignore[arg-type]
]
