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
      arrays: dict of lists of arrays, but for ``r``.

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
    count, projects, starts = packing.problem.states, arrays["w"], bool(arrays["initial"])
    parts = packing.sizes if save == "gates" else ()
    grid, time = _grid(plan, plan.reverse)
    ins = {
        "x": [time(a.shape[-1]) for a in arrays["x"]],
        "w": [_whole(a) for a in arrays["w"]],
        "r": [_whole(arrays["r"])],
        "unit": [_whole(a) for a in arrays["unit"]],
        "state": [_rows(plan)] * count,
        "initial": [_rows(plan)] * len(arrays["initial"]),
        "flags": [_flags(plan, plan.reverse)] * len(arrays["flags"]),
    }
    kept = (count - first_kept) if save else 0
    outs = {
        "final": ([_rows(plan)] * count, [_rows_shape(plan)] * count),
        "ys": ([time(lanes.all)], [_time_shape(plan, lanes.all, y)]),
        "gates": (
            [time(n * lanes.all) for n in parts],
            [_time_shape(plan, n * lanes.all, plan.state) for n in parts],
        ),
        "states": ([time(lanes.all)] * kept, [_time_shape(plan, lanes.all, plan.state)] * kept),
    }
    gates = (tiles.steps, tiles.rows, packing.problem.gates * lanes.all)

    def kernel(*refs):
        ref, out, *scratch = _named(refs, ins, outs)

        @pl.when(pl.program_id(1) == 0)
        def _():
            for place, state in zip(out["final"], ref["state"], strict=True):
                place[...] = state[...]

        gates_in = ref["x"][0]
        if projects:
            (gates_in,) = scratch
            _project(plan, ref["x"][0], *ref["w"], gates_in)
        unit = _unit(plan, ref["unit"])
        r = ref["r"][0]

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

    scratch = [pltpu.VMEM(gates, plan.state)] if projects else []
    name = f"recur_forward_{tiles.rows}x{tiles.steps}" + (f"x{tiles.group}" if projects else "")
    return _call(plan, name, kernel, grid, ins, outs, scratch, arrays)


def backward(plan, arrays, *, starts, used):
    """Runs the gradient.

    Args:
      plan: a ``Plan``.
      arrays: dict of lists of arrays, but for ``r``.

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
    count = packing.problem.states
    backwards = not plan.reverse
    grid, time = _grid(plan, backwards)
    ins = {
        "gates": [time(n * lanes.all) for n in packing.sizes],
        "states": [time(lanes.all)] * len(arrays["states"]),
        "r": [_whole(arrays["r"])],
        "unit": [_whole(a) for a in arrays["unit"]],
        "d_ys": [time(lanes.all)] * len(arrays["d_ys"]),
        "d_state": [_rows(plan)] * count,
        "flags": [_flags(plan, backwards)] * len(arrays["flags"]),
    }
    sums = count * starts
    outs = {
        "d_state": ([_rows(plan)] * count, [_rows_shape(plan)] * count),
        "d_initial": ([_rows(plan)] * sums, [_rows_shape(plan)] * sums),
        "d_unit": ([_rows(plan)] * len(plan.unit), [_rows_shape(plan)] * len(plan.unit)),
        "d_gates": (
            [time(n * lanes.all) for n in packing.sizes],
            [_time_shape(plan, n * lanes.all, plan.product) for n in packing.sizes],
        ),
    }

    def kernel(*refs):
        ref, out = _named(refs, ins, outs)

        @pl.when(pl.program_id(1) == 0)
        def _():
            for place, d in zip(out["d_state"], ref["d_state"], strict=True):
                place[...] = d[...]
            for place in (*out["d_initial"], *out["d_unit"]):
                place[...] = jnp.zeros_like(place)

        unit = _unit(plan, ref["unit"])
        r = ref["r"][0]

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
    return _call(plan, name, kernel, grid, ins, outs, [], arrays)


# What both are made of.


def _grid(plan, backwards):
    """The grid, and the block of an array over time."""
    tiles, chunks = plan.tiles, pl.cdiv(plan.steps, plan.tiles.steps)

    def time(width):
        def place(i, t):
            return chunks - 1 - t if backwards else t, i, 0

        return pl.BlockSpec((tiles.steps, tiles.rows, width), place)

    return (pl.cdiv(plan.rows, tiles.rows), chunks), time


def _rows(plan):
    return pl.BlockSpec((plan.tiles.rows, plan.lanes.all), lambda i, t: (i, 0))


def _flags(plan, backwards):
    chunks = pl.cdiv(plan.steps, plan.tiles.steps)
    shape = (None, plan.tiles.rows, plan.tiles.steps)
    return pl.BlockSpec(shape, lambda i, t: (chunks - 1 - t if backwards else t, i, 0))


def _whole(array):
    """An array that is loaded once: not twice, as those that change with the place."""
    zeros = (0,) * array.ndim
    return pl.BlockSpec(array.shape, lambda i, t: zeros, pipeline_mode=pl.Buffered(1))


def _rows_shape(plan):
    return jax.ShapeDtypeStruct((plan.rows, plan.lanes.all), plan.state)


def _time_shape(plan, width, dtype):
    return jax.ShapeDtypeStruct((plan.steps, plan.rows, width), dtype)


def _call(plan, name, kernel, grid, ins, outs, scratch, arrays):
    specs, shapes = zip(*outs.values())
    call = pl.pallas_call(
        kernel,
        name=name,  # in a profile
        grid=grid,
        in_specs=sum(ins.values(), []),
        out_specs=sum(specs, []),
        out_shape=sum(shapes, []),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=plan.tiles.limit
        ),
    )
    # A TPU has integers of 32 bits, whatever JAX's default is.
    with jax.enable_x64(plan.state == jnp.float64):
        out = call(*jax.tree.leaves([arrays[name] for name in ins]))
    return _grouped(out, {name: len(s) for name, (s, _) in outs.items()})


def _named(refs, ins, outs):
    refs = list(refs)
    sizes = {name: len(specs) for name, specs in ins.items()}
    first = sum(sizes.values())
    results = {name: len(specs) for name, (specs, _) in outs.items()}
    last = first + sum(results.values())
    return _grouped(refs[:first], sizes), _grouped(refs[first:last], results), *refs[last:]


def _grouped(values, sizes):
    values = iter(values)
    return {name: [next(values) for _ in range(size)] for name, size in sizes.items()}


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
