"""Networks near Elman's."""

import numpy as np
import truth
from case import PARTS, Case

import jaxrnn


def leaky(alpha, activation, signed=False, heads=1):
    def step(params, state, x):
        (h,) = state
        if signed:  # of what a unit sends, in each block
            r = params["r"]
            size = r * np.sign(r.real)
            signs = np.array(_signs(len(h))).reshape(r.shape[:-2])
            params = params | {"r": size * signs[..., None, None]}
        (xh,), (rh,) = truth._gates(params, h, x)
        h = (1 - alpha) * h + alpha * activation(xh + rh)
        return (h,), h

    return step


def indrnn(activation):
    def step(params, state, x):
        h = activation(x @ params["w"] + params["u"] * state[0] + params["b"])
        return (h,), h

    return step


def _signs(hidden):
    return tuple(-1 if unit % 3 == 1 else 1 for unit in range(hidden))


ROWS = {
    "irnn": Case(jaxrnn.irnn, leaky(1, truth.relu)),
    "leaky": Case(lambda h: jaxrnn.leaky(h, alpha=0.25), leaky(0.25, np.tanh)),
    "leaky_signs": Case(
        lambda h: jaxrnn.leaky(h, alpha=0.5, activation="relu", signs=_signs(h)),
        leaky(0.5, truth.relu, True),
    ),
    "leaky_signs_heads": Case(
        lambda h: jaxrnn.leaky(h, alpha=0.5, signs=_signs(h), heads=2),
        leaky(0.5, np.tanh, True),
        heads=2,
    ),
    "indrnn": Case(jaxrnn.indrnn, indrnn(truth.relu), PARTS),
    "indrnn_tanh": Case(lambda h: jaxrnn.indrnn(h, activation="tanh"), indrnn(np.tanh), PARTS),
}
