"""The LSTM with a matrix memory: Beck et al. 2024 and 2025."""

import numpy as np
from case import LIFTED, Case
from truth import sigmoid

import jaxrnn


def larger(a, b):
    """The maximum by the real part: analytic on either side."""
    return np.where(np.real(a) > np.real(b), a, b)


def inputs(params, x, heads):
    q, k, v, o = np.einsum("i,igh->gh", x, params["w"]) + params["b"]
    q, k, v = (a.reshape(heads, -1) for a in (q, k, v))
    i, f = np.einsum("i,ign->gn", x, params["u"]) + params["c"]
    return q, k / np.sqrt(k.shape[1]), v, sigmoid(o), i, f


def exp_gate(params, state, x):
    """Beck et al. 2024, equations 15 to 27 in their stabilised form; C is of key and value."""
    q, k, v, o, i, f = inputs(params, x, len(state[2]))
    state, h = remembered(state, q, k, v, i, f)
    return state, o * h.reshape(-1)


def remembered(state, q, k, v, i, f):
    """The state, and what is read of it for each head."""
    C, n, m = state
    log_f = np.log(sigmoid(f))
    new = larger(log_f + m, i)
    i, f = np.exp(i - new), np.exp(log_f + m - new)
    h = np.zeros_like(v)
    C, n = C + 0 * f[:, None, None], n + 0 * f[:, None]
    for N in range(len(m)):
        C[N] = f[N] * C[N] + i[N] * np.outer(k[N], v[N])
        n[N] = f[N] * n[N] + i[N] * k[N]
        along = n[N] @ q[N]
        h[N] = q[N] @ C[N] / larger(larger(along, -along), np.exp(-new[N]))
    return (C, n, new), h


def sigmoid_gate(params, state, x):
    """Beck et al. 2025, without the norm of the block."""
    (C,) = state
    q, k, v, o, i, f = inputs(params, x, len(C))
    C = np.stack(
        [sigmoid(f[N]) * C[N] + sigmoid(i[N]) * np.outer(k[N], v[N]) for N in range(len(C))]
    )
    return (C,), o * np.concatenate([q[N] @ C[N] for N in range(len(C))])


def block(params, state, x):
    """Beck et al. 2025, section 3: gates capped at 3, a norm of each head, an output gate."""
    (recurrent, gate), out = params["0"].values(), params["1"]
    entering, memory, norm = recurrent.values()
    C, n, m = state
    heads, width, values = C.shape
    q, k, v = np.split(x @ entering["0"]["w"], np.cumsum([heads * width] * 2))
    gates = 3 * np.tanh(((x @ entering["1"]["w"]).reshape(2, heads) + memory["c"]) / 3)
    parts = (a.reshape(heads, -1) for a in (q, k / np.sqrt(width), v))
    state, h = remembered(state, *parts, *gates)
    h = h - h.mean(1, keepdims=True)
    h = (h / np.sqrt((h**2).mean(1, keepdims=True) + 1e-6)).reshape(-1) * norm["scale"]
    return state, (sigmoid(x @ gate["w"]) * h) @ out["w"]


ROWS = {
    "mlstm": Case(lambda h: jaxrnn.mlstm(h, heads=2), exp_gate, LIFTED, heads=2),
    "mlstm_sigmoid": Case(
        lambda h: jaxrnn.mlstm(h, heads=2, gate="sigmoid"),
        sigmoid_gate,
        LIFTED,
        heads=2,
    ),
    "mlstm_block": Case(
        lambda h: jaxrnn.mlstm_block(4, width=h, heads=2, key=3, cap=3.0), block, LIFTED, heads=2
    ),
}
