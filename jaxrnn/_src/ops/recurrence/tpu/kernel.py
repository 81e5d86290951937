"""The two kernels: a recurrence forward, and its gradient backward in time.

A kernel runs on a grid of tiles of the batch and, innermost, chunks of time, one after the other.
The recurrent weights are loaded into VMEM once and stay. The chunks of all arrays over time come
and go while others are worked on. The state lives in VMEM, where the final state will be.

A step works on all units at once, or, where that makes code too long to compile, on a block of
them after another (``Lanes.block``). In between, the state is in registers or, with blocks, in
VMEM: a block is then taken out of it and put back.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn._src.ops import pallas_tpu
from jaxrnn._src.ops.recurrence.packed import Packing
from jaxrnn._src.ops.recurrence.tpu.lanes import LANES, Lanes
from jaxrnn._src.ops.recurrence.tpu.tiles import Tiles


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


def forward(plan, arrays, y, *, after, save, first_kept):
    """Runs the recurrence.

    Args:
      plan: a ``Plan``.
      arrays: dict of lists of arrays.

        x        [T, B, I]; without ``w``, the gates' input part, [T, B, G * all]
        w        [I, G * all] and the bias [1, G * all], or none
        r        ``Lanes.recurrent``
        unit     [1, all] each
        state    [B, all] each
        initial  the same, or none without starts
        flags    one from ``flags``, or none

      y: the type of ys; None if nobody uses them.
      after: of each state, whether it is wanted after each step; empty if none is.
      save: "gates", "states": what is kept for a gradient; None for nothing.
      first_kept: the first state of those kept.

    Returns:
      Dict of lists: ``final`` [B, all], ``ys`` [T, B, all] or none, ``after`` [T, B, all] of the
      states that are wanted, ``gates`` [T, B, n * all] and ``states`` [T, B, all], those before
      each step.
    """
    packing, lanes, tiles = plan.packing, plan.lanes, plan.tiles
    projects, starts = bool(arrays["w"]), bool(arrays["initial"])
    kept = packing.problem.states - first_kept
    outs = {
        "final": [_by_row(plan)] * packing.problem.states,
        "ys": [] if y is None else [_over_time(plan, 1, y)],
        "after": [_over_time(plan)] * sum(after),
        "gates": [_over_time(plan, n) for n in packing.sizes if save == "gates"],
        "states": [_over_time(plan)] * kept * bool(save),
    }

    def kernel(ref, out, gates_in: Any = None, h: Any = None):
        @pl.when(pl.program_id(1) == 0)
        def _():
            _put(out["final"], _get(ref["state"]))

        if projects:
            w, b = ref["w"]
            _project(plan, ref["x"][0], w, b, gates_in)
        else:
            (gates_in,) = ref["x"]
        (r,) = ref["r"]

        def begin(start, state):
            if not starts:
                return state
            first = zip(ref["initial"], state, strict=True)
            return [jnp.where(start, i[...], s) for i, s in first]

        def block(k, q, real, unit, recurrent, state):
            gates = _read(plan, gates_in, k, q).astype(plan.state)
            packed = packing.pack(gates, recurrent)
            new = packing.update(tuple(state), packed, unit)
            new = [_without_empty(plan, new[0], q), *new[1:]]
            for place, part in zip(out["gates"], jax.tree.leaves(packed)):
                _write(plan, place, k, q, part)
            for place, s in zip(out["states"], state[first_kept:]):
                _write(plan, place, k, q, s)
            for place in out["ys"]:
                ys = new[0] if real is None else jnp.where(real, new[0], 0)
                _write(plan, place, k, q, ys.astype(y))
            new = _if_real(real, new, state)
            for place, s in zip(out["after"], itertools.compress(new, after), strict=True):
                _write(plan, place, k, q, s)
            return new

        def step(k, state):
            real, start = _flag(plan, ref["flags"], k, starts)
            state = begin(start, state)
            heads = enumerate(_heads(plan, state[0]))
            recurrent = [_dot(h.astype(plan.product), r[n], plan) for n, h in heads]
            return block(k, 0, real, unit, _by_gate(plan, recurrent), state)

        def step_by_blocks(k, _):
            if starts:
                _, start = _flag(plan, ref["flags"], k, starts)
                _put(out["final"], begin(start, _get(out["final"])))
            # What all blocks see, while each replaces its own part of the state.
            h[...] = out["final"][0][...].astype(plan.product)

            def some(q, at, state):
                real, _ = _flag(plan, ref["flags"], k, starts, lanes.block)
                recurrent = _dot(h[:, _head(plan, q)], r[q], plan)
                return block(k, q, real, _unit(plan, ref["unit"], at), recurrent, state)

            _by_block(plan, some, out["final"])

        if lanes.blocks == 1:
            unit = _unit(plan, ref["unit"])
            _put(out["final"], _loop(plan, plan.reverse, step, _get(out["final"])))
        else:
            _loop(plan, plan.reverse, step_by_blocks, None)

    name, scratch = f"recur_forward_{tiles.rows}x{tiles.steps}", {}
    if projects:
        name += f"x{tiles.group}"
        gates = tiles.steps, tiles.rows, packing.problem.gates * lanes.all
        scratch["gates_in"] = pltpu.VMEM(gates, plan.state)
    if lanes.blocks > 1:
        scratch["h"] = pltpu.VMEM((tiles.rows, lanes.all), plan.product)
    return _call(plan, name, kernel, arrays, outs, plan.reverse, scratch)


def backward(plan, arrays, *, starts, used, after):
    """Runs the gradient.

    Args:
      plan: a ``Plan``.
      arrays: dict of lists of arrays.

        gates    [T, B, n * all] each
        states   [T, B, all] each: before each step, those that are ``used``
        r        ``Lanes.transposed``
        unit     [1, all] each
        d_ys     one [T, B, all], or none
        d_after  [T, B, all] each
        d_state  [B, all] each
        flags    one from ``flags``, or none

      starts: there are starts.
      used: of each state, whether the update looks at it.
      after: of each state, whether ``d_after`` has a cotangent of it after each step; empty if of
        none.

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

    def kernel(ref, out, through: Any = None):
        @pl.when(pl.program_id(1) == 0)
        def _():
            _put(out["d_state"], _get(ref["d_state"]))
            for place in (*out["d_initial"], *out["d_unit"]):
                place[...] = jnp.zeros_like(place)

        (r,) = ref["r"]

        def with_after(k, q, d_state):  # also of a step that is not real: the state is held there
            given = iter(ref["d_after"])
            both = itertools.zip_longest(d_state, after)
            return [d + _read(plan, next(given), k, q) if a else d for d, a in both]

        def block(k, q, real, unit, d_state, d_unit):
            read = functools.partial(_read, plan, k=k, q=q)
            saved = map(read, ref["states"])
            zero = jnp.zeros((tiles.rows, lanes.block), plan.state)
            state = tuple(next(saved) if u else zero for u in used)
            packed, _ = packing.unflatten(map(read, ref["gates"]))
            d_new = list(d_state)
            if ref["d_ys"]:
                d_new[0] = d_new[0] + read(ref["d_ys"][0]).astype(plan.state)
            d_before, *others = packing.vjp(state, packed, unit)(tuple(d_new))
            if real is not None:
                others = jax.tree.map(lambda d: jnp.where(real, d, 0), others)
            others = jax.tree.map(lambda d: _without_empty(plan, d, q), others)
            d_before, d_packed, d_row = packing.gradients((d_before, *others))
            d_packed = jax.tree.map(lambda d: d.astype(plan.product), d_packed)
            for place, d in zip(out["d_gates"], jax.tree.leaves(d_packed), strict=True):
                _write(plan, place, k, q, d)
            d_unit = [a + d_row[name] for name, a in zip(plan.unit, d_unit)]
            return d_before, d_unit, packing.recurrent_part(d_packed)

        def end(start, d_before, d_initial):
            if starts:
                d_initial = [i + jnp.where(start, d, 0) for i, d in zip(d_initial, d_before)]
                d_before = [jnp.where(start, 0, d) for d in d_before]
            return d_before, d_initial

        def step(k, carry):
            d_state, d_initial, d_unit = carry
            real, start = _flag(plan, ref["flags"], k, starts)
            d_state = with_after(k, 0, d_state)
            d_before, d_unit, d_gates = block(k, 0, real, unit, d_state, d_unit)
            heads = enumerate(_by_head(plan, d_gates))
            through = [_dot(_up_to(r.shape[1], d), r[n], plan) for n, d in heads]
            d_before = [d_before[0] + jnp.concatenate(through, -1), *d_before[1:]]
            return *end(start, _if_real(real, d_before, d_state), d_initial), d_unit

        def step_by_blocks(k, _):
            through[...] = jnp.zeros_like(through)

            def some(q, at, carry):
                d_state, d_unit = with_after(k, q, carry[0]), carry[1]
                real, _ = _flag(plan, ref["flags"], k, starts, lanes.block)
                unit = _unit(plan, ref["unit"], at)
                d_before, d_unit, d_gates = block(k, q, real, unit, d_state, d_unit)
                d_gates = _up_to(r.shape[1], d_gates)
                through[:, _head(plan, q)] += _dot(d_gates, r[q], plan)
                return _if_real(real, d_before, d_state), d_unit

            _by_block(plan, some, (out["d_state"], out["d_unit"]))
            _, start = _flag(plan, ref["flags"], k, starts)
            d_before, d_initial = _get((out["d_state"], out["d_initial"]))
            d_before[0] += through[...]  # it is zero where a step is not real
            _put((out["d_state"], out["d_initial"]), end(start, d_before, d_initial))

        if lanes.blocks == 1:
            unit = _unit(plan, ref["unit"])
            places = out["d_state"], out["d_initial"], out["d_unit"]
            _put(places, _loop(plan, backwards, step, _get(places)))
        else:
            _loop(plan, backwards, step_by_blocks, None)

    name, scratch = f"recur_backward_{tiles.rows}x{tiles.steps}", {}
    if lanes.blocks > 1:
        scratch["through"] = pltpu.VMEM((tiles.rows, lanes.all), plan.state)
    return _call(plan, name, kernel, arrays, outs, backwards, scratch)


