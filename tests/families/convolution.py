"""Convolutions over time."""

import numpy as np
from case import LIFTED, Case

import jaxrnn


def conv1d(dilation=1, activation=lambda a: a):
    def step(params, state, x):
        seen = np.concatenate([state[0], x[None]])[::-1][::dilation]  # the newest first
        z = sum(np.tensordot(a, w, 1) for a, w in zip(seen, params["w"], strict=True))
        return (np.concatenate([state[0], x[None]])[1:],), activation(z + params["b"])

    return step


def depthwise(params, state, x):
    """Of a layer of features, each by itself."""
    layer, params = params["0"], params["1"]
    seen = np.concatenate([state[0], (x @ layer["w"] + layer["b"])[None]])
    return (seen[1:],), sum(a * w for a, w in zip(seen[::-1], params["w"])) + params["b"]


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
}
