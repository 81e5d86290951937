"""Which numbers of a function's inputs each unit of an output depends on, from its jaxpr.

Labels go backward from the output to the inputs. Unit i of the output has the label i. A number
that only unit i depends on gets the label i, one that no unit depends on ``NOBODY``, and one that
several units depend on ``SEVERAL``. An operation that is not known here mixes all its numbers, so
a label may say too much and never too little.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.ops.recurrence.elements import CALLS, ELEMENTWISE, scan_ends

NOBODY, SEVERAL = -1, -2

# Each number of the result is one number of the first operand; the others say which.
_MOVING = {
    "reshape",
    "squeeze",
    "expand_dims",
    "transpose",
    "broadcast_in_dim",
    "slice",
    "rev",
    "split",
    "unstack",
}
_REDUCING = {
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "argmax",
    "argmin",
}
_SAME = ELEMENTWISE | {"copy", "copy_p", "name", "pvary", "device_put"}


def labels(closed, output):
    """The labels of a jaxpr's inputs, for one of its outputs.

    Args:
      closed: a ``ClosedJaxpr``; its sizes are known.
      output: the output's number. Its units are its numbers, in row-major order.

    Returns:
      A list of int arrays, one for each input, of its shape.
    """
    shapes = [v.aval.shape for v in closed.jaxpr.outvars]
    seeds = [np.full(shape, NOBODY) for shape in shapes]
    seeds[output] = np.arange(math.prod(shapes[output])).reshape(shapes[output])
    return _backward(closed.jaxpr, seeds)


def _backward(jaxpr, seeds):
    found = {}

    def add(v, label):
        if not hasattr(v, "val"):  # a literal depends on nothing
            found[v] = joined(found.get(v, np.full(v.aval.shape, NOBODY)), label)

    def of(v):
        return found.get(v, np.full(v.aval.shape, NOBODY))

    for v, label in zip(jaxpr.outvars, seeds, strict=True):
        add(v, label)
    for eqn in reversed(jaxpr.eqns):
        outs = [of(v) for v in eqn.outvars]
        if all((label == NOBODY).all() for label in outs):
            continue
        for v, label in zip(eqn.invars, _through(eqn, outs), strict=True):
            add(v, label)
    return [of(v) for v in jaxpr.invars]


def _through(eqn, outs):
    """The labels that an equation gives its operands."""
    name, operands = eqn.primitive.name, [v.aval for v in eqn.invars]
    if name in CALLS:
        inner = eqn.params[CALLS[name]]
        return _backward(getattr(inner, "jaxpr", inner), outs)
    if name == "scan":
        return _scanned(eqn, outs)
    if name in _MOVING:
        return [_moved(eqn, operands[0], outs), *(_all(a, outs) for a in operands[1:])]
    if name == "concatenate":
        return _parted(outs[0], operands, eqn.params["dimension"])
    if name == "dot_general":
        return _contracted(eqn.params["dimension_numbers"], operands, outs[0])
    if name in _REDUCING:
        kept = np.expand_dims(outs[0], tuple(eqn.params["axes"]))
        return [np.broadcast_to(kept, operands[0].shape)]
    fits = len(outs) == 1 and all(a.shape in ((), outs[0].shape) for a in operands)
    if name not in _SAME or not fits:
        return [_all(a, outs) for a in operands]
    return [outs[0] if a.shape == outs[0].shape else _all(a, outs) for a in operands]


def _scanned(eqn, outs):
    """Through a scan: what any step depends on, until the labels of the carry stay."""
    consts, carried = scan_ends(eqn.params)
    count, body = carried - consts, eqn.params["jaxpr"].jaxpr
    carry, ys = outs[:count], [_over(o, 0)[0] for o in outs[count:]]
    while True:
        inputs = _backward(body, [*carry, *ys])
        longer = list(map(joined, carry, inputs[consts:carried]))
        if all(map(np.array_equal, carry, longer)):
            xs = zip(inputs[carried:], eqn.invars[carried:], strict=True)
            return [*inputs[:consts], *carry, *(np.broadcast_to(x, v.aval.shape) for x, v in xs)]
        carry = longer


def _moved(eqn, operand, outs):
    """Through an operation each of whose results is a number of its operand."""
    with jax.ensure_compile_time_eval():
        places = jnp.arange(math.prod(operand.shape), dtype=jnp.int32).reshape(operand.shape)
        rest = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.invars[1:]]
        moved = eqn.primitive.bind(places, *rest, **eqn.params)
    moved = moved if eqn.primitive.multiple_results else [moved]
    places = np.concatenate([np.asarray(m).ravel() for m in moved])
    label = np.concatenate([o.ravel() for o in outs])
    return _gathered(places, label, operand.shape)


def _gathered(places, label, shape):
    """The join of the labels that go to each place."""
    known = label != NOBODY
    places, label = places[known], label[known]
    least = np.full(math.prod(shape), np.iinfo(np.int64).max)
    most = np.full(math.prod(shape), NOBODY - 2)
    np.minimum.at(least, places, label)
    np.maximum.at(most, places, label)
    joined = np.where(least == most, least, SEVERAL)
    return np.where(most == NOBODY - 2, NOBODY, joined).reshape(shape)


def _over(label, axes):
    """The join over some axes, which stay with size 1."""
    known = label != NOBODY
    top = np.iinfo(label.dtype).max
    least = np.where(known, label, top).min(axes, keepdims=True, initial=top)
    most = np.where(known, label, NOBODY - 2).max(axes, keepdims=True, initial=NOBODY - 2)
    joined = np.where(least == most, least, SEVERAL)
    return np.where(most == NOBODY - 2, NOBODY, joined)


def joined(a, b):
    return _over(np.stack(np.broadcast_arrays(a, b)), 0)[0]


def _all(operand, outs):
    flat = np.concatenate([o.ravel() for o in outs])
    return np.full(operand.shape, _over(flat, 0)[0])


def _parted(label, operands, axis):
    ends = np.cumsum([a.shape[axis] for a in operands])[:-1]
    return np.split(label, ends, axis)


def _contracted(dimensions, operands, label):
    """Through ``dot_general``: batch axes lead its result, then those of the left come."""
    (left, right), (left_batch, right_batch) = dimensions
    a, b = (operand.shape for operand in operands)
    rest = lambda shape, used: [k for k in range(len(shape)) if k not in used]
    free = rest(a, (*left, *left_batch)), rest(b, (*right, *right_batch))
    count, split = len(left_batch), len(left_batch) + len(free[0])
    of_left = _over(label, tuple(range(split, label.ndim)))
    of_right = _over(label, tuple(range(count, split)))

    def spread(part, shape, axes, contracted):
        sizes = [shape[k] for k in (*axes, *contracted)]
        part = part.reshape([shape[k] for k in axes] + [1] * len(contracted))
        return np.broadcast_to(part, sizes).transpose(np.argsort((*axes, *contracted)))

    return [
        spread(of_left, a, (*left_batch, *free[0]), left),
        spread(of_right, b, (*right_batch, *free[1]), right),
    ]
