"""The GRU and the LSTM of ParaRNN: Danieli et al. 2025."""

import numpy as np
from case import PARTS, Case
from truth import sigmoid

import jaxrnn


def para_gru(params, state, x):
    (h,), a = state, params["a"]
    z, r, n = np.einsum("i,igh->gh", x, params["w"]) + params["b"]
    z, r = sigmoid(z + np.diag(a[0]) @ h), sigmoid(r + np.diag(a[1]) @ h)
    n = np.tanh(n + np.diag(a[2]) @ (r * h))
    h = (1 - z) * h + z * n
    return (h,), h


def para_lstm(params, state, x):
    (h, c), p = state, params["p"]
    f, o, g = np.einsum("i,igh->gh", x, params["w"]) + params["b"] + params["a"] * h
    f = sigmoid(f + p[0] * c)
    c = f * c + (1 - f) * np.tanh(g)
    h = sigmoid(o + p[1] * c) * np.tanh(c)
    return (h, c), h


ROWS = {
    "para_gru": Case(jaxrnn.para_gru, para_gru, PARTS),
    "para_lstm": Case(jaxrnn.para_lstm, para_lstm, PARTS),
}
