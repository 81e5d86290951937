"""Liquid networks: Hasani et al. 2020 and 2021."""

import numpy as np
import truth
from case import Case
from dicts import of_dict, timed
from truth import sigmoid

import jaxrnn


def ltc(params, state, x):
    """Algorithm 1's fused step, equation 3."""
    (h,), (x, dt) = state, timed(x).values()
    f = sigmoid(sum(truth._gates(params, h, x))[0])
    over_tau = np.exp(params["l"])
    h = (h + dt * f * params["a"]) / (1 + dt * (over_tau + f))
    return (h,), h


def cfc(params, state, x):
    """Equation 10 with the sign of f taken into it, and the authors' offset of time."""
    (h,), (x, dt) = state, timed(x).values()
    g, n, a, b = sum(truth._gates(params, h, x))
    at = sigmoid(-(a * dt + b))
    h = at * np.tanh(g) + (1 - at) * np.tanh(n)
    return (h,), h


ROWS = {
    "ltc": Case(lambda h: of_dict(timed, jaxrnn.ltc(h)), ltc),
    "cfc": Case(lambda h: of_dict(timed, jaxrnn.cfc(h)), cfc),
    "cfc_heads": Case(lambda h: of_dict(timed, jaxrnn.cfc(h, heads=2)), cfc, heads=2),
}
