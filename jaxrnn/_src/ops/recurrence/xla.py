"""The recurrence arranged for XLA: one recurrent product a step forward, one backward.

Forward keeps what enters the gates (or only the states: see ``residuals``). Backward runs the
update's own vjp on it step by step and puts the gates' gradients down in one array; the gradient
of each weight is then a product over all steps at once, where JAX's derivative of a scan adds to
a weight-sized array at every step. Any elementwise update will do.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops.recurrence import loops
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence.packed import Packed, Packing
from jaxrnn._src.ops.recurrence.projected import in_pieces
from jaxrnn._src.ops.recurrence.residuals import first_kept, of_products, saved

# On a CPU a step of no more units than this (batch times H) is bound by its arithmetic, not by
# memory: the update's derivatives are then taken for all steps before the loop. Value and grad at
# B=1 T=10000 H=16 took 0.78 of the time; at B=1 H=128 it made no difference, at B=32 H=128 1.25.
_TINY = 64

# Up to how many rows of a batch a CPU takes the products of x and h as one, for gates that are
# sums. One product wins clearly over two at one or few rows of small H, is even elsewhere up to 16
# rows, and loses at 32 and more.
_FEW_ROWS = 16

# Where XLA's products of few rows are slow on two cores, GRU at B=8: together they do 95 GFLOP/s
# at H=256 and 150 at H=384, but 240 at 320 and 285 at 512. There one product takes 0.66 to
# 0.78 of the time, though a third of it is with zeros.
_SLOW_WIDTHS = (256, 384)

# A GPU runs the kernels of a step faster than it can be told of them: there, fewer kernels count.
_GPUS = ("cuda", "rocm")


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns the outputs, then what enters the gates and the states before each step."""
    if target.platform in ("cpu", None):
        return _forward(problem, operands, wanted, save, target)
    return in_pieces(_forward, problem, operands, wanted, save, target)


