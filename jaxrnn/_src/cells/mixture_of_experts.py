"""Many networks, of which each step runs a few."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid, silu

from jaxrnn._src.builders.stateless import stateless
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag

_SYMBOLIC = 64  # rows of a block, where nobody knows how many rows there are


@constructor
def mixture_of_experts(
    hidden: int,
    *,
    experts: int = 8,
    top_k: int = 2,
    width: int | None = None,
    normalise: bool = True,
    shared: int | None = None,
) -> Cell:
    """A sparse mixture of experts (Shazeer et al. 2017, arXiv:1701.06538).

        p = softmax(R x)
        y = sum_e g_e f_e(x) + sigmoid(s x) f_shared(x)     f(x) = W_out (silu(W_0 x) * (W_1 x))

    It is the feed-forward network of Qwen3-Next. The sum is over the experts e with the K largest
    p, and g_e is p_e divided by the sum of these K. No other expert is computed, and none drops an
    input because others chose it too. So each input has the output that it has alone. Gradients
    reach the router by g; no loss here balances the experts. ``jaxrnn.trace`` shows p, of which a
    training may make one.

    Args:
      hidden: O, the size of the output.
      experts: E, how many there are.
      top_k: K, how many of them an input goes to.
      width: F, the size inside an expert; None for that of the output.
      normalise: whether g is divided by its sum; else it is p itself.
      shared: S, the size inside an expert that all inputs go to; None for no such expert.

    Returns:
      A ``Cell`` without a state. Parameters ``router`` [I, E], ``w`` [E, I, 2, F] and ``out``
      [E, F, O]; with a shared expert ``shared_w`` [I, 2, S], ``shared_out`` [S, O] and
      ``shared_gate`` [I]. The softmax and all sums are float32 at least.

      For many inputs, blocks of one expert's inputs are multiplied at once: no more than 1.5 times
      the K experts' work, with up to 4 copies of the experts' weights. Inputs of all rows are
      sorted for it: of a batch that is divided over devices, XLA may exchange them between
      these, except in a ``jax.shard_map``.

    Raises:
      ValueError: ``top_k`` is above ``experts``.

    >>> cell = jaxrnn.mixture_of_experts(4, experts=8, top_k=2, width=6)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 4)
    """
    hidden, experts = checks.size("hidden", hidden), checks.size("experts", experts)
    width = hidden if width is None else checks.size("width", width)
    shared = None if shared is None else checks.size("shared", shared)
    checks.check_bool("normalise", normalise)
    if checks.size("top_k", top_k) > experts:
        raise ValueError(f"top_k: got {top_k}, want {experts} or less, as many as experts")

    def shapes(inputs):
        found = {"router": (inputs, experts), "w": (experts, inputs, 2, width)}
        found["out"] = (experts, width, hidden)
        if shared is None:
            return found
        found |= {"shared_w": (inputs, 2, shared), "shared_out": (shared, hidden)}
        return found | {"shared_gate": (inputs,)}

    def init(key, in_size):
        checks.check_key(key)
        want = shapes(checks.size("in_size", in_size))
        sums = {"router": 0, "w": 1, "out": 1, "shared_w": 0, "shared_out": 0, "shared_gate": 0}
        keys = jax.random.split(key, len(want))
        return {name: _normal(k, want[name], sums[name]) for k, name in zip(keys, want)}

    def apply(params, x):
        checks.check_params(params, shapes(x.shape[-1]), "router", x)
        p = tag("mixture_of_experts.p", jax.nn.softmax(affine(x, params["router"])))
        g, chosen = lax.top_k(p, top_k)
        if normalise:
            g = g / g.sum(-1, keepdims=True)
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        each = _sparse(rows, chosen.reshape(-1), top_k, params["w"], params["out"])
        y = _sum(g, each.reshape(*g.shape, hidden))
        if shared is not None:
            see = _network(rows[None], params["shared_w"][None], params["shared_out"][None])
            g = sigmoid(affine(x, params["shared_gate"][:, None]))
            y = y + _sum(g, see.reshape(*g.shape, hidden))
        return y.astype(x.dtype)

    return stateless(init, apply)


def _normal(key, shape, axis):
    """Numbers of the variance 1 / n, n that of an axis, which is summed over."""
    return jax.random.normal(key, shape) / math.sqrt(shape[axis])


def _sum(g, ys):
    """Of the outputs of some experts, each times its weight: [..., K], [..., K, O] -> [..., O]."""
    dtype = promoted(g.dtype, ys.dtype)
    return (g.astype(dtype)[..., None] * ys.astype(dtype)).sum(-2)


def _sparse(rows, chosen, top_k, w, out):
    """What the chosen experts give: [N, I], ints [N K], K of a row after the other -> [N K, O]."""
    which, owner, place = _blocks(chosen, w.shape[0])
    # Where there are no more blocks than experts, a cast would read those that nobody chose.
    few = isinstance(owner.shape[0], int) and owner.shape[0] <= w.shape[0]
    take = _at if few else _wide
    each = _network(_wide(rows, which // top_k), take(w, owner), take(out, owner))
    return each.reshape(which.size, each.shape[-1])[place]


def _blocks(chosen, experts):
    """Divides rows into blocks of as many, each of one expert.

    Args:
      chosen: [M], the expert of each row.
      experts: E.

    Returns:
      ``(which, owner, place)``: the row at each place of a block [B, C], M where there is none;
      the expert of a block [B]; the place of each row [M], counted through all blocks.
    """
    (rows,) = chosen.shape
    # Half of a row's fair share: then unused places are at most half as many as rows.
    size = max(1, rows // (2 * experts)) if isinstance(rows, int) else _SYMBOLIC
    count = (rows + experts * (size - 1)) // size
    sorted_, order = lax.sort((chosen, lax.iota(jnp.int32, rows)), num_keys=1)
    number = jnp.zeros(experts, jnp.int32).at[chosen].add(1)
    blocks = (number + (size - 1)) // size
    begins, firsts = jnp.cumsum(number) - number, jnp.cumsum(blocks) - blocks
    block = lax.iota(jnp.int32, count)
    owner = ((firsts + blocks)[None] <= block[:, None]).sum(-1, dtype=jnp.int32)
    owner = jnp.minimum(owner, experts - 1)  # of those that are left over
    rank = (block - firsts[owner])[:, None] * size + lax.iota(jnp.int32, size)[None]
    here = rank < number[owner][:, None]
    at = jnp.where(here, begins[owner][:, None] + rank, rows)
    which = order.at[at].get(mode="fill", fill_value=rows)
    at = firsts[sorted_] * size + lax.iota(jnp.int32, rows) - begins[sorted_]
    return which, owner, jnp.zeros_like(at).at[order].set(at)


def _network(x, w, out):
    """A network for each block of rows: [B, C, I], [B, I, 2, F], [B, F, O] -> [B, C, O]."""
    z = _product("bci,bigf->bcgf", x, w)
    inner = silu(z[:, :, 0]) * z[:, :, 1]
    return _product("bcf,bfo->bco", inner.astype(x.dtype), out)


def _product(letters, x, w):
    """Factors in the common type, the sum in float32 at least, as ``affine``."""
    dtype = promoted(x.dtype, w.dtype)
    total = promoted(dtype, jnp.dtype("float32"))
    return jnp.einsum(letters, x.astype(dtype), w.astype(dtype), preferred_element_type=total)


def _at(a, index):
    """Rows of an array, zeros beyond its end."""
    return jnp.asarray(a).at[index].get(mode="fill", fill_value=0)  # NumPy's has no at


def _wide(a, index):
    """The same, whose gradient is a sum in float32 at least."""
    return _at(a.astype(promoted(a.dtype, jnp.dtype("float32"))), index).astype(a.dtype)
