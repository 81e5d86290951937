"""The GRU for missing values: Che et al. 2016."""

import numpy as np
from case import PARTS, Case
from dicts import observed, of_dict
from truth import relu, sigmoid

import jaxrnn


def gru_d(params, state, x):
    """Equations 10 to 17, with the last observation as its distance from the mean."""
    h, kept, since = state
    x, m, dt = observed(x).values()
    m, mean = m.real, params["mean"]
    delta = dt + since
    gamma_x = np.exp(-relu(params["gx"] * delta + params["cx"]))
    gamma_h = np.exp(-relu(delta @ params["gh"] + params["ch"]))
    last = mean + kept
    filled = m * x + (1 - m) * (gamma_x * last + (1 - gamma_x) * mean)
    last = m * x + (1 - m) * last
    h = gamma_h * h
    wr, wz, wn = np.einsum("i,igh->gh", filled, params["w"])
    vr, vz, vn = np.einsum("i,igh->gh", m, params["v"]) + params["b"]
    ur, uz, un = np.moveaxis(params["r"], 1, 0)
    r, z = sigmoid(wr + h @ ur + vr), sigmoid(wz + h @ uz + vz)
    h = (1 - z) * h + z * np.tanh(wn + (r * h) @ un + vn)
    return (h, last - mean, (1 - m) * delta), h


ROWS = {"gru_d": Case(lambda h: of_dict(observed, jaxrnn.gru_d(h)), gru_d, PARTS, inputs=7)}
