"""The two kernels: a recurrence forward, and its gradient backward in time.

A kernel runs on a grid of tiles of the batch and, innermost, chunks of time, one after the other.
The recurrent weights are loaded into VMEM once and stay. The chunks of all arrays over time come
and go while others are worked on. The state lives in VMEM, where the final state will be.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn import mosaic
from jaxrnn.recurrence.packed import Packing
from jaxrnn.recurrence.tpu.lanes import Lanes
from jaxrnn.recurrence.tpu.tiles import Tiles


class Plan(NamedTuple):
    """What a kernel is made for.

    Attributes:
      packing: of the gates, and with it the update.
      unit: names of the weights of each unit.
      lanes, tiles: how units and the grid are laid out.
      steps: T.
      rows: B.
      reverse: the recurrence goes from the last step to the first.
      product: the type of what is multiplied.
      state: the type of the arithmetic.
    """

    packing: Packing
    unit: tuple[str, ...]
    lanes: Lanes
    tiles: Tiles
    steps: int
    rows: int
    reverse: bool
    product: Any
    state: Any


REAL, START = 1, 2  # bits of a flag


def flags(mask, starts, size):
    """The flags of each step, int32 [chunks, B, size]: a chunk's in lanes, for ``_flag``."""
    steps, rows = (mask if mask is not None else starts).shape
    bits = jnp.full((steps, rows), REAL, jnp.int32)
    if mask is not None:
        bits = mask.astype(jnp.int32) * REAL
    if starts is not None:
        bits = bits + starts.astype(jnp.int32) * START
    chunks = pl.cdiv(steps, size)
    bits = jnp.pad(bits, [(0, chunks * size - steps), (0, 0)])
    return bits.reshape(chunks, size, rows).swapaxes(1, 2)


def forward(plan, arrays, y, *, save, first_kept):
    """Runs the recurrence.

    Args:
      plan: a ``Plan``.
      arrays: dict of lists of arrays.

        x        [T, B, I]; without ``w``, the gates' input part, [T, B, G * all]
        w        [I, G * all] and the bias [1, G * all], or none
        r        [heads, width, G * width]
        unit     [1, all] each
        state    [B, all] each
        initial  the same, or none without starts
        flags    one from ``flags``, or none

      y: the type of ys.
      save: "gates", "states": what is kept for a gradient; None for nothing.
      first_kept: the first state of those kept.

    Returns:
      Dict of lists: ``final`` [B, all], ``ys`` [T, B, all], ``gates`` [T, B, n * all] and
      ``states`` [T, B, all], those before each step.
    """
    packing, lanes, tiles = plan.packing, plan.lanes, plan.tiles
    projects, starts = bool(arrays["w"]), bool(arrays["initial"])
    kept = packing.problem.states - first_kept
    outs = {
        "final": [_by_row(plan)] * packing.problem.states,
        "ys": [_over_time(plan, 1, y)],
        "gates": [_over_time(plan, n) for n in packing.sizes if save == "gates"],
        "states": [_over_time(plan)] * kept * bool(save),
    }

    def kernel(ref, out, *scratch):
        @pl.when(pl.program_id(1) == 0)
        def _():
            for place, state in zip(out["final"], ref["state"], strict=True):
                place[...] = state[...]

        gates_in = ref["x"][0]
        if projects:
            (gates_in,) = scratch
            _project(plan, ref["x"][0], *ref["w"], gates_in)
        unit = _unit(plan, ref["unit"])
        (r,) = ref["r"]

        def step(k, state):
            real, start = _flag(plan, ref["flags"], k, starts)
            if starts:
                first = zip(ref["initial"], state, strict=True)
                state = [jnp.where(start, i[...], s) for i, s in first]
            heads = enumerate(_heads(plan, state[0]))
            recurrent = [_dot(h.astype(plan.product), r[n], plan) for n, h in heads]
            packed = packing.pack(gates_in[k].astype(plan.state), _by_gate(plan, recurrent))
            new = packing.update(tuple(state), packed, unit)
            new = [_without_empty(plan, new[0]), *new[1:]]
            for place, part in zip(out["gates"], jax.tree.leaves(packed)):
                place[k] = part
            for place, s in zip(out["states"], state[first_kept:]):
                place[k] = s
            ys = new[0]
            if real is not None:
                ys = jnp.where(real, ys, 0)
                new = [jnp.where(real, n, s) for n, s in zip(new, state, strict=True)]
            out["ys"][0][k] = ys.astype(y)
            return new

        state = _loop(plan, plan.reverse, step, [s[...] for s in out["final"]])
        for place, s in zip(out["final"], state, strict=True):
            place[...] = s

    name, scratch = f"recur_forward_{tiles.rows}x{tiles.steps}", []
    if projects:
        name += f"x{tiles.group}"
        gates = tiles.steps, tiles.rows, packing.problem.gates * lanes.all
        scratch = [pltpu.VMEM(gates, plan.state)]
    return _call(plan, name, kernel, arrays, outs, plan.reverse, scratch)


