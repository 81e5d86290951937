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
    C, n, m = state
    q, k, v, o, i, f = inputs(params, x, len(m))
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
    return (C, n, new), o * h.reshape(-1)


def sigmoid_gate(params, state, x):
    """Beck et al. 2025, without the norm of the block."""
    (C,) = state
    q, k, v, o, i, f = inputs(params, x, len(C))
    C = np.stack(
        [sigmoid(f[N]) * C[N] + sigmoid(i[N]) * np.outer(k[N], v[N]) for N in range(len(C))]
    )
    return (C,), o * np.concatenate([q[N] @ C[N] for N in range(len(C))])


ROWS = {
    "mlstm": Case(lambda h: jaxrnn.mlstm(h, heads=2), exp_gate, LIFTED, heads=2),
    "mlstm_sigmoid": Case(
        lambda h: jaxrnn.mlstm(h, heads=2, gate="sigmoid"),
        sigmoid_gate,
        LIFTED,
        heads=2,
    ),
}
