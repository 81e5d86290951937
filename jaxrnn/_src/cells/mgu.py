"""Minimal gated units."""

from typing import Literal

import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Residuals
from jaxrnn._src.wrappers.reparameterised import checked, with_params


def mgu_update(state, x, r):
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = tag("mgu.f", sigmoid(tag("mgu.a_f", xf + rf)))
    n = tag("mgu.n", tanh(xn + f * rn))
    h = tag("mgu.h", h + f * (n - h))
    return (h,)


_reset_after = gated(mgu_update, gates=("f", "n"))
_FORGET = ("wrb", "rb", "r", "b")  # what the gate of each variant is made of


def _reset_before(hidden):
    def step(_, state, x, dot):
        (h,), (xf, xn) = state, x
        f = tag("mgu.f", sigmoid(tag("mgu.a_f", xf + dot("f", h))))
        n = tag("mgu.n", tanh(tag("mgu.a_n", xn + dot("n", f * h))))
        h = tag("mgu.h", h + f * (n - h))
        return (h,), h

    products = lambda params: {"f": params["r"][:, 0], "n": params["r"][:, 1]}
    spec = param_spec.gated(hidden, 2)
    return lifted(spec, {"h": hidden}, linear.gates, step, products=products)


def _filled(params):
    """With zeros for what the gate is not made of."""
    return {
        name: jnp.concatenate([jnp.zeros_like(a), a], -2) if a.shape[-2] == 1 else a
        for name, a in params.items()
    }


@constructor
def mgu(
    hidden: int,
    *,
    variant: Literal[0, 1, 2, 3] = 0,
    reset_after: bool = True,
    heads: int = 1,
    residuals: Residuals = "gates",
) -> Cell:
    """The minimal gated unit (Zhou et al. 2016, arXiv:1603.09420) and lighter ones.

        f = sigmoid(W_f x + R_f h + b_f)
        n = tanh(W x + b + f * (R h))         with ``reset_after``
        n = tanh(W x + b + R (f * h))         without
        h = (1 - f) * h + f * n

    Args:
      hidden: H, the size of the state and the output.
      variant: 0 as above; 1, 2 and 3 as numbered by Heck & Salem (2017, arXiv:1701.03452), whose
        gate has less: f = sigmoid(R_f h + b_f), sigmoid(R_f h) or sigmoid(b_f). Their gates save
        parameters, but no time: kernels take a product with zeros.
      reset_after: where the gate acts: on the recurrent product, or on the state before it, as in
        the papers. The latter needs two dependent products a step and is lifted from its step:
        fused on CPUs only, no ``heads``, no ``residuals``. See ``jaxrnn.gru``.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 2, H], ``r`` [H, 2, H] and ``b``
      [2, H], gates in the order f n. Each has only n, [.., 1, H], where f is not made of it.

    Raises:
      ValueError: ``variant`` is none of these; heads or residuals without ``reset_after``.

    >>> cell = jaxrnn.mgu(hidden=4, variant=2)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> {name: array.shape for name, array in params.items()}
    {'w': (2, 1, 4), 'r': (4, 2, 4), 'b': (1, 4)}
    """
    if variant not in range(len(_FORGET)):
        raise ValueError(f"variant: got {variant!r}, want one of {tuple(range(len(_FORGET)))}")
    if reset_after:
        cell = _reset_after(hidden, heads=heads, residuals=residuals)
    elif heads == 1 and residuals == "gates":
        cell = _reset_before(checks.size("hidden", hidden))
    else:
        raise ValueError("reset_after=False: got heads or residuals, want neither of them")
    spec = {
        name: ((*shape[:-2], 1 + (name in _FORGET[variant]), shape[-1]), init)
        for name, (shape, init) in param_spec.gated(hidden, 2, heads).items()
    }
    return checked(with_params(cell, _filled), spec)
