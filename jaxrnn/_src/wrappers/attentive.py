"""Decoders that look back at a memory, as the outputs of an encoder."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell, check_cell, constructor, output_size
from jaxrnn._src.core.cell import cell as from_step
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.param_spec import input_init
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import InputArray, Params

SCORES = ("additive", "general", "dot")


@constructor
def attentive(
    cell: Cell,
    memory: int,
    *,
    score: Literal["additive", "general", "dot"] = "additive",
    size: int | None = None,
) -> Cell:
    """A decoder that at each step reads from a memory of S rows m_s, which ``remember`` gives it.

        context = sum over s of softmax(score)_s m_s

    Additive (Bahdanau et al. 2015, arXiv:1409.0473): asked before the cell's step.

        score_s = v . tanh(Q h + K m_s)     h the first array of the cell's state
        y = cell([x, context])              output [y, context]

    General and dot (Luong et al. 2015, arXiv:1508.04025, with input feeding): asked after it.

        y = cell([x, a before])             score_s = y . K m_s, or y . m_s
        a = tanh(W [context, y])            output a

    Without a memory, or where it has no real row, the context is zero.

    Args:
      cell: a cell.
      memory: E, the size of the memory's features.
      score: "additive", "general" or "dot", for which E is the size of the cell's output.
      size: of the layer in which additive scores are made, None for that of h; or of ``a``, None
        for that of y.

    Returns:
      A ``Cell``, which runs as a scan of its step. State: that of ``cell``, and with ``general``
      and ``dot`` ``(cell's, a)``. Parameters ``cell`` and, A standing for ``size``: ``query`` [Q,
      A], ``key`` [E, A] and ``v`` [A] if additive; ``key`` [E, O] if general, and ``combine``
      [E + O, A].

    Raises:
      ValueError: an unknown score; sizes that do not fit.

    >>> encoder, decoder = jaxrnn.gru(6), jaxrnn.attentive(jaxrnn.gru(4), memory=6)
    >>> params = [cell.init(jax.random.key(0), 3) for cell in (encoder, decoder)]
    >>> lengths = jnp.array([7, 5])
    >>> _, memory = jaxrnn.unroll(encoder, params[0], jnp.ones((7, 2, 3)), lengths=lengths)
    >>> params[1] = jaxrnn.remember(params[1], memory, lengths=lengths)
    >>> jaxrnn.unroll(decoder, params[1], jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 10)
    """
    check_cell("attentive", cell)
    memory = checks.size("memory", memory)
    size = None if size is None else checks.size("size", size)
    if score not in SCORES:
        raise ValueError(f"score: got {score!r}, want one of {SCORES}")
    return (
        _before(cell, memory, size) if score == "additive" else _after(cell, memory, score, size)
    )


def remember(
    params: Params,
    memory: InputArray,
    *,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
) -> dict[str, Any]:
    """Parameters of an ``attentive`` cell that also hold a memory.

    What is made of the memory for every step is made here, once. Gradients flow to it.

    Args:
      params: of ``attentive``.
      memory: [S, ...batch, E], as ``unroll`` gives its outputs, or [S, E], the same for all rows.
      lengths: int [...batch]: the first ``lengths`` rows are real, the rest is padding.
      mask: bool [S, ...batch], true where the memory is real. What stands in padding, NaN
        included, changes nothing.

    Returns:
      ``params``, as a dict, and ``"memory"``, in place of one that was there.

    >>> decoder = jaxrnn.attentive(jaxrnn.gru(4), memory=6)
    >>> params = jaxrnn.remember(decoder.init(jax.random.key(0), 3), jnp.ones((7, 2, 6)))
    >>> sorted(params["memory"])
    ['keys', 'real', 'values']
    """
    params = params_tree.dicts(params)
    checks.check_inputs(memory, "[S, ...batch, E]", "memory")
    memory = jnp.asarray(memory)
    if mask is not None:
        checks.check_flags("mask", mask, memory.shape[:-1], "[S, ...batch]")
    real = checks.combined_mask(memory, lengths, mask)
    real = jnp.ones(memory.shape[:-1], bool) if real is None else jnp.asarray(real)
    values = select(real, memory, 0)
    values = values.astype(promoted(values.dtype, jnp.dtype("float32")))
    if "key" in params:
        checks.check_features(memory, params["key"].shape[0], "memory")
    keys = affine(values, params["key"]) if "key" in params else values
    kept = {"values": (values, -2), "keys": (keys, -2), "real": (real, -1)}
    kept = {name: jnp.moveaxis(a, 0, axis) for name, (a, axis) in kept.items()}
    return params | {"memory": kept}


def _before(cell, features, size):
    """Bahdanau's: the context is part of the cell's input."""
    parts = functools.partial(_parts, cell, ("query", "key", "v"))

    def init(key, in_size):
        keys = jax.random.split(key, 4)
        inner = cell.init(keys[0], checks.size("in_size", in_size) + features)
        asks = jax.tree.leaves(cell.initial_state(inner, ()))[:1]
        if not asks or not asks[0].ndim:
            want = "a cell whose state begins with an array, which additive scores ask with"
            raise ValueError(f"attentive: got {cell}, want {want}")
        query = asks[0].shape[-1]
        width = query if size is None else size
        return {
            "cell": inner,
            "query": input_init(keys[1], (query, width)),
            "key": input_init(keys[2], (features, width)),
            "v": input_init(keys[3], (width, 1))[:, 0],
        }

    def initial_state(params, batch):
        return cell.initial_state(parts(params)["cell"], batch)

    def step(params, state, x, key):
        params, h = parts(params), jax.tree.leaves(state)[0]

        def score(keys):
            asked = affine(h, params["query"])[..., None, :]
            return affine(jnp.tanh(jnp.broadcast_to(asked, keys.shape) + keys), params["v"])

        context = tag("attentive.context", _context(params, features, x, score).astype(x.dtype))
        x = jnp.concatenate([x, context], -1)
        state, y = cell.step(params["cell"], state, x, key)
        return state, jnp.concatenate([y, context], -1)

    return dataclasses.replace(from_step(init, initial_state, step), draws=cell.draws)


def _after(cell, features, score, size):
    """Luong's: the context is part of the output, which is fed to the next step."""
    parts = functools.partial(_parts, cell, ("combine", *(["key"] if score == "general" else [])))

    @functools.cache  # or a nest of such cells would ask twice as often at each level
    def width_of(in_size):
        """The size of ``a``, before there are parameters for inputs that have it beside them."""
        if size is not None:
            return size
        if score == "dot":
            return features
        made = lambda: cell.init(jax.random.key(0), in_size)
        return jax.eval_shape(lambda: jnp.zeros(output_size(cell, made(), in_size))).size

    def init(key, in_size):
        keys, width = jax.random.split(key, 3), width_of(in_size)
        inner = cell.init(keys[0], in_size + width)
        output = output_size(cell, inner, in_size + width)
        if score == "dot" and output != features:
            raise ValueError(
                f"memory: got {features}, want {output}, the size of the output: {cell}"
            )
        own = {"key": input_init(keys[1], (features, output))} if score == "general" else {}
        combine = input_init(keys[2], (features + output, width))
        return {"cell": inner, "combine": combine, **own}

    def initial_state(params, batch):
        params = parts(params)
        inner, width = cell.initial_state(params["cell"], batch), params["combine"].shape[1]
        return inner, jnp.zeros((*batch, width), arithmetic(params["combine"]))

    def step(params, state, x, key):
        params, (state, fed) = parts(params), state
        x = jnp.concatenate([x, fed.astype(x.dtype)], -1)
        state, y = cell.step(params["cell"], state, x, key)
        h = y.astype(fed.dtype)
        product = lambda keys: jnp.einsum("...e,...se->...s", *_wide(h, keys))
        context = tag("attentive.context", _context(params, features, x, product))
        a = jnp.tanh(affine(jnp.concatenate(_wide(context, h), -1), params["combine"]))
        a = tag("attentive.a", a)
        return (state, a.astype(fed.dtype)), a.astype(x.dtype)

    return dataclasses.replace(from_step(init, initial_state, step), draws=cell.draws)


