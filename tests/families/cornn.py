"""Coupled oscillatory recurrent network."""

import numpy as np
from case import PARTS, Case

import jaxrnn


def cornn(dt, gamma, epsilon):
    def step(params, state, x):
        (y, z), w, r, b = state, params["w"][:, 0], params["r"], params["b"][0]
        drive = np.tanh(y @ r[:, 0] + z @ r[:, 1] + x @ w + b)
        z = z + dt * drive - dt * gamma * y - dt * epsilon * z
        y = y + dt * z
        return (y, z), y

    return step


ROWS = {
    "cornn": Case(jaxrnn.cornn, cornn(0.042, 2.7, 4.7), PARTS),
    "cornn_other": Case(
        lambda h: jaxrnn.cornn(h, dt=0.25, gamma=1.5, epsilon=0.5), cornn(0.25, 1.5, 0.5), PARTS
    ),
}
