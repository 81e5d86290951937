"""Convolutions over time, and what is made of them."""

import numpy as np
from case import LIFTED, LINEAR, Case
from truth import sigmoid

import jaxrnn


def conv1d(dilation=1, activation=lambda a: a):
    def step(params, state, x):
        seen = np.concatenate([*state, x[None]])  # a kernel of 1 has no state
        newest_first = seen[::-1][::dilation]
        z = sum(np.tensordot(a, w, 1) for a, w in zip(newest_first, params["w"], strict=True))
        return tuple(seen[None, 1:][: len(state)]), activation(z + params["b"])

    return step


def depthwise(params, state, x):
    """Of a layer of features, each by itself."""
    layer, params = params["0"], params["1"]
    seen = np.concatenate([state[0], (x @ layer["w"] + layer["b"])[None]])
    return (seen[1:],), sum(a * w for a, w in zip(seen[::-1], params["w"])) + params["b"]


def qrnn(pooling):
    def step(params, state, x):
        *window, c = state
        window, (z, *gates) = conv1d()(params, window, x)
        f, o, i = (*map(sigmoid, gates), 1, 1)[:3]
        c = f * c + (i if pooling == "ifo" else 1 - f) * np.tanh(z)
        return (*window, c), o * c

    return step


ROWS = {
    "conv1d": Case(lambda h: jaxrnn.conv1d(h, kernel=3), conv1d(), LIFTED),
    "conv1d_dilated": Case(
        lambda h: jaxrnn.conv1d(h, kernel=3, dilation=2, activation="tanh"),
        conv1d(2, np.tanh),
        LIFTED,
    ),
    "conv1d_depthwise": Case(
        lambda h: jaxrnn.stack(jaxrnn.project(h), jaxrnn.conv1d(h, kernel=4, depthwise=True)),
        depthwise,
        LIFTED,
    ),
    "conv1d_of_one": Case(lambda h: jaxrnn.conv1d(h, kernel=1), conv1d(), LIFTED),
    "qrnn": Case(jaxrnn.qrnn, qrnn("fo"), LINEAR),
    "qrnn_of_one": Case(lambda h: jaxrnn.qrnn(h, kernel=1), qrnn("fo"), LINEAR),
    "qrnn_f": Case(lambda h: jaxrnn.qrnn(h, kernel=3, pooling="f"), qrnn("f"), LINEAR),
    "qrnn_ifo": Case(lambda h: jaxrnn.qrnn(h, pooling="ifo"), qrnn("ifo"), LINEAR),
}
