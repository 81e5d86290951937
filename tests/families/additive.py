"""Cells that mix their state with something made of the input alone."""

import numpy as np
import truth
from case import PARTS, Case
from truth import sigmoid

import jaxrnn


def ran(activation):
    def step(params, state, x):
        h, c = state
        (xi, xf, content), (ri, rf) = truth._gates(params, h, x)
        c = sigmoid(xi + ri) * content + sigmoid(xf + rf) * c
        h = activation(c)
        return (h, c), h

    return step


def atr(params, state, x):
    (h,) = state
    (p,), (q,) = truth._gates(params, h, x)
    h = sigmoid(p + q) * p + sigmoid(p - q) * h
    return (h,), h


def cfn(params, state, x):
    (h,) = state
    (xt, xe, xn), (rt, re) = truth._gates(params, h, x)
    h = sigmoid(xt + rt) * np.tanh(h) + sigmoid(xe + re) * np.tanh(xn)
    return (h,), h


def star(params, state, x):
    (h,) = state
    (xk, xz), (rk,) = truth._gates(params, h, x)
    k = sigmoid(xk + rk)
    h = np.tanh((1 - k) * h + k * np.tanh(xz))
    return (h,), h


def minimal_rnn(params, state, x):
    (h,), (b, bu) = state, params["b"]
    z = np.tanh(x @ params["w"] + b)
    u = sigmoid(h @ params["r"] + z @ params["u"] + bu)
    h = u * h + (1 - u) * z
    return (h,), h


ROWS = {
    "ran": Case(jaxrnn.ran, ran(np.tanh)),
    "ran_identity": Case(lambda h: jaxrnn.ran(h, activation="identity"), ran(lambda c: c)),
    "ran_heads": Case(lambda h: jaxrnn.ran(h, heads=2), ran(np.tanh), heads=2),
    "atr": Case(jaxrnn.atr, atr),
    "cfn": Case(jaxrnn.cfn, cfn),
    "star": Case(jaxrnn.star, star),
    "minimal_rnn": Case(jaxrnn.minimal_rnn, minimal_rnn, PARTS),
}