# What both are made of.


_BY_ROW = ("state", "initial", "final", "d_state", "d_initial", "d_unit")  # [B, all]
OUT_OVER_TIME = ("ys", "after", "gates", "states")  # [T, B, K]
_OVER_TIME = ("x", *OUT_OVER_TIME, "d_ys", "d_after", "d_gates")


def _by_row(plan):
    return jax.ShapeDtypeStruct((plan.rows, plan.lanes.all), plan.state)


def _over_time(plan, count=1, dtype=None):
    shape = plan.steps, plan.rows, count * plan.lanes.all
    return jax.ShapeDtypeStruct(shape, dtype or plan.state)


def _get(places):
    return jax.tree.map(lambda place: place[...], places)


def _put(places, values):
    for place, value in zip(jax.tree.leaves(places), jax.tree.leaves(values), strict=True):
        place[...] = value


def _call(plan, name, kernel, arrays, outs, backwards, scratch):
    """The results of ``kernel(ref, out, **scratch)``, as ``outs`` has them."""
    rows, steps, *_ = plan.tiles
    if plan.lanes.blocks > 1:
        name += f"_by_{plan.lanes.blocks}"
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

    return pallas_tpu.call(
        kernel,
        (arrays,),
        name=name,  # in a profile
        grid=(pl.cdiv(plan.rows, rows), chunks),
        in_specs=(specs(arrays),),
        out_specs=specs(outs),
        out_shape=outs,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=plan.tiles.limit
        ),
    )


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


