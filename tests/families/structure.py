"""Cells made of other cells."""

import jax.numpy as jnp
import numpy as np
import truth
from case import Case

import jaxrnn


def parallel(params, state, x):
    first = truth.elman(np.tanh)(params["0"], state[:1], x)
    second = truth.gru(params["1"], state[1:], x)
    return first + second, np.concatenate([first[0], second[0]])


def product(params, state, x):
    state, y = parallel(params, state, x)
    return state, np.prod(np.split(y, 2), 0)


def dense(params, state, x):
    assert params["0"] == {}
    state = truth.lstm(params["1"], state, x)
    return state, np.concatenate([x, state[0]])


def highway(params, state, x):
    (x,) = truth.elman(np.tanh)(params["0"], state[:1], x)
    params = params["1"]
    (h,) = truth.gru(params["cell"], state[1:], x)
    t = truth.sigmoid(x @ params["w"] + params["b"])
    return (x, h), t * h + (1 - t) * x


def positive(params, state, x):
    state = truth.gru(params | {"r": np.exp(params["r"])}, state, x)
    return state, state[0]


ROWS = {
    "parallel": Case(lambda h: jaxrnn.parallel(jaxrnn.elman(h), jaxrnn.gru(h)), parallel),
    "parallel_product": Case(
        lambda h: jaxrnn.parallel(jaxrnn.elman(h), jaxrnn.gru(h), merge="product"), product
    ),
    "parallel_function": Case(
        lambda h: jaxrnn.parallel(jaxrnn.lstm(h), jaxrnn.dropout(0.5), merge=_joined)
    ),
    "dense": Case(lambda h: jaxrnn.dense(jaxrnn.lstm(h)), dense),
    "highway": Case(
        lambda h: jaxrnn.stack(jaxrnn.elman(h), jaxrnn.highway(jaxrnn.gru(h))), highway
    ),
    "with_params": Case(lambda h: jaxrnn.with_params(jaxrnn.gru(h), _positive), positive),
    "weight_dropout": Case(lambda h: jaxrnn.weight_dropout(jaxrnn.lstm(h), 0.5)),
}


def _positive(params, key):
    return params | {"r": jnp.exp(params["r"])}


def _joined(*ys):
    return jnp.cos(jnp.concatenate(ys, -1))