def backward(plan, arrays, *, starts, used):
    """Runs the gradient.

    Args:
      plan: a ``Plan``.
      arrays: dict of lists of arrays.

        gates    [T, B, n * all] each
        states   [T, B, all] each: before each step, those that are ``used``
        r        [heads, G * width, width]: ``Lanes.transposed``
        unit     [1, all] each
        d_ys     one [T, B, all], or none
        d_state  [B, all] each
        flags    one from ``flags``, or none

      starts: there are starts.
      used: of each state, whether the update looks at it.

    Returns:
      Dict of lists: ``d_state``, ``d_initial`` if ``starts``, and ``d_unit``, [B, all] each;
      ``d_gates`` [T, B, n * all], in the type of products.
    """
    packing, lanes, tiles = plan.packing, plan.lanes, plan.tiles
    count, backwards = packing.problem.states, not plan.reverse
    outs = {
        "d_state": [_by_row(plan)] * count,
        "d_initial": [_by_row(plan)] * (count * starts),
        "d_unit": [_by_row(plan)] * len(plan.unit),
        "d_gates": [_over_time(plan, n, plan.product) for n in packing.sizes],
    }

    def kernel(ref, out):
        @pl.when(pl.program_id(1) == 0)
        def _():
            for place, d in zip(out["d_state"], ref["d_state"], strict=True):
                place[...] = d[...]
            for place in (*out["d_initial"], *out["d_unit"]):
                place[...] = jnp.zeros_like(place)

        unit = _unit(plan, ref["unit"])
        (r,) = ref["r"]

        def step(k, carry):
            d_state, d_initial, d_unit = carry
            real, start = _flag(plan, ref["flags"], k, starts)
            saved = iter(ref["states"])
            zero = jnp.zeros((tiles.rows, lanes.all), plan.state)
            state = tuple(next(saved)[k] if u else zero for u in used)
            packed, _ = packing.unflatten([g[k] for g in ref["gates"]])
            d_new = list(d_state)
            if ref["d_ys"]:
                d_new[0] = d_new[0] + ref["d_ys"][0][k].astype(plan.state)
            d_before, *others = packing.vjp(state, packed, unit)(tuple(d_new))
            if real is not None:
                others = jax.tree.map(lambda d: jnp.where(real, d, 0), others)
            others = jax.tree.map(functools.partial(_without_empty, plan), others)
            d_before, d_packed, d_row = packing.gradients((d_before, *others))
            d_packed = jax.tree.map(lambda d: d.astype(plan.product), d_packed)
            for place, d in zip(out["d_gates"], jax.tree.leaves(d_packed), strict=True):
                place[k] = d
            heads = enumerate(_by_head(plan, packing.recurrent_part(d_packed)))
            through = [_dot(_up_to(r.shape[1], d), r[n], plan) for n, d in heads]
            through = jnp.concatenate(through, -1)
            d_before = [d_before[0] + through, *d_before[1:]]
            if real is not None:
                d_before = [jnp.where(real, d, s) for d, s in zip(d_before, d_state, strict=True)]
            if starts:
                d_initial = [i + jnp.where(start, d, 0) for i, d in zip(d_initial, d_before)]
                d_before = [jnp.where(start, 0, d) for d in d_before]
            d_unit = [a + d_row[name] for name, a in zip(plan.unit, d_unit)]
            return d_before, d_initial, d_unit

        places = out["d_state"], out["d_initial"], out["d_unit"]
        carry = _loop(plan, backwards, step, jax.tree.map(lambda p: p[...], places))
        for place, d in zip(jax.tree.leaves(places), jax.tree.leaves(carry), strict=True):
            place[...] = d

    name = f"recur_backward_{tiles.rows}x{tiles.steps}"
    return _call(plan, name, kernel, arrays, outs, backwards)


# What both are made of.


_BY_ROW = ("state", "initial", "final", "d_state", "d_initial", "d_unit")  # [B, all]
_OVER_TIME = ("x", "ys", "gates", "states", "d_ys", "d_gates")  # [T, B, K]


def _by_row(plan):
    return jax.ShapeDtypeStruct((plan.rows, plan.lanes.all), plan.state)


def _over_time(plan, count=1, dtype=None):
    shape = plan.steps, plan.rows, count * plan.lanes.all
    return jax.ShapeDtypeStruct(shape, dtype or plan.state)


