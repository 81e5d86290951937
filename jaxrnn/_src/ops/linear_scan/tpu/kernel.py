"""The two kernels: a linear recurrence, and its gradient the other way.

A kernel runs on a grid of tiles of rows and lanes and, innermost, chunks of time, one after the
other. The chunks of all arrays come and go while others are worked on. The state lives in VMEM,
where the final state will be.

A number here is a list of arrays: one, or the real and the imaginary part.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn._src.ops import pallas_tpu

_TIMED = ("b", "a", "hs", "kept", "d_hs", "d_b", "d_a")  # [T, rows, lanes]
_STATES = ("h0", "final", "d_final", "d_h0", "d_constant")  # [rows, lanes]
_GROUP = 8  # steps written out in a row


def forward(layout, ins, outs, flags, *, reverse):
    """Runs the recurrence.

    Args:
      layout: a ``Layout``.
      ins: dict of numbers: b and a [T, rows, lanes], or in place of a ``constant`` [1, lanes];
        h0 [rows, lanes].
      outs: dict of the types of the results: final; hs and kept if they are wanted.
      flags: dict with mask and starts, bool [T, B], where they are given.
      reverse: from the last step to the first.

    Returns:
      Dict of numbers: final [rows, lanes]; hs and, before each step, kept [T, rows, lanes].
    """

    def kernel(ref, out, chunk):
        factor, real, start = chunk.factor(ref), chunk.flag(ref, "mask"), chunk.flag(ref, "starts")

        @pl.when(chunk.first)
        def _():
            _put(out["final"], ..., chunk.read(ref["h0"], ...))

        def step(k, h):
            h = _where(start(k), 0, h)
            new = _plus(_times(factor(k), h), chunk.read(ref["b"], k))
            _put(out.get("hs"), k, _where(real(k), new, 0))
            _put(out.get("kept"), k, h)
            return _where(real(k), new, h)

        _put(out["final"], ..., chunk.each(step, chunk.read(out["final"], ...)))

    return _call(layout, "linear_forward", kernel, ins, outs, flags, backwards=reverse)


def backward(layout, ins, outs, flags, *, reverse):
    """Runs the gradient.

    Args:
      layout, flags, reverse: as in ``forward``.
      ins: dict of numbers: ``a`` or ``constant``; d_final; d_hs if there is one; for the gradient
        of the factors kept, or else hs and h0.
      outs: dict of the types of the gradients that are wanted, and of d_h0.

    Returns:
      Dict of numbers: d_h0 [rows, lanes]; d_b and d_a [T, rows, lanes]; d_constant [rows, lanes],
      still to be summed over the rows of the batch.
    """

    def kernel(ref, out, chunk):
        factor, real, start = chunk.factor(ref), chunk.flag(ref, "mask"), chunk.flag(ref, "starts")
        before = chunk.before(ref) if "d_a" in out or "d_constant" in out else None

        @pl.when(chunk.first)
        def _():
            _put(out["d_h0"], ..., chunk.read(ref["d_final"], ...))
            for place in out.get("d_constant", ()):
                place[...] = jnp.zeros_like(place)

        def step(k, carry):
            d, total = carry
            d_new = _plus(d, chunk.read(ref["d_hs"], k)) if "d_hs" in ref else d
            _put(out.get("d_b"), k, _where(real(k), d_new, 0))
            if before is not None:
                d_factor = _times(d_new, _where(start(k), 0, before(k)))
                d_factor = _where(real(k), d_factor, 0)
                _put(out.get("d_a"), k, d_factor)
                total = _plus(total, d_factor) if total else total
            d = _where(real(k), _times(factor(k), d_new), d)
            return _where(start(k), 0, d), total

        places = out["d_h0"], out.get("d_constant", [])
        carry = chunk.each(step, tuple(chunk.read(place, ...) for place in places))
        for place, number in zip(places, carry, strict=True):
            _put(place, ..., number)

    return _call(layout, "linear_backward", kernel, ins, outs, flags, backwards=not reverse)


class _Chunk:
    """What a kernel knows of the chunk it works on."""

    def __init__(self, layout, size, backwards, dtype):
        self.layout, self.size, self.backwards, self.dtype = layout, size, backwards, dtype
        chunks, rest = pl.cdiv(layout.steps, size), layout.steps % size
        place = pl.program_id(2)
        self.first = place == 0
        self.number = chunks - 1 - place if backwards else place
        self.last_in_time = self.number == chunks - 1
        self.count = np.int32(size)  # an array, as it is with a rest
        if rest:
            self.count = jnp.where(self.last_in_time, rest, self.count)

    def each(self, step, carry):
        """Runs ``step(k, carry)`` for the steps of the chunk."""

        def one(i, carry):
            return step(self.count - 1 - i if self.backwards else i, carry)

        def group(g, carry):
            for i in range(_GROUP):
                carry = one(g * _GROUP + i, carry)
            return carry

        groups = lax.div(self.count, np.int32(_GROUP))  # `//` asks for the chip
        carry = lax.fori_loop(0, groups, group, carry)
        return lax.fori_loop(groups * _GROUP, self.count, one, carry)

    def read(self, refs, k):
        """The number at step k, or all of it."""
        return [ref[k].astype(self.dtype) for ref in refs]

    def factor(self, ref):
        """The function of k that gives a step's factors."""
        if "a" in ref:
            return lambda k: self.read(ref["a"], k)
        same = [jnp.broadcast_to(a, self.layout.tile) for a in self.read(ref["constant"], ...)]
        return lambda k: same

    def flag(self, ref, name):
        """The function of k that gives a step's flags, [rows, lanes]; None if there are none."""
        if name not in ref:
            return lambda k: None
        (words,), tile = ref[name], self.layout.tile
        if tile[0] == 1:
            return lambda k: words[0, k] != 0
        bit = jnp.left_shift(1, lax.broadcasted_iota(jnp.int32, tile, 0))
        return lambda k: (jnp.full(tile, words[0, k]) & bit) != 0

    def before(self, ref):
        """The function of k that gives the state before a step."""
        if "kept" in ref:
            return lambda k: self.read(ref["kept"], k)
        # Of hs, it is the step processed before: of the chunk's first one, in the chunk before.
        back = -1 if self.backwards else 1
        begins = 0 if self.backwards else self.count - 1
        whole = self.number == 0 if self.backwards else self.last_in_time
        edge = _where(whole, self.read(ref["h0"], ...), self.read(ref["edge"], 0))

        def before(k):
            inside = self.read(ref["hs"], jnp.clip(k + back, 0, self.size - 1))
            return _where(k == begins, edge, inside)

        return before


