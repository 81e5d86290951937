"""Light gated recurrent unit."""

import truth
from case import Case

import jaxrnn


def ligru(params, state, x):
    (h,) = state
    wx, rh = truth._gates(params, h, x)
    z, n = wx + rh
    z = truth.sigmoid(z)
    h = z * h + (1 - z) * truth.relu(n)
    return (h,), h


ROWS = {
    "ligru": Case(jaxrnn.ligru, ligru),
    "ligru_heads": Case(lambda h: jaxrnn.ligru(h, heads=2), ligru, heads=2),
}