def _call(plan, name, kernel, arrays, outs, backwards, scratch=()):
    """The results of ``kernel(ref, out, *scratch)``, as ``outs`` has them."""
    rows, steps, *_ = plan.tiles
    chunks = pl.cdiv(plan.steps, steps)

    def timed(i, t):
        return chunks - 1 - t if backwards else t, i, 0

    def spec(kind, a):
        if kind in _OVER_TIME:
            return pl.BlockSpec((steps, rows, a.shape[-1]), timed)
        if kind in _BY_ROW:
            return pl.BlockSpec((rows, a.shape[-1]), lambda i, t: (i, 0))
        if kind == "flags":
            return pl.BlockSpec((None, rows, steps), timed)
        # It never changes: loaded once, not while another is worked on.
        zeros = (0,) * a.ndim
        return pl.BlockSpec(a.shape, lambda i, t: zeros, pipeline_mode=pl.Buffered(1))

    def specs(groups):
        return {kind: [spec(kind, a) for a in group] for kind, group in groups.items()}

    return mosaic.call(
        kernel, (arrays,),
        name=name,  # in a profile
        grid=(pl.cdiv(plan.rows, rows), chunks),
        in_specs=(specs(arrays),),
        out_specs=specs(outs),
        out_shape=outs,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=plan.tiles.limit
        ),
    )  # fmt: skip


def _project(plan, x, w, b, gates):
    """The input's part of a chunk's gates, as many steps at a time as fill a product."""
    steps, rows, inputs = x.shape
    group = plan.tiles.group

    def some(i, _):
        at = pl.ds(i * group, group)
        part = x[at].astype(plan.product).reshape(group * rows, inputs)
        part = _dot(part, w[...], plan) + b[...]
        gates[at] = part.reshape(group, rows, gates.shape[-1])

    lax.fori_loop(0, steps // group, some, None)


def _loop(plan, backwards, step, carry):
    """Runs the steps of a chunk; the last chunk in time may have fewer than the others."""
    last, rest = pl.cdiv(plan.steps, plan.tiles.steps) - 1, plan.steps % plan.tiles.steps
    count = plan.tiles.steps
    if rest:
        t = pl.program_id(1)
        count = jnp.where((last - t if backwards else t) == last, rest, count)

    def body(i, carry):
        return step(count - 1 - i if backwards else i, carry)

    return lax.fori_loop(0, count, body, carry)


def _flag(plan, refs, k, starts):
    """Whether step k of a chunk is real, and a start, [rows, 1] each."""
    if not refs:
        return None, None
    bits = refs[0][...]
    here = lax.broadcasted_iota(jnp.int32, bits.shape, 1) == k
    flag = jnp.sum(jnp.where(here, bits, 0), axis=1, keepdims=True)
    flag = jnp.broadcast_to(flag, (flag.shape[0], plan.lanes.all))
    return flag & REAL != 0, (flag & START != 0) if starts else None


def _unit(plan, refs):
    shape = (plan.tiles.rows, plan.lanes.all)
    return {n: jnp.broadcast_to(u[...], shape) for n, u in zip(plan.unit, refs, strict=True)}


def _heads(plan, h):
    """[rows, all] as [rows, width] of each head."""
    width = plan.lanes.width
    return [h[:, n * width : (n + 1) * width] for n in range(plan.lanes.heads)]


def _by_gate(plan, parts):
    """[rows, G * width] of each head -> [rows, G * all]."""
    if len(parts) == 1:
        return parts[0]
    width, gates = plan.lanes.width, plan.packing.problem.gates
    return jnp.concatenate(
        [part[:, k * width : (k + 1) * width] for k in range(gates) for part in parts], -1
    )


def _by_head(plan, gates):
    """The inverse of ``_by_gate``."""
    lanes, count = plan.lanes, plan.packing.problem.gates
    if lanes.heads == 1:
        return [gates]

    def part(k, n):
        first = k * lanes.all + n * lanes.width
        return gates[:, first : first + lanes.width]

    return [jnp.concatenate([part(k, n) for k in range(count)], -1) for n in range(lanes.heads)]


def _up_to(lanes, a):
    """[rows, K] with zeros up to a number of lanes."""
    empty = lanes - a.shape[1]
    return jnp.concatenate([a, jnp.zeros((a.shape[0], empty), a.dtype)], -1) if empty else a


def _without_empty(plan, a):
    """Zero in the empty lanes: whatever an update makes of nothing must not meet a weight."""
    lanes = plan.lanes
    if lanes.full:
        return a
    lane = lax.broadcasted_iota(jnp.int32, a.shape, a.ndim - 1) % lanes.width
    return jnp.where(lane < lanes.units, a, 0)


def _dot(a, b, plan):
    precision = lax.Precision.HIGHEST if plan.product == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=plan.state)
