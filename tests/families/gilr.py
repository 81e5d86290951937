"""Recurrences between a state and a candidate that are made of the input alone."""

import numpy as np
from case import LINEAR, Case
from truth import sigmoid

import jaxrnn


def _gates(params, x):
    return np.einsum("i,igh->gh", x, params["w"]) + params["b"]


def gilr(lower_bound):
    def step(params, state, x):
        g, i = _gates(params, x)
        g = lower_bound + (1 - lower_bound) * sigmoid(g)
        h = g * state[0] + (1 - g) * np.tanh(i)
        return (h,), h

    return step


def _positive(a):
    return np.where(a.real >= 0, a + 0.5, sigmoid(a))


def _linear(a):
    return a


def min_gru(candidate):
    def step(params, state, x):
        z, n = _gates(params, x)
        z = sigmoid(z)
        h = (1 - z) * state[0] + z * candidate(n)
        return (h,), h

    return step


def min_lstm(candidate):
    def step(params, state, x):
        f, i, n = _gates(params, x)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * state[0] + i / (f + i) * candidate(n)
        return (h,), h

    return step


ROWS = {
    "gilr": Case(jaxrnn.gilr, gilr(0), LINEAR),
    "gilr_bound": Case(lambda h: jaxrnn.gilr(h, lower_bound=0.5), gilr(0.5), LINEAR),
    "min_gru": Case(jaxrnn.min_gru, min_gru(_positive), LINEAR),
    "min_gru_linear": Case(lambda h: jaxrnn.min_gru(h, positive=False), min_gru(_linear), LINEAR),
    "min_lstm": Case(jaxrnn.min_lstm, min_lstm(_positive), LINEAR),
    "min_lstm_linear": Case(
        lambda h: jaxrnn.min_lstm(h, positive=False), min_lstm(_linear), LINEAR
    ),
}