def _parts(cell, own, params):
    """The parameters, which may hold a memory."""
    own = (*own, "memory") if isinstance(params, dict) and "memory" in params else own
    return params_tree.parts(params, {"cell": cell.init}, own)


def _context(params, features, x, score):
    """What is read of the memory: [...batch, E]. ``score`` is ``keys -> [...batch, S]``."""
    batch = x.shape[:-1]
    if "memory" not in params:
        return jnp.zeros((*batch, features), promoted(x.dtype, jnp.dtype("float32")))
    memory = params["memory"]
    if memory["values"].ndim == 2:  # the same for all rows
        memory = {n: jnp.broadcast_to(a, (*batch, *a.shape)) for n, a in memory.items()}
    values, real = memory["values"], memory["real"]
    if (*values.shape[:-2], values.shape[-1]) != (*batch, features):
        came = f"batch {values.shape[:-2]} and E = {values.shape[-1]}"
        raise ValueError(f"memory: got {came}, want {batch} and {features}")
    scores = jnp.where(real, score(memory["keys"]), -jnp.inf)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True, initial=jnp.finfo(scores.dtype).min))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return jnp.einsum("...s,...se->...e", *_wide(weights, values))


def _wide(*arrays):
    """Arrays in their common type."""
    dtype = promoted(*(a.dtype for a in arrays))
    return [a.astype(dtype) for a in arrays]
