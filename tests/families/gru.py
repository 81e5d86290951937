"""Gated recurrent units with the activations of ``jaxrnn.gru``."""

import numpy as np
import truth
from case import PARTS, Case

import jaxrnn
from families.lstm import relu6_sigmoid


def gru(gate, squash, reset_after=True):
    def step(params, state, x):
        (h,) = state
        (xr, xz, xn), (rr, rz, rn) = truth._gates(params, h, x)
        r, z = gate(xr + rr), gate(xz + rz)
        rn = r * (rn + params["rb"]) if reset_after else (r * h) @ params["r"][:, 2]
        h = (1 - z) * squash(xn + rn) + z * h
        return (h,), h

    return step


ROWS = {
    "gru_activations": Case(
        lambda h: jaxrnn.gru(h, activation="relu", gate_activation="hard_sigmoid"),
        gru(relu6_sigmoid, truth.relu),
    ),
    "gru_reset_before_activations": Case(
        lambda h: jaxrnn.gru(h, reset_after=False, activation="sin", gate_activation="tanh"),
        gru(np.tanh, np.sin, reset_after=False),
        PARTS,
    ),
}
