"""Cells whose memory is a matrix for each head, in which every step is linear."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.time_axis import positions, resets
from jaxrnn._src.ops.delta_rule import delta_rule, one


def memory(spec, sizes, inputs, outputs, *, before=False, counted=False, writes=1):
    """A cell with the memory ``S`` of ``ops.delta_rule``.

    Args:
      spec: the parameters: see ``param_spec.made``.
      sizes: ``(N, D, E)``, heads and the widths of a key and of a value.
      inputs: ``(params, x) -> (q, k, v, log_w, a, b)`` of [..., I] with any leading axes: what
        ``delta_rule`` takes, [..., N, D] and so on; see ``writes``.
      outputs: ``(params, x, taken, y) -> y``, [..., N, E] -> [..., O], for any leading axes, with
        what ``inputs`` gave.
      before: as ``delta_rule`` has it.
      counted: the state is ``(S, count)``, with how many steps the episode has had, int32 [...],
        and ``inputs`` is ``(params, x, count)``, with how many came before.
      writes: how often a step writes. If it is more than once, what ``inputs`` gives has this
        axis before the heads, [..., writes, N, D], and the last of them is read.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E], zero at first; outputs are in the type of the
      inputs.
    """

    def initial_state(params, batch_shape):
        S = jnp.zeros((*batch_shape, *sizes), arithmetic(params))
        return (S, jnp.zeros(batch_shape, jnp.int32)) if counted else (S,)

    def given(params, x, *count):
        param_spec.check(spec, params, x)
        total = arithmetic(params)
        return jax.tree.map(lambda a: a.astype(total), inputs(params, x, *count))

    def step(params, state, x, key=None):
        del key
        S, *count = checks.completed_state(initial_state, params, state, x.shape[:-1])
        taken = given(params, x, *count)
        if writes == 1:
            S, y = one(before, S, taken)
        else:
            for n in range(writes):
                S, y = one(before, S, jax.tree.map(lambda a, n=n: a[..., n, :, :], taken))
        y = outputs(params, x, taken, y).astype(x.dtype)
        return (S, *(n + 1 for n in count)), y

    def unroll(params, state, xs, options):
        mask, reverse = options.mask, options.reverse
        S, *count = initial_state(params, xs.shape[1:-1]) if state is None else state
        counts = ()
        if counted:
            real = jnp.ones(xs.shape[:-1], bool) if mask is None else mask
            starts = resets(options.starts, mask, reverse)
            *counts, count[0] = positions(count[0], real, starts, reverse)
        taken = given(params, xs, *counts)
        run = delta_rule if writes == 1 else several
        S, ys = run(
            taken,
            S,
            before=before,
            mask=mask,
            starts=options.starts,
            reverse=reverse,
            implementation=options.implementation,
        )
        ys = select(mask, outputs(params, xs, taken, ys), 0)
        return (S, *count), ys.astype(xs.dtype)

    def several(taken, S, *, before, mask, starts, reverse, implementation):
        """``delta_rule`` of as many steps as there are writes; the last of each step's is read."""
        merged = lambda a: a.reshape(a.shape[0] * writes, *a.shape[2:])
        turn = lambda a: a[:, ::-1] if reverse else a  # the first write still comes first
        taken = jax.tree.map(lambda a: merged(turn(jnp.moveaxis(a, -3, 1))), taken)
        spread = lambda a: jnp.broadcast_to(a[:, None], (a.shape[0], writes, *a.shape[1:]))
        if mask is not None:
            mask = merged(spread(mask))
        if starts is not None:
            first = jnp.arange(writes).reshape(writes, *[1] * (starts.ndim - 1)) == 0
            starts = merged(spread(starts) & first[None])
        S, ys = delta_rule(
            taken,
            S,
            before=before,
            mask=mask,
            starts=starts,
            reverse=reverse,
            implementation=implementation,
        )
        return S, ys[0 if reverse else writes - 1 :: writes]

    def made(params, xs):
        return given(params, xs, *[jnp.zeros(xs.shape[:-1], jnp.int32)] * counted)

    init = lambda key, n: param_spec.made(spec, key, n)
    whole = streamed(unroll, initial_state, made)
    return Cell(init, initial_state, step, whole, states=("S", "count")[: 1 + counted])


def keys(hidden, heads, key, name="hidden"):
    """``(hidden, heads, width)``: the arguments of a memory's cell, checked.

    Args:
      hidden: H, the size of all heads' values together, which the cell calls ``name``.
      heads: N, a divisor of ``hidden``.
      key: the width of a head's keys; None for that of its values.
    """
    hidden, heads = checks.heads(hidden, heads, name)
    return hidden, heads, hidden // heads if key is None else checks.size("key", key)


def queries_keys_values(hidden, heads, width):
    """The spec of ``qk`` [I, 2, N D] and ``v`` [I, H]."""
    return {
        "qk": ((param_spec.INPUTS, 2, heads * width), param_spec.input_init),
        "v": ((param_spec.INPUTS, hidden), param_spec.input_init),
    }


def by_head(x, heads):
    """[..., N D] as [..., N, D]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def projected(params, x, heads):
    """The queries, keys and values of ``queries_keys_values``: three arrays by head."""
    qk = affine(x, params["qk"])
    return tuple(by_head(a, heads) for a in (qk[..., 0, :], qk[..., 1, :], affine(x, params["v"])))


def unit(x):
    """x [..., D] as a vector of length 1: ``x / sqrt(|x|^2 + 1e-6)``."""
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def joined(params, x, taken, y):
    """What all heads read, [..., N, E], side by side: [..., H]."""
    del params, x, taken
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


def reads(cell, features, parts):
    """The cell, whose input has so many features: the sum ``parts``, as an error names it."""

    def init(key, in_size):
        if in_size != features:
            came = checks.described(in_size)
            raise ValueError(f"in_size: got {came}, want {parts} = {features}")
        return cell.init(key, in_size)

    return dataclasses.replace(cell, init=init)


def spread(parameter, like):
    """A parameter in the type and with the leading axes of ``like``, whose last axes it has."""
    return jnp.broadcast_to(parameter.astype(like.dtype), like.shape)
