"""Cells made of other cells."""

import dataclasses

import jax
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


def zoneout(params, state, x):
    """Without a key: the expectation. The counter of steps goes through."""
    *old, count = state
    new = truth.lstm(params, old, x)
    h, c = (p * a + (1 - p) * b for p, a, b in zip((0.25, 0.5), old, new))
    return (h, c, count + 1), h


def counted(step):
    def with_count(params, state, x):
        new = step(params, state[:-1], x)
        return (*new, state[-1] + 1), new[0]

    return with_count


REAL = np.array([True, True, False, True, False])


def remembered(params, key):
    return jaxrnn.remember(params["cell"], params["memory"], mask=REAL)


@dataclasses.dataclass(frozen=True)
class Remembering:
    """The parameters of a cell and a memory."""

    cell: object
    features: int

    def __call__(self, key, in_size):
        memory = jax.random.normal(key, (len(REAL), self.features))
        return {"cell": self.cell.init(key, in_size), "memory": memory}


def _attentive(cell, features, **options):
    cell = jaxrnn.attentive(cell, features, **options)
    return jaxrnn.with_params(cell, remembered, Remembering(cell, features))


def read(memory, score):
    real = [m for m, r in zip(memory, REAL) if r]
    scores = np.exp(np.array([score(m) for m in real]))
    return sum(s * m for s, m in zip(scores / scores.sum(), real))


def bahdanau(params, state, x):
    params, memory = params["cell"], params["memory"]
    q, k, v = (params[n] for n in ("query", "key", "v"))
    context = read(memory, lambda m: v @ np.tanh(state[0] @ q + m @ k))
    state = truth.lstm(params["cell"], state, np.concatenate([x, context]))
    return state, np.concatenate([state[0], context])


def luong(params, state, x):
    (h, a), params, memory = state, params["cell"], params["memory"]
    (h,) = truth.gru(params["cell"], (h,), np.concatenate([x, a]))
    context = read(memory, lambda m: h @ (m @ params["key"] if "key" in params else m))
    a = np.tanh(np.concatenate([context, h]) @ params["combine"])
    return (h, a), a


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
    "zoneout": Case(lambda h: jaxrnn.zoneout(jaxrnn.lstm(h), (0.25, 0.5)), zoneout, ()),
    "zoneout_lifted": Case(
        lambda h: jaxrnn.zoneout(jaxrnn.gru(h, reset_after=False), 0.25), faster=()
    ),
    "recurrent_dropout": Case(
        lambda h: jaxrnn.recurrent_dropout(jaxrnn.lstm(h), 0.5), counted(truth.lstm), ()
    ),
    "recurrent_dropout_sequence": Case(
        lambda h: jaxrnn.recurrent_dropout(jaxrnn.gru(h), 0.5, per="sequence"), faster=()
    ),
    "variational_dropout": Case(
        lambda h: jaxrnn.variational_dropout(jaxrnn.gru(h), 0.5), truth.first(truth.gru), ()
    ),
    "learned_state": Case(lambda h: jaxrnn.learned_state(jaxrnn.lstm(h))),
    "learned_state_scanned": Case(
        lambda h: jaxrnn.learned_state(jaxrnn.stack(jaxrnn.elman(h), jaxrnn.dropout(0.5))),
        faster=(),
    ),
    "attentive": Case(lambda h: _attentive(jaxrnn.lstm(h), 4, size=7), bahdanau, ()),
    "attentive_general": Case(
        lambda h: _attentive(jaxrnn.gru(h), 4, score="general", size=5), luong, ()
    ),
    "attentive_dot": Case(lambda h: _attentive(jaxrnn.gru(h), h, score="dot"), luong, ()),
    "truncated": Case(lambda h: jaxrnn.truncated(_deep(h), 2), cut=True),
    "weight_dropout": Case(lambda h: jaxrnn.weight_dropout(jaxrnn.lstm(h), 0.5)),
}


def _deep(hidden):
    return jaxrnn.stack(jaxrnn.lstm(hidden), jaxrnn.dropout(0.5))


def _positive(params, key):
    return params | {"r": jnp.exp(params["r"])}


def _joined(*ys):
    return jnp.cos(jnp.concatenate(ys, -1))
