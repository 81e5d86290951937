"""Long expressive memory."""

import numpy as np
from case import PARTS, Case
from truth import sigmoid

import jaxrnn


def lem(dt):
    def step(params, state, x):
        y, z = state
        w1, w2, wz, wy = (x @ params["w"][:, k] + params["b"][k] for k in range(4))
        r1, r2, rz, ry = (params["r"][:, k] for k in range(4))
        step, step_bar = dt * sigmoid(y @ r1 + w1), dt * sigmoid(y @ r2 + w2)
        z = (1 - step) * z + step * np.tanh(y @ rz + wz)
        y = (1 - step_bar) * y + step_bar * np.tanh(z @ ry + wy)
        return (y, z), y

    return step


ROWS = {
    "lem": Case(jaxrnn.lem, lem(1.0), PARTS),
    "lem_slow": Case(lambda h: jaxrnn.lem(h, dt=0.25), lem(0.25), PARTS),
}
