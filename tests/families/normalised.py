"""LSTMs whose output is projected (Sak et al. 2014), and cells whose gates are normalised."""

import numpy as np
from case import LIFTED, Case
from truth import sigmoid

import jaxrnn


def projected_lstm(params, state, x):
    """Sak et al. 2014, equations 7 to 12, without peepholes."""
    h, c = state
    i, f, g, o = (
        np.einsum("i,ih->h", x, params["w"][:, k])
        + np.einsum("p,ph->h", h, params["r"][:, k])
        + params["b"][k]
        for k in range(4)
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = (sigmoid(o) * np.tanh(c)) @ params["p"]
    return (h, c), h


ROWS = {
    "lstm_projection": Case(lambda h: jaxrnn.lstm(h, projection=4), projected_lstm, LIFTED),
    "lstm_projection_wide": Case(lambda h: jaxrnn.lstm(h, projection=9), projected_lstm, LIFTED),
}
