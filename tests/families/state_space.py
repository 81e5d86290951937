"""Complex linear states behind real inputs, each as its real and its imaginary part."""

import numpy as np
from case import LINEAR, Case

import jaxrnn


def _step(a, s, weight, params, state, x):
    """h = a h + s B x and y = weight Re(C h) + D x, where a, s and h are pairs."""
    b, c = params["b"], params["c"]
    bx = _times(s, (x @ b[:, 0], x @ b[:, 1]))
    re, im = (old + new for old, new in zip(_times(a, state), bx))
    return (re, im), weight * (re @ c[:, 0] - im @ c[:, 1]) + params["d"] * x


def _times(a, b):
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _inverse(a):
    square = a[0] ** 2 + a[1] ** 2
    return a[0] / square, -a[1] / square


def _exp(a):
    return np.exp(a[0]) * np.cos(a[1]), np.exp(a[0]) * np.sin(a[1])


def lru(params, state, x):
    a = _exp((-np.exp(params["nu"]), np.exp(params["theta"])))
    return _step(a, (np.exp(params["gamma"]), 0), 1, params, state, x)


def s5_zoh(params, state, x):
    values, step = (params["lambda_re"], params["lambda_im"]), np.exp(params["log_step"])
    a = _exp((values[0] * step, values[1] * step))
    s = _times(_inverse(values), (a[0] - 1, a[1]))
    return _step(a, s, 2, params, state, x)


def s5_bilinear(params, state, x):
    """Clipped to the left half plane."""
    re, step = params["lambda_re"], np.exp(params["log_step"])
    re = np.where(re.real > -1e-4, -1e-4, re)
    half = re * step / 2, params["lambda_im"] * step / 2
    inverse = _inverse((1 - half[0], -half[1]))
    a = _times(inverse, (1 + half[0], half[1]))
    return _step(a, (step * inverse[0], step * inverse[1]), 2, params, state, x)


ROWS = {
    "lru": Case(lambda h: jaxrnn.lru(3, state=h), lru, LINEAR, inputs=3),
    "s5": Case(lambda h: jaxrnn.s5(3, state=h), s5_zoh, LINEAR, inputs=3),
    "s5_bilinear": Case(
        lambda h: jaxrnn.s5(3, state=h, blocks=2, discretization="bilinear", clip_eigs=True),
        s5_bilinear,
        LINEAR,
        heads=2,
        inputs=3,
    ),
}
