"""The recurrence on an NVIDIA GPU: the whole sequence in one kernel, the weights on the chip.

XLA's loop is several kernels a step, each of which waits for the one before and reads the weights
again. Here each block of threads keeps its part of the weights, and blocks hand each other what a
step made through the cache (``kernel.cu``). The update and its derivative become its code, so any
elementwise update of known operations runs. The gradients of the weights are products over all
steps, after the loop, as in ``recurrence.xla``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.ops.gpu import chips, launch
from jaxrnn._src.ops.gpu.chips import KIB
from jaxrnn._src.ops.gpu.source import TYPES, factors
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence.gpu import code, exchange, source, tiling
from jaxrnn._src.ops.recurrence.gpu.tiling import Layer, plan
from jaxrnn._src.ops.recurrence.packed import Packed, Packing
from jaxrnn._src.ops.recurrence.program import Unknown
from jaxrnn._src.ops.recurrence.projected import in_pieces
from jaxrnn._src.ops.recurrence.residuals import first_kept, saved
from jaxrnn._src.ops.recurrence.updates import programs
from jaxrnn._src.ops.row_partition import Argument, Batch, Result, call

EXPORTED = False  # an exported program should run where this library's kernels are not
# Compute capabilities of which a GPU has run it; on the others it runs on request.
CONFIRMED = (90,)


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    why = launch.why_not(target)
    if why is not None:
        return why
    chip = launch.chip(target)
    sizes = (*operands.xs.shape, *operands.r.shape, operands.w.shape[2], target.members)
    if not all(isinstance(n, int) for n in sizes):
        return "a size is symbolic"
    if operands.state[0].dtype != jnp.float32:
        return f"states have the type {operands.state[0].dtype}; the kernel knows float32"
    if operands.xs.dtype.name not in TYPES:
        return f"xs has the type {operands.xs.dtype}; the kernel knows {', '.join(TYPES)}"
    if operands.state[0].size == 0:
        return "there is no row"
    arrays = (4 + problem.every) * problem.states + 2 * len(operands.unit) + 10  # at most
    if arrays > launch.MOST_ARRAYS:
        return (
            f"the update has {problem.states} states and {len(operands.unit)} per-unit weights,"
            f" which may take more than the kernel's {launch.MOST_ARRAYS} arrays"
        )
    try:
        programs(problem, operands, code.OPERATIONS)
    except Unknown as unknown:
        return f"the update has an operation that the kernel has not: {unknown}"
    # Those of one device. XLA says only later whether it divides rows over all of them; if it does
    # not, the kernel is launched for some after others.
    rows = -(-math.prod(operands.xs.shape[1:-1]) // target.devices)
    one = _layer(problem, operands, 1, rows)
    forth, back = plan(one, chip, backward=False), plan(one, chip, backward=True)
    if forth is None or back is None:
        return (
            f"r {operands.r.shape} in {operands.product_dtype} does not fit into {chip.blocks}"
            f" blocks of {chip.shared // KIB} KiB"
        )
    # Launches for more and more members follow one another. Predicted: XLA's loop takes longer, as
    # it reads the weights of all of them at each step; with more and more rows, it does not.
    # Blocks that have all units do not wait for each other anyway.
    launches = max(forth.launches, back.launches)
    alone = forth.alone and back.alone
    if launches > 1 and not alone and problem.implementation is None:
        many = "rows" if one.groups == 1 else "rows and heads"
        return f"for so many {many} it would be launched {launches} times, one after the other"
    if problem.implementation is None:
        return chips.unconfirmed(chip, CONFIRMED)
    return None


def _layer(problem, operands, members, rows):
    heads = operands.r.shape[0] if operands.r.ndim == 4 else 1
    hidden = operands.w.shape[2]
    size = operands.product_dtype.itemsize
    return Layer(size, problem.gates, hidden // heads, heads * members, rows)


def forward(problem, operands, wanted, save, target):
    """Returns (*final state, ys), then what a backward needs (``residuals.py``)."""
    return in_pieces(_forward, problem, operands, wanted, save, target)


def _forward(problem, operands, wanted, save, target):
    packing, plan = Packing(problem, operands.unit), _Plan(problem, operands, target)
    parts = packing.sizes if save and problem.residuals == "gates" else ()
    first = first_kept(operands)
    count = problem.states
    want_y, *after = wanted[count:]
    arguments = {
        "GIVEN": [plan.steps(p.project(operands.xs, operands))],
        **plan.weights,
        "STATE": map(plan.rows, operands.state),
        "INITIAL": map(plan.rows, operands.initial or ()),
        **plan.flags,
    }
    results = {
        "FINAL": [plan.row_results()] * count,
        "YS": [plan.step_results(1, operands.xs.dtype)] * want_y,
        "AFTER": [plan.step_results(1, jnp.float32)] * sum(after),
        "KEPT_GATES": [plan.step_results(n, jnp.float32) for n in parts],
        "KEPT_STATES": [plan.step_results(1, jnp.float32)] * (save * (count - first)),
    }
    constants = {"FIRST_KEPT": first, "IS_AFTER": _places(after, count)}
    out = plan.call("update", arguments, results, constants)
    over_time = ("YS", "AFTER", "KEPT_GATES", "KEPT_STATES")
    found = {name: map(plan.unflat_steps, out[name]) for name in over_time}
    return [
        *map(plan.unflat_rows, out["FINAL"]),
        next(found["YS"], None),
        *(next(found["AFTER"]) if want else None for want in after),
        *found["KEPT_GATES"],
        *found["KEPT_STATES"],
    ]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del wanted  # what nobody uses, XLA removes
    packing, plan = Packing(problem, operands.unit), _Plan(problem, operands, target)
    packed, before = saved(packing, operands, outputs, residuals)
    d_final, (d_ys, *d_after) = cotangents[: problem.states], cotangents[problem.states :]
    zero = jnp.zeros_like(operands.state[0])
    used, count = plan.looks_at(), problem.states
    arguments = {
        "GIVEN": map(plan.steps, jax.tree.leaves(packed)),
        **plan.weights,
        "BEFORE": [plan.steps(s) for s, u in zip(before, used, strict=True) if u],
        "D_FINAL": [plan.rows(zero if d is None else d) for d in d_final],
        "D_YS": [] if d_ys is None else [plan.steps(d_ys)],
        "D_AFTER": [plan.steps(d) for d in d_after if d is not None],
        **plan.flags,
    }
    gates = plan.step_results(problem.gates, operands.product_dtype)
    starts = operands.starts is not None
    results = {
        "D_STATE": [plan.row_results()] * count,
        "D_INITIAL": [plan.row_results()] * (count * starts),
        "D_UNIT": [plan.row_results()] * len(operands.unit),
        "D_STATE_GATES": [gates],
        "D_INPUT_GATES": [] if packing.whole else [gates],
    }
    after = _places([d is not None for d in d_after], count)
    constants = {"USED": _places(used, count), "IS_AFTER": after}
    out = plan.call("derivative", arguments, results, constants)
    to_state = plan.unflat_steps(out["D_STATE_GATES"][0])
    to_input = to_state if packing.whole else plan.unflat_steps(out["D_INPUT_GATES"][0])
    all_gates = tuple(range(problem.gates))
    gradients = operands._replace(
        xs=p.project_transposed(to_input, all_gates, operands),
        w=p.input_gradient(to_input, operands),
        b=p.bias_gradient(to_input, operands),
        r=p.recurrent_gradient(before[0], to_state, operands),
        unit={name: p.over_rows(d) for name, d in zip(sorted(operands.unit), out["D_UNIT"])},
        state=tuple(map(plan.unflat_rows, out["D_STATE"])),
        initial=tuple(map(plan.unflat_rows, out["D_INITIAL"])) if starts else None,
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


def _places(flags, count):
    """Of each of ``count`` states, its place among those with a flag, or -1; of no flags, -1."""
    places = np.cumsum(flags) - 1
    return [int(i) if flag else -1 for i, flag in zip(places, flags)] or [-1] * count


class _Plan:
    """The problem as the kernel is told it: one batch axis, its arrays by name."""

    def __init__(self, problem, operands, target):
        self.problem, self.operands, self.target = problem, operands, target
        self.time, *batch, _ = operands.xs.shape
        self.batch = Batch(batch)
        self.hidden = operands.w.shape[2]
        r = operands.r if operands.r.ndim == 4 else operands.r[None]
        self.heads = r.shape[0]
        unit = [operands.unit[name].astype(jnp.float32) for name in sorted(operands.unit)]
        self.weights = {
            "R": [Argument(r.astype(operands.product_dtype), None)],
            "UNIT": [Argument(u, None) for u in unit],
        }
        flags = {"MASK": operands.mask, "STARTS": operands.starts}
        self.flags = {
            name: [] if flag is None else [self.steps(flag)] for name, flag in flags.items()
        }

    def steps(self, a):
        return self.batch.flat(a, 1)

    def rows(self, a):
        return self.batch.flat(a, 0)

    def row_results(self):
        return Result((None, self.hidden), jnp.dtype(jnp.float32))

    def step_results(self, parts, dtype):
        return Result((self.time, None, parts * self.hidden), jnp.dtype(dtype))

    def unflat_rows(self, a):
        return self.batch.unflat(a, 0)

    def unflat_steps(self, a):
        return self.batch.unflat(a, 1)

    def looks_at(self):
        """Of each state, whether the derivative depends on what it was."""
        program = self.program("derivative")
        read = {r for _, _, *args in program.instructions for r in args}
        return [k in read for k in range(self.problem.states)]

    def program(self, name):
        update, derivative = programs(self.problem, self.operands, code.OPERATIONS)
        return {"update": update, "derivative": derivative}[name]

    def call(self, name, arguments, results, constants):
        """Runs a kernel; what it gives, by the names of ``results``."""
        arguments = {key: list(some) for key, some in arguments.items()}
        constants = self._constants(arguments | results) | constants
        program, chip = self.program(name), launch.chip(self.target)
        backward = name == "derivative"
        product, *precise = factors(self.operands.product_dtype)
        defined = product, *["FORWARD"] * (not backward), *precise

        def run(shapes, args, members, rows):
            layer = _layer(self.problem, self.operands, math.prod(members), rows)
            chosen = plan(layer, chip, backward=backward)
            assert chosen is not None
            text = source.text(
                program=program,
                defined=defined,
                alone=chosen.alone,
                constants=constants
                | {"UNITS": chosen.units, "BLOCKS": chosen.blocks, "TILE": chosen.tile}
                | {"WARPS": chosen.warps, "RING": exchange.ring(chosen, self.time)}
                | {"CLUSTER": chosen.cluster}
                | {"ENSEMBLE": math.prod(members) > 1},
            )
            numbers = launch.Numbers(
                blocks=chosen.blocks,
                at_once=chosen.at_once,
                threads=32 * chosen.warps,
                shared=chosen.shared,
                steps=self.time,
                rows=rows,
                tiles=chosen.tiles,
                groups=layer.groups * chosen.tiles,
                together=True,
                cluster=chosen.cluster,
            )
            exchanged = exchange.size(chosen, self.time)
            return launch.run(text, chip.architecture, numbers, shapes, args, members, exchanged)

        out = iter(call(run, sum(arguments.values(), []), sum(results.values(), [])))
        return {key: [next(out) for _ in some] for key, some in results.items()}

    def _constants(self, arrays):
        """What ``kernel.cu`` wants to know; of arrays, which is the first of each name."""
        packing = Packing(self.problem, self.operands.unit)
        order = packing.summed + packing.apart
        places, count = {}, 0
        for name, some in arrays.items():
            places[name] = count if some else -1
            count += len(some)
        return {
            "MOST_POLLS": exchange.MOST_POLLS,
            "GATES": self.problem.gates,
            "APART": len(packing.apart),
            "STATES": self.problem.states,
            "UNIT_WEIGHTS": len(self.operands.unit),
            "HEADS": self.heads,
            "WIDTH": self.hidden // self.heads,
            "REVERSE": self.problem.reverse,
            "SLOT": [order.index(gate) for gate in range(self.problem.gates)],
            "EXCHANGE": count,
            "Output": TYPES[self.operands.xs.dtype.name],
            "MOST_HELD": tiling.MOST_HELD,
            **places,
        }
