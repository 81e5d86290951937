"""A memory that is a linear model, trained on the sequence as it comes."""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.builders.memory import by_head, projected, queries_keys_values, spread
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.layer_norm import normalised
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag, tag_all


@constructor
def ttt_linear(hidden: int, *, heads: int = 4, batch: int = 16) -> Cell:
    """Test-time training of a linear model, TTT-Linear (Sun et al. 2024, arXiv:2407.04620).

        q, k = W x, for each head                 v = V x
        f(z; M) = z + LN(M' [z, 1])               eta = sigmoid(U x + c) / D
        G = G + eta * gradient by M of |f(k; M) - v|^2 / 2
        y = f(q; M - G)                           M = M - G, and G = 0, every ``batch`` steps

    The memory is the model M: a step of gradient descent writes to it. All gradients of a
    mini-batch are taken at the M before it. As in the authors' code, the loss is halved and eta
    divided by D; their rotation of q and k, their division by the step's number in the
    mini-batch, norm, gate and projection of y are not of this cell.

    The layer norm of what M predicts makes a step nonlinear in M. So time cannot be divided over
    devices, and the steps run one after the other.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      batch: how many steps a mini-batch has.

    Returns:
      A ``Cell``. State ``(M, G, n)``: M without what it begins at, and G, [..., N (D + 1) D] for
      D = H / N; and how many steps the mini-batch has had, [..., 1]. Parameters ``qk``
      [I, 2, H], ``v`` [I, H], ``u`` [I, N] and ``c`` [N]; ``scale`` and ``bias`` [N, D] of the
      layer norm LN; and ``m`` [N, D + 1, D], which M begins at, its last row an offset.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.ttt_linear(hidden=8, heads=2, batch=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (M, G, n), ys = jaxrnn.unroll(cell, params, jnp.ones((10, 5, 3)))
    >>> ys.shape, M.shape, n[0].tolist()
    ((10, 5, 8), (5, 40), [2.0])
    """
    hidden, heads = checks.heads(hidden, heads)
    batch, width = checks.size("batch", batch), hidden // heads
    size = heads * (width + 1) * width

    def inputs(params, x):
        q, k, v = tag_all("ttt_linear", **dict(zip("qkv", projected(params, x, heads))))
        rate = affine(x, params["u"])
        eta = sigmoid(rate + spread(params["c"], rate)) / width
        return *map(_flat, (q, k, v)), tag("ttt_linear.eta", eta)

    def step(own, state, x, dot):
        del dot
        (M, G, n), (*qkv, eta) = state, x
        q, k, v = (by_head(a, heads) for a in qkv)
        M, G = (a.reshape(own["m"].shape) for a in (M, G))
        began = own["m"] + M

        def predicted(z, a):
            return a + normalised(z, own["scale"], own["bias"], epsilon=1e-6)

        z = _applied(began, k)
        y, pull = jax.vjp(lambda z: predicted(z, k), z)
        (slope,) = pull(y - v)
        written = jnp.einsum("...nd,...ne->...nde", _with_one(k), slope)
        G = G + eta[..., None, None] * written
        y = predicted(_applied(began - G, q), q)
        last = (n + 1 >= batch)[..., None, None]
        M, G = jnp.where(last, M - G, M), jnp.where(last, 0, G)
        n = jnp.where(n + 1 >= batch, 0, n + 1)
        M, G = (a.reshape(*n.shape[:-1], size) for a in (M, G))
        return (M, G, n), _flat(y)

    spec = queries_keys_values(hidden, heads, width) | {
        "u": ((param_spec.INPUTS, heads), param_spec.input_init),
        "c": ((heads,), param_spec.zeros),
        "scale": ((heads, width), param_spec.ones),
        "bias": ((heads, width), param_spec.zeros),
        "m": ((heads, width + 1, width), param_spec.whole(_model)),
    }
    states = {"M": size, "G": size, "n": 1}
    return lifted(spec, states, inputs, step, others=("m", "scale", "bias"))


def _model(key, shape, dtype):
    """Matrices near zero, with offsets of zero."""
    return 0.02 * jax.random.normal(key, shape, dtype).at[..., -1, :].set(0)


def _with_one(a):
    return jnp.concatenate([a, jnp.ones_like(a[..., :1])], -1)


def _applied(M, a):
    """M' [a, 1] of each head: [..., N, D]."""
    return jnp.einsum("...nd,...nde->...ne", _with_one(a), M)


def _flat(a):
    """[..., N, D] as [..., N D]."""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])
