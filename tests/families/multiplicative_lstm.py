"""Multiplicative long short-term memory."""

import truth
from case import PARTS, Case

import jaxrnn


def multiplicative_lstm(params, state, x):
    h, c = state
    m = (x @ params["wm"]) * (h @ params["rm"])
    h, c = truth.lstm(params, (m, c), x)
    return (h, c), h


ROWS = {"multiplicative_lstm": Case(jaxrnn.multiplicative_lstm, multiplicative_lstm, PARTS)}
