"""Recurrences over places, whose products are convolutions."""

import numpy as np
from case import LIFTED, Case
from truth import sigmoid

import jaxrnn


def convolved(x, w, shape, stride=1, dilation=1):
    """x [S * C] with w [*kernel, C, G, H] -> [G, P * H]: a sum over the taps that meet a place."""
    x, kernel = x.reshape(*shape, -1), np.array(w.shape[: len(shape)])
    out = -(-np.array(shape) // stride)
    missing = (out - 1) * stride + (kernel - 1) * dilation + 1 - shape
    y = np.zeros((*out, *w.shape[-2:]), np.result_type(x, w))
    for place in np.ndindex(*out):
        for tap in np.ndindex(*kernel):
            at = np.array(place) * stride + np.array(tap) * dilation - missing.clip(0) // 2
            if (at >= 0).all() and (at < shape).all():
                y[place] += np.einsum("c,cgh->gh", x[tuple(at)], w[tap])
    return np.moveaxis(y, -2, 0).reshape(y.shape[-2], -1)


def conv_lstm(shape, out, **options):
    def step(params, state, x):
        (h, c), places = state, np.prod(out)
        x = convolved(x, params["w"], shape, **options) + np.tile(params["b"], places)
        i, f, g, o = x + convolved(h, params["r"], out)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return (h, c), h

    return step


def conv_gru(shape, out, **options):
    def step(params, state, x):
        (h,), places = state, np.prod(out)
        x = convolved(x, params["w"], shape, **options) + np.tile(params["b"], places)
        r, z, _ = sigmoid(x + convolved(h, params["r"], out))
        n = np.tanh(x[2] + convolved(r * h, params["r"], out)[2])
        h = (1 - z) * n + z * h
        return (h,), h

    return step


ROWS = {
    "conv_lstm": Case(
        lambda h: jaxrnn.conv_lstm(h, shape=(2, 3)), conv_lstm((2, 3), (2, 3)), LIFTED, inputs=12
    ),
    "conv_lstm_strided": Case(
        lambda h: jaxrnn.conv_lstm(h, shape=(7,), stride=2, dilation=2),
        conv_lstm((7,), (4,), stride=2, dilation=2),
        LIFTED,
        inputs=14,
    ),
    "conv_lstm_volume": Case(
        lambda h: jaxrnn.conv_lstm(h, shape=(2, 1, 3), kernel=(2, 1, 3)),
        conv_lstm((2, 1, 3), (2, 1, 3)),
        LIFTED,
        inputs=6,
    ),
    "conv_gru": Case(
        lambda h: jaxrnn.conv_gru(h, shape=(3, 2), stride=(2, 1), kernel=2),
        conv_gru((3, 2), (2, 2), stride=np.array([2, 1])),
        LIFTED,
        inputs=12,
    ),
}
