"""The recurrence on a CPU: the whole sequence in one call of C++ (``native/``).

The update and its derivative are handed over as programs, so any elementwise update of known
operations runs there. So do all gradients: those of the weights are products that the kernel
takes of some steps at a time, while what enters them is still in the cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import dispatch
from jaxrnn._src.ops import native
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence.packed import Packing
from jaxrnn._src.ops.recurrence.program import Unknown
from jaxrnn._src.ops.recurrence.residuals import first_kept
from jaxrnn._src.ops.recurrence.updates import programs
from jaxrnn._src.ops.row_partition import Argument, Batch, Result

_STORED = ("float32", "float64", "bfloat16", "float16")
EXPORTED = dispatch.ON_REQUEST  # else an exported program runs where this library is not


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    why = native.unsupported(target)
    if why is not None:
        return why
    sizes = (operands.xs.shape[-1], *operands.r.shape, operands.w.shape[2])
    if not all(isinstance(n, int) for n in sizes):
        return "I or H is symbolic"
    if operands.xs.dtype.name not in _STORED:
        return f"xs has the type {operands.xs.dtype}; the kernel knows {_STORED}"
    try:
        programs = _programs(problem, operands)
    except Unknown as unknown:
        return f"the update has an operation that its programs have not: {unknown}"
    registers, library = max(program.registers for program in programs), native.library()
    counts = problem.states, problem.gates, len(operands.unit), registers
    for (name, most), count in zip(library.most.items(), counts, strict=True):
        if count > most:
            return f"the update has {count} {name}; the kernel was made for up to {most}"
    return None


def forward(problem, operands, wanted, save, target):
    """Returns the outputs, then what a backward needs (``residuals.py``)."""
    del target
    want_y, *every = wanted[problem.states :]
    packing, plan = Packing(problem, operands.unit), _Plan(problem, operands)
    parts = packing.sizes if save and problem.residuals == "gates" else ()
    kept = first_kept(operands)
    out = [
        *[plan.rows()] * problem.states,
        *[plan.outer_steps(plan.hidden, operands.xs.dtype)] * want_y,
        *[plan.steps(plan.hidden)] * sum(every),
        *[plan.steps(n * plan.hidden) for n in parts],
        *[plan.steps(plan.hidden)] * ((problem.states - kept) * save),
    ]
    initial = () if operands.initial is None else operands.initial
    args = [
        *plan.arrays,
        *map(plan.flat_rows, (*operands.state, *initial)),
        *plan.flags,
    ]
    program = _programs(problem, operands)[0]
    flags = dict(save=save, kept=kept, parts=len(parts), want_y=want_y, want_after=_bits(every))
    out = iter(plan.call("forward", out, args, packing, program, flags))
    final = [plan.batch.unflat(next(out), 0) for _ in operands.state]
    ys = plan.inner(next(out)) if want_y else None
    after = [plan.batch.unflat(next(out), 1) if want else None for want in every]
    return [*final, ys, *after, *(plan.batch.unflat(a, 1) for a in out)]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del target
    packing, plan = Packing(problem, operands.unit), _Plan(problem, operands)
    packed, before = packing.kept(residuals)
    packed = jax.tree.leaves(packed)
    kept, states = first_kept(operands), problem.states
    d_final, (d_ys, *d_after) = cotangents[:states], cotangents[states:]
    given = any(d is not None for d in d_final)
    zero = jnp.zeros_like(operands.state[0])
    d_final = [zero if d is None else d for d in d_final] if given else []
    args = [
        *plan.arrays,
        *([plan.flat_rows(operands.state[0]), plan.outer(outputs[states])] if kept else []),
        *map(plan.flat, (*packed, *before)),
        *map(plan.flat_rows, d_final),
        *([] if d_ys is None else [plan.outer(d_ys)]),
        *(plan.flat(d) for d in d_after if d is not None),
        *plan.flags,
    ]
    names, weights = sorted(operands.unit), [a.array for a in plan.arrays[1:4]]
    starts, of_w = operands.starts is not None, wanted.w or wanted.b
    summed = [jax.ShapeDtypeStruct(a.shape, plan.dtype) for a in weights]
    # Several heads add to it, one after the other.
    d_xs = operands.xs.dtype if plan.arrays[3].array.shape[0] == 1 else plan.dtype
    results = {
        "state": [plan.rows()] * states,
        "initial": [plan.rows()] * (states * starts),
        "unit": [plan.rows()] * len(names),
        "w": [Result(summed[0].shape, plan.dtype)] if of_w else [],
        "b": [Result(summed[1].shape, plan.dtype)] if of_w else [],
        "r": [Result(summed[2].shape, plan.dtype)] if wanted.r else [],
        "xs": [plan.outer_steps(operands.xs.shape[-1], d_xs)] if wanted.xs else [],
    }
    flags = dict(
        kept=kept,
        parts=len(packed),
        has_d_ys=d_ys is not None,
        has_d_final=given,
        again=not packed,
        want_x=wanted.xs,
        want_w=of_w,
        want_r=wanted.r,
        want_after=_bits(d is not None for d in d_after),
    )
    program = _programs(problem, operands)[1]
    out = iter(plan.call("backward", sum(results.values(), []), args, packing, program, flags))
    found = {name: [next(out) for _ in some] for name, some in results.items()}

    def weight(name):
        whole = getattr(operands, name)
        return found[name][0].reshape(whole.shape) if found[name] else jnp.zeros_like(whole)

    gradients = p.Operands(
        xs=plan.inner(found["xs"][0]) if found["xs"] else operands.xs,  # not wanted: any
        w=weight("w"),
        b=weight("b"),
        r=weight("r"),
        unit={name: d.sum(0) for name, d in zip(names, found["unit"])},
        state=tuple(plan.batch.unflat(d, 0) for d in found["state"]),
        initial=tuple(plan.batch.unflat(d, 0) for d in found["initial"]) if starts else None,
        mask=operands.mask,
        starts=operands.starts,
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


class _Plan:
    """The problem as the kernel is told it: one batch axis, the weights in one type."""

    def __init__(self, problem, operands):
        self.problem, self.operands = problem, operands
        self.time, *batch, _ = operands.xs.shape
        self.batch = Batch(batch)
        self.dtype = operands.state[0].dtype
        self.hidden = operands.w.shape[2]
        r = operands.r if operands.r.ndim == 4 else operands.r[None]
        unit = [operands.unit[name] for name in sorted(operands.unit)]
        self.arrays = [
            self.outer(operands.xs),
            *map(self.weight, (operands.w, operands.b, r, *unit)),
        ]
        flags = (operands.mask, operands.starts)
        self.flags = [self.flat(f) for f in flags if f is not None]

    def rows(self):
        return Result((None, self.hidden), self.dtype)

    def steps(self, width, dtype=None):
        return Result((self.time, None, width), dtype or self.dtype)

    def outer_steps(self, width, dtype):
        first = (None, self.time) if self.problem.batch_first else (self.time, None)
        return Result((*first, width), dtype)

    def weight(self, a):
        return Argument(a.astype(self.dtype), None)

    def flat(self, a):
        return self.batch.flat(a, 1)

    def outer(self, a):
        """What the caller has and gets: xs and ys, and their gradients; [T, B, K] or [B, T, K]."""
        flat = self.flat(a)
        # Meets the transpose that brought time to the front, and both are gone.
        return Argument(flat.array.swapaxes(0, 1), 0) if self.problem.batch_first else flat

    def flat_rows(self, a):
        return self.batch.flat(a, 0)

    def inner(self, a):
        """The same of a result, as [T, *batch, K]."""
        return self.batch.unflat(a.swapaxes(0, 1) if self.problem.batch_first else a, 1)

    def call(self, name, out, args, packing, program, flags):
        operands, places = self.operands, _places(packing)
        numbers = {
            "states": self.problem.states,
            "unit": len(operands.unit),
            "has_mask": operands.mask is not None,
            "has_starts": operands.starts is not None,
            "has_d_ys": False,
            "has_d_final": False,
            "reverse": self.problem.reverse,
            "save": False,
            "kept": 0,
            "batch_first": self.problem.batch_first,
            "registers": program.registers,
            "inputs": program.inputs,
            "parts": 0,
            "again": False,
            "want_x": False,
            "want_w": False,
            "want_r": False,
            "want_y": False,
            "want_after": 0,
        } | flags
        attributes = dict(
            **{name: np.int32(number) for name, number in numbers.items()},
            program=np.array(program.instructions, np.int32).reshape(-1),
            constants=np.array(program.constants, np.float64),
            outputs=np.array(program.outputs, np.int32),
            **{name: np.array(place, np.int32) for name, place in places._asdict().items()},
        )

        return native.call(name, args, out, **attributes)


def _bits(flags):
    """A number with a bit for each flag, the first one's the lowest."""
    return sum(flag << k for k, flag in enumerate(flags))


class _Places(NamedTuple):
    """Where gates are: see ``Gates`` in native/cpu/task.h."""

    input: list[int]
    recurrent: list[int]
    part: list[int]
    place: list[int]


def _places(packing):
    summed, apart = packing.summed, packing.apart
    first = {gate: slot for slot, gate in enumerate(summed + apart)}
    gates = range(len(first))
    second = {gate: slot + len(apart) * (gate in apart) for gate, slot in first.items()}
    sizes = packing.sizes
    return _Places(
        [first[g] for g in gates],
        [second[g] for g in gates],
        [part for part, size in enumerate(sizes) for _ in range(size)],
        [place for size in sizes for place in range(size)],
    )


def _programs(problem, operands):
    """The update's, and its derivative's."""
    return programs(problem, operands, native.library().operations)
