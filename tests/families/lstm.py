"""Long short-term memories with the options of ``jaxrnn.lstm``."""

import numpy as np
import truth
from case import Case

import jaxrnn

SIGMOID, TANH = truth.sigmoid, np.tanh


def relu6_sigmoid(a):
    """Keras's and JAX's hard sigmoid."""
    return np.where(np.abs(a.real) < 3, a / 6 + 0.5, np.where(a.real > 0, 1, 0))


def lstm(peepholes=False, coupled=False, clip=np.inf, gate=SIGMOID, squash=TANH):
    def step(params, state, x):
        h, c = state
        entering = sum(truth._gates(params, h, x))
        p = {name: params[name] if peepholes else 0 for name in ("pf", "po")}
        f, g, o = entering[-3:]
        f, g = gate(f + p["pf"] * c), squash(g)
        pi = params["pi"] if peepholes and not coupled else 0
        i = 1 - f if coupled else gate(entering[0] + pi * c)
        c = c * f + g * i
        c = np.where(np.abs(c.real) <= clip, c, np.sign(c.real) * min(clip, 1e9))
        h = gate(o + p["po"] * c) * squash(c)
        return (h, c), h

    return step


ROWS = {
    "lstm_peepholes": Case(lambda h: jaxrnn.lstm(h, peepholes=True), lstm(peepholes=True)),
    "lstm_coupled": Case(lambda h: jaxrnn.lstm(h, coupled=True), lstm(coupled=True)),
    "lstm_clip": Case(lambda h: jaxrnn.lstm(h, cell_clip=0.2), lstm(clip=0.2)),
    "lstm_activations": Case(
        lambda h: jaxrnn.lstm(h, activation="relu", gate_activation="hard_sigmoid"),
        lstm(gate=relu6_sigmoid, squash=truth.relu),
    ),
    "lstm_everything": Case(
        lambda h: jaxrnn.lstm(
            h,
            peepholes=True,
            coupled=True,
            cell_clip=0.3,
            activation="sigmoid",
            gate_activation="tanh",
            heads=2,
            residuals="states",
        ),
        lstm(True, True, 0.3, TANH, SIGMOID),
        heads=2,
    ),
}
