"""The GRU of the Dreamer agents."""

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.layer_norm import normalised
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag


@constructor
def dreamer_gru(hidden: int, *, heads: int = 1, epsilon: float = 1e-3) -> Cell:
    """The GRU of DreamerV2 and V3 (Hafner et al. 2020, arXiv:2010.02193; 2023, arXiv:2301.04104).

        r, n, z = LN(W x + R h) * scale + bias          over all 3 H together
        n = tanh(sigmoid(r) * n)      h = h + sigmoid(z - 1) * (n - h)

    So in V2, which has one more bias before the normalisation, and in V3 as first published. V3's
    later code has block-diagonal layers with a norm (RMS) before the gates' product and none after
    it: another model, of which ``heads`` is the shape of R.

    Args:
      hidden: H, the size of the state and the output.
      heads: with N of them R is block-diagonal: a unit sees only the H / N units of its own head.
      epsilon: added to the variance; 1e-3 in both agents.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 3, H], ``r`` [H, 3, H], or
      [N, D, 3, D] with N heads of width D, and ``scale`` and ``bias`` [3, H], gates in the order
      r n z: reset, candidate, update.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.dreamer_gru(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, params["r"].shape
    ((7, 3, 8), (2, 4, 3, 4))
    """
    hidden, heads = checks.heads(hidden, heads)
    spec = param_spec.gated(hidden, 3, heads) | {
        "scale": ((3, hidden), param_spec.ones),
        "bias": ((3, hidden), param_spec.zeros),
    }
    del spec["b"]

    def step(others, state, x, dot):
        (h,) = state
        gates = (x + dot("r", h)).reshape(*h.shape[:-1], 3, hidden)
        gates = normalised(gates, others["scale"], others["bias"], epsilon=epsilon, axes=2)
        r, n, z = (gates[..., k, :] for k in range(3))
        r, z = tag("dreamer_gru.r", r), tag("dreamer_gru.z", z)
        n = tag("dreamer_gru.n", tanh(sigmoid(r) * n))
        h = tag("dreamer_gru.h", h + sigmoid(z - 1) * (n - h))
        return (h,), h

    inputs = lambda params, x: affine(x, params["w"].reshape(-1, 3 * hidden))
    return lifted(spec, {"h": hidden}, inputs, step, products=("r",), others=("scale", "bias"))