def _forward(problem, operands, wanted, save, target):
    packing = Packing(problem, operands.unit)
    unit, want_y = _unit(operands), wanted[problem.states]
    every = wanted[problem.states + 1 :]  # of each state, whether it is wanted after each step
    if target.platform == "tpu":
        operands = _laid_out(operands)
    xs, gates = _gates(packing, operands, target)

    def step(state, inputs):
        x, real, start = inputs
        if start is not None:
            state = select(start, operands.initial, state)
        packed = gates(x, state[0])
        new = packing.update(state, packed, unit)
        y = select(real, new[0].astype(operands.xs.dtype), 0) if want_y else None
        kept = (packed if problem.residuals == "gates" else (), state[first_kept(operands) :])
        new = select(real, new, state)
        after = [a if want else None for a, want in zip(new, every)]
        return new, (y, after, kept if save else ())

    inputs = (xs, operands.mask, operands.starts)
    run = loops.scan_in_chunks if target.platform in _GPUS else lax.scan
    final, (ys, after, kept) = run(step, operands.state, inputs, reverse=problem.reverse)
    return [*final, ys, *after, *jax.tree.leaves(kept)]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del wanted  # what nobody uses, XLA removes
    packing = Packing(problem, operands.unit)
    unit, transposed = _unit(operands), p.recurrent_transposed(operands)
    d_final, (d_ys, *d_after) = cotangents[: problem.states], cotangents[problem.states :]
    packed, states = saved(packing, operands, outputs, residuals)
    inputs = (tuple(states), d_ys, d_after, operands.mask, operands.starts)
    gpu = target.platform in _GPUS

    pulls, size = None, operands.state[0].size
    if target.platform == "cpu" and isinstance(size, int) and size <= _TINY:
        pulls = jax.vmap(packing.vjp, (0, 0, None))(tuple(states), packed, unit)

    def step(carry, inputs, packed):
        d_state, d_initial, d_unit = carry
        (state, d_y, d_after, real, start), pull = inputs
        if d_after:  # also of a step that is not real: the state is held there
            d_state = tuple(d if a is None else d + a for d, a in zip(d_state, d_after))
        pull = packing.vjp(state, packed, unit) if pull is None else pull
        d_new = d_state
        if d_y is not None:
            d_new = (d_state[0] + d_y.astype(d_state[0].dtype), *d_state[1:])
        if gpu:
            pulled = select(real, pull(d_new), 0)
            d_before, d_packed, d_row, to_state = packing.gradients_at_once(
                pulled, operands.product_dtype
            )
        else:
            d_before, d_packed, d_row = packing.gradients(pull(d_new))
            d_packed, d_row = select(real, (d_packed, d_row), 0)
            if target.platform == "cpu":
                d_packed = lax.optimization_barrier(d_packed)  # has two readers: made once
            to_state = packing.recurrent_part(d_packed)
        through = transposed(to_state)
        d_before = select(real, (d_before[0] + through, *d_before[1:]), d_state)
        if start is not None:
            d_initial = _add(d_initial, select(start, d_before, 0))
            d_before = select(~start, d_before, 0)
        return (d_before, d_initial, _add(d_unit, d_row)), d_packed

    zero = jax.tree.map(jnp.zeros_like, operands.state)
    d_state = tuple(z if d is None else d for d, z in zip(d_final, zero, strict=True))
    d_initial = None if operands.initial is None else zero
    d_unit = jax.tree.map(jnp.zeros_like, unit)
    carry = (d_state, d_initial, d_unit)
    # The gradient takes the place of what it was made from: no second array of that size.
    run = loops.in_chunks if gpu else loops.one_by_one
    carry, d_packed = run(step, carry, (inputs, pulls), packed, reverse=not problem.reverse)
    d_state, d_initial, d_unit = carry
    merge = target.platform == "tpu" and target.devices == 1
    gradients = of_products(packing, d_packed, states[0], operands, merge)._replace(
        unit=jax.tree.map(p.over_rows, d_unit), state=d_state, initial=d_initial
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


def _laid_out(operands):
    """The recurrent weights laid out for the product, before the loop.

    On a TPU XLA moves that into the loop: compiled for a v6e, an LSTM of H=1024, B=16 takes 6,400
    cycles a step instead of 2,600.
    """
    flat = lax.optimization_barrier(operands.r.reshape(operands.r.shape[0], -1))
    return operands._replace(r=flat.reshape(operands.r.shape))


def _gates(packing, operands, target):
    """The inputs to scan, and the function ``(x, h) -> packed gates`` of one of them.

    On a GPU or TPU the input's product is one for all steps, before the loop. On a CPU it is
    taken inside it: before it, a layer was slower at most shapes, even for some steps at a time,
    whose gates stay in the cache.
    """
    if target.platform != "cpu":
        xs = p.project(operands.xs, operands)
        return xs, lambda xg, h: packing.pack(xg, p.recurrent(h, operands))
    if _at_once(packing, operands):
        return operands.xs, _gates_at_once(packing, operands)
    return operands.xs, lambda x, h: packing.pack(p.project(x, operands), p.recurrent(h, operands))


def _at_once(packing, operands):
    """Whether a CPU takes both products of a step as one.

    It does so without heads and for few rows; with gates whose parts are kept apart, only at
    widths where two products are slow.
    """
    if operands.r.ndim != 3:
        return False
    hidden = operands.state[0].shape[-1]
    rows = operands.state[0].size // hidden
    if not isinstance(rows, int) or rows > _FEW_ROWS:  # it may be symbolic
        return False
    return packing.whole or (hidden in _SLOW_WIDTHS and rows > 1)


def _gates_at_once(packing, operands):
    """Both products in one, [x, h] with [w; r], without heads.

    A gate whose parts are kept apart has two places there, one without r and one without w.
    """
    dtype, hidden = operands.product_dtype, operands.state[0].shape[-1]

    def columns(weight, *groups):
        zero = jnp.zeros_like(weight[..., 0, :])
        gates = [zero if k is None else weight[..., k, :] for group in groups for k in group]
        return jnp.concatenate(gates, -1)

    summed, apart = packing.summed, packing.apart
    none = (None,) * len(apart)
    w = columns(operands.w.astype(dtype), summed, apart, none)
    r = columns(operands.r.astype(dtype), summed, none, apart)
    b = columns(operands.b, summed, apart, none)
    weights = jnp.concatenate([w, r])
    ends = hidden * len(summed), hidden * (len(summed) + len(apart))

    def gates(x, h):
        out = p.dot(jnp.concatenate([x.astype(dtype), h.astype(dtype)], -1), weights, operands)
        out = out + p.spread(b, out)
        parts = jnp.split(out, ends, -1)
        return Packed(*(part if part.shape[-1] else None for part in parts))

    return gates


def _unit(operands):
    return {name: p.spread(row, operands.state[0]) for name, row in operands.unit.items()}


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