def _call(layout, name, kernel, ins, outs, flags, *, backwards):
    timed = [a.dtype for name in _TIMED for a in ins.get(name, [])]
    timed += [dtype for name in _TIMED for dtype in outs.get(name, [])]
    size = layout.chunk(sum(jnp.dtype(dtype).itemsize for dtype in timed))
    chunks = pl.cdiv(layout.steps, size)
    rows, lanes = layout.tile
    (dtype, *_) = outs["final" if "final" in outs else "d_h0"]

    def at(t):
        return chunks - 1 - t if backwards else t

    def edge(t):  # the step before the chunk, in the order of the recurrence
        return jnp.clip(at(t) * size - 1 if backwards else (at(t) + 1) * size, 0, layout.steps - 1)

    specs = {
        "edge": pl.BlockSpec((1, rows, lanes), lambda i, j, t: (edge(t), i, j)),
        "constant": pl.BlockSpec((1, lanes), lambda i, j, t: (0, j)),
        **dict.fromkeys(_STATES, pl.BlockSpec((rows, lanes), lambda i, j, t: (i, j))),
        **dict.fromkeys(_TIMED, pl.BlockSpec((size, rows, lanes), lambda i, j, t: (at(t), i, j))),
    }
    words = pl.BlockSpec(
        (None, None, 1, size), lambda i, j, t: (i, at(t), 0, 0), memory_space=pltpu.SMEM
    )
    specs |= dict.fromkeys(flags, words)
    shapes = dict.fromkeys(_STATES, (layout.rows, layout.lanes))
    shapes |= dict.fromkeys(_TIMED, (layout.steps, layout.rows, layout.lanes))
    results = {
        name: [jax.ShapeDtypeStruct(shapes[name], dtype) for dtype in types]
        for name, types in outs.items()
    }
    moved = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((ins, results)))
    ins = ins | {name: [layout.words(flag, size)] for name, flag in flags.items()}
    if "hs" in ins:  # the end of the chunk before
        ins["edge"] = ins["hs"]
    return pallas_tpu.call(
        lambda ref, out: kernel(ref, out, _Chunk(layout, size, backwards, dtype)),
        (ins,),
        name=f"{name}_{rows}x{lanes}x{size}x{_GROUP}",  # in a profile; benchmarks read it
        grid=(pl.cdiv(layout.rows, rows), pl.cdiv(layout.lanes, lanes), chunks),
        in_specs=({name: [specs[name]] * len(number) for name, number in ins.items()},),
        out_specs={name: [specs[name]] * len(types) for name, types in outs.items()},
        out_shape=results,
        cost_estimate=pl.CostEstimate(flops=moved, bytes_accessed=moved, transcendentals=0),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
    )


def _put(refs, k, number):
    for ref, part in zip(refs or (), number):
        ref[k] = part.astype(ref.dtype)


def _where(flag, new, old):
    """Picks between numbers, of which one may be 0; without flags the other, or the new one."""
    if flag is None:
        return old if new == 0 else new
    count = len(old if new == 0 else new)
    new, old = ([0] * count if n == 0 else n for n in (new, old))
    return [jnp.where(flag, *both) for both in zip(new, old, strict=True)]


def _plus(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def _times(x, y):
    if len(x) == 1:
        return [x[0] * y[0]]
    (a, b), (c, d) = x, y
    return [a * c - b * d, a * d + b * c]
