"""Leaky integrate-and-fire neurons: Bellec et al. 2020."""

import numpy as np
import truth
from case import Case

import jaxrnn


def lif(decay, threshold, surrogate):
    """Equations 6 and 7; along a direction, the surrogate is the derivative of a spike."""

    def step(params, state, x):
        z, v = state
        (xv,), (rv,) = truth._gates(params, z, x)
        v = decay * v + xv + rv - threshold * z
        z = np.where(v.real > threshold, 1.0, 0.0)
        if np.iscomplexobj(v):
            slope = surrogate((v.real - threshold) / threshold) / threshold
            z = z + 1j * slope * v.imag
        return (z, v), z

    return step


def triangle(u):
    return 0.3 * np.where(np.abs(u) < 1, 1 - np.abs(u), 0)


def fast_sigmoid(u):
    return (1 + 10 * np.abs(u)) ** -2.0


ROWS = {
    "lif": Case(jaxrnn.lif, lif(0.95, 1, triangle)),
    "lif_heads": Case(
        lambda h: jaxrnn.lif(
            h, decay=0.5, threshold=0.4, surrogate="fast_sigmoid", heads=2, residuals="states"
        ),
        lif(0.5, 0.4, fast_sigmoid),
        heads=2,
    ),
}
