"""Linear oscillators: Rusch & Rus 2024."""

import numpy as np
from case import LINEAR, Case
from truth import sigmoid

import jaxrnn


def linoss(imex, params, state, x):
    """Equations 3 and 5 of z and y, whose sizes and phases the complex state has."""
    re, im = state
    a, dt = np.where(params["a"].real > 1e-6, params["a"], 1e-6), sigmoid(params["step"])
    a = np.where(imex and (dt**2 * a).real > 3.99, 3.99 / dt**2, a)
    half = dt * a / 2 if imex else 0
    scale = np.sqrt(a * (1 - dt**2 * a / 4)) if imex else np.sqrt(a)
    y = im / scale
    z = re + half * y
    force = x @ params["b"]
    z = (z + dt * (force - a * y)) / (1 if imex else 1 + dt**2 * a)  # "im" solved for the new z
    y = y + dt * z
    return (z - half * y, scale * y), y @ params["c"] + params["d"] * x


def im(params, state, x):
    return linoss(False, params, state, x)


def _fast(params):
    return params | {"a": 12 * params["a"]}


def fast(params, state, x):
    """With frequencies up to where it would be unstable, and beyond."""
    return linoss(True, _fast(params), state, x)


ROWS = {
    "linoss": Case(lambda h: jaxrnn.linoss(3, state=h), im, LINEAR, inputs=3),
    "linoss_imex": Case(
        lambda h: jaxrnn.with_params(jaxrnn.linoss(3, state=h, discretization="imex"), _fast),
        fast,
        LINEAR,
        inputs=3,
    ),
}
