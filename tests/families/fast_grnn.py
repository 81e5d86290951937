"""FastGRNN."""

import numpy as np
import truth
from case import Case
from truth import sigmoid

import jaxrnn


def fast_grnn(params, state, x):
    (h,), (bz, bn) = state, params["b"]
    (wx,), (rh,) = truth._gates(params | {"b": 0}, h, x)
    zeta, nu = sigmoid(params["zeta"]), sigmoid(params["nu"])
    z, n = sigmoid(wx + rh + bz), np.tanh(wx + rh + bn)
    h = (zeta * (1 - z) + nu) * n + z * h
    return (h,), h


ROWS = {
    "fast_grnn": Case(jaxrnn.fast_grnn, fast_grnn),
    "fast_grnn_heads": Case(lambda h: jaxrnn.fast_grnn(h, heads=2), fast_grnn, heads=2),
}