def _by_block(plan, block, places):
    """``block(q, at, values) -> values`` of each block of ``places``, its lanes ``at``."""

    def some(q, _):
        at = _at(plan, q)
        values = block(q, at, jax.tree.map(lambda place: place[:, at], places))
        for place, value in zip(jax.tree.leaves(places), jax.tree.leaves(values), strict=True):
            place[:, at] = value

    lax.fori_loop(0, plan.lanes.blocks, some, None)


def _at(plan, q, first=0):
    """The lanes of block q, of those from ``first`` on."""
    block = plan.lanes.block
    return pl.ds(pl.multiple_of(first + q * block, LANES), block)


def _head(plan, q):
    """The lanes of the head of block q, as many as a product is taken over."""
    lanes = plan.lanes
    n = lax.div(q, lanes.width // lanes.block)
    return pl.ds(pl.multiple_of(n * lanes.width, LANES), lanes.used)


def _read(plan, place, k, q):
    """Step k of an array over time; with blocks, of each of its gates the q-th."""
    lanes = plan.lanes
    if lanes.blocks == 1:
        return place[k]
    gates = range(0, place.shape[-1], lanes.all)
    return jnp.concatenate([place[k, :, _at(plan, q, first)] for first in gates], -1)


def _write(plan, place, k, q, a):
    """The inverse of ``_read``."""
    lanes = plan.lanes
    if lanes.blocks == 1:
        place[k] = a
        return
    for n in range(place.shape[-1] // lanes.all):
        place[k, :, _at(plan, q, n * lanes.all)] = a[:, n * lanes.block : (n + 1) * lanes.block]


def _flag(plan, refs, k, starts, lanes=None):
    """Whether step k of a chunk is real, and a start: the same in all lanes of a row."""
    if not refs:
        return None, None
    bits = refs[0][...]
    here = lax.broadcasted_iota(jnp.int32, bits.shape, 1) == k
    flag = jnp.sum(jnp.where(here, bits, 0), axis=1, keepdims=True)
    flag = jnp.broadcast_to(flag, (flag.shape[0], lanes or plan.lanes.all))
    return flag & REAL != 0, (flag & START != 0) if starts else None


def _if_real(real, new, old):
    return new if real is None else [jnp.where(real, n, o) for n, o in zip(new, old, strict=True)]


def _unit(plan, refs, at=slice(None)):
    shape = (plan.tiles.rows, plan.lanes.block)
    return {n: jnp.broadcast_to(u[:, at], shape) for n, u in zip(plan.unit, refs, strict=True)}


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


def _without_empty(plan, a, q):
    """Zero in the empty lanes: whatever an update makes of nothing must not meet a weight."""
    lanes = plan.lanes
    if lanes.full:
        return a
    lane = lax.broadcasted_iota(jnp.int32, a.shape, a.ndim - 1)
    lane = (q * lanes.block + lane) % lanes.width
    return jnp.where(lane < lanes.units, a, 0)


def _dot(a, b, plan):
    precision = lax.Precision.HIGHEST if plan.product == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=plan.state)
