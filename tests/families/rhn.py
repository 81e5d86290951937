"""Recurrent highway network."""

import numpy as np
from case import PARTS, RECUR, Case
from truth import sigmoid

import jaxrnn


def rhn(depth, coupled):
    gates = 2 if coupled else 3

    def step(params, state, x):
        (s,) = state
        for layer in range(depth):
            a = [
                s @ params["r"][:, layer * gates + k] + params["b"][layer * gates + k]
                for k in range(gates)
            ]
            if layer == 0:
                a = [a[k] + x @ params["w"][:, k] for k in range(gates)]
            transform = sigmoid(a[1])
            carry = 1 - transform if coupled else sigmoid(a[2])
            s = np.tanh(a[0]) * transform + s * carry
        return (s,), s

    return step


ROWS = {
    "rhn": Case(jaxrnn.rhn, rhn(4, True), RECUR),
    "rhn_shallow": Case(lambda h: jaxrnn.rhn(h, depth=1), rhn(1, True), PARTS),
    "rhn_uncoupled": Case(lambda h: jaxrnn.rhn(h, depth=2, coupled=False), rhn(2, False), PARTS),
}
