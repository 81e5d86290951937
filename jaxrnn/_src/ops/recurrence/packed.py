"""What enters the gates, kept in as few arrays as the update allows.

Most gates see their input part and their recurrent part only as a sum: then one array holds both,
and one gradient serves both. LSTM: all four gates. GRU: r and z, but not n.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.closures import traced_with
from jaxrnn._src.core.sharding import nowhere
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence.elements import called, opened

Array = jax.Array


class Packed(NamedTuple):
    """What enters the gates, or its gradient; each [..., gates * H], None where it is empty."""

    sums: Array | None  # of the gates whose parts the update sees only as a sum
    inputs: Array | None  # the input's part of the others
    recurrents: Array | None  # the state's part of the others


class Packing:
    """How the gates of one problem, whose update takes the weights ``unit``, are packed.

    Attributes:
      summed: the gates whose two parts the update sees only as a sum.
      apart: the others.
    """

    def __init__(self, problem: p.Problem, unit: Iterable[str]):
        self.problem = problem
        self.apart = _apart(problem.update, problem.gates, problem.states, tuple(unit))
        self.summed = tuple(k for k in range(problem.gates) if k not in self.apart)
        self.whole = not self.apart  # every gate is summed

    @property
    def sizes(self):
        """How many gates each array of packed gates holds, of those that are there."""
        counts = len(self.summed), len(self.apart), len(self.apart)
        return [n for n in counts if n]

    def pack(self, xg, rg):
        """Input and recurrent parts, each [..., G * H]."""
        if self.whole:
            return Packed(xg + rg, None, None)
        xs, rs = p.split(xg, self.problem.gates), p.split(rg, self.problem.gates)
        sums = [xs[k] + rs[k] for k in self.summed]
        parts = sums, [xs[k] for k in self.apart], [rs[k] for k in self.apart]
        return _joined(parts)

    def unflatten(self, leaves):
        """``Packed`` from as many leaves as it has, and the leaves left over."""
        leaves = list(leaves)
        sums = leaves.pop(0) if self.summed else None
        apart = (leaves.pop(0), leaves.pop(0)) if self.apart else (None, None)
        return Packed(sums, *apart), leaves

    def kept(self, residuals):
        """What a forward kept: packed gates, or None, and a list of states."""
        if self.problem.residuals == "gates":
            return self.unflatten(residuals)
        return None, list(residuals)

    def update(self, state, packed, unit):
        """The problem's update, from packed gates."""
        return self.update_parts(state, self.split(packed), unit)

    def vjp(self, state, packed, unit):
        """The pullback of ``update``, for ``gradients``; a tree of arrays, like any array."""
        # Taken of the gates one by one: the gradient of a slice is an array padded with zeros.
        return jax.vjp(self.update_parts, state, self.split(packed), unit)[1]

    def gradients(self, pulled):
        """What the pullback gave, as the gradients of state, packed and unit."""
        d_state, d_parts, d_unit = pulled
        return d_state, _joined(d_parts), d_unit

    def gradients_at_once(self, pulled, dtype):
        """``gradients``, and their ``recurrent_part`` in ``dtype``: on a GPU, all by one kernel.

        XLA makes one kernel of loops over arrays of one shape, but not of concatenations. So all
        that the pullback gave is laid side by side in arrays of [..., G * H], the recurrent part
        in the first: the product with the weights reads it whole, and slices of the others cost
        nothing where they are used.
        """
        d_state, (sums, inputs, recurrents), d_unit = pulled
        gates = dict(zip(self.summed + self.apart, (*sums, *recurrents), strict=True))
        gates = [gates[k] for k in range(self.problem.gates)]
        others, tree = jax.tree.flatten((d_state, inputs, d_unit))
        groups = [others[k : k + len(gates)] for k in range(0, len(others), len(gates))]
        joined = [_side_by_side(group, len(gates)) for group in (gates, *groups)]
        joined, to_state = lax.optimization_barrier((joined, joined[0].astype(dtype)))
        gates, *groups = (p.split(array, len(gates)) for array in joined)
        others = itertools.chain(*groups)
        d_state, inputs, d_unit = tree.unflatten(itertools.islice(others, tree.num_leaves))
        parts = [gates[k] for k in self.summed], inputs, [gates[k] for k in self.apart]
        return d_state, _joined(parts), d_unit, to_state

    def split(self, packed):
        """Packed gates one by one: lists of sums, inputs and recurrents."""
        counts = len(self.summed), len(self.apart), len(self.apart)
        return [p.split(part, n) if n else () for part, n in zip(packed, counts, strict=True)]

    def update_parts(self, state, parts, unit):
        """The problem's update, from what ``split`` gives."""
        sums, inputs, recurrents = parts
        xs = dict(zip(self.summed + self.apart, (*sums, *inputs), strict=True))
        rs = {k: jnp.zeros_like(x) for k, x in xs.items()}
        rs |= zip(self.apart, recurrents, strict=True)
        gates = range(self.problem.gates)
        x, r = tuple(xs[k] for k in gates), tuple(rs[k] for k in gates)
        return tuple(self.problem.update(state, x, r, **unit))

    def recurrent_part(self, packed: Packed) -> Array:
        """The gradient of the state's part of all gates, [..., G * H]."""
        if self.whole:
            assert packed.sums is not None  # every gate is in it
            return packed.sums
        return jnp.concatenate(self._gates(packed.sums, packed.recurrents), -1)

    def parts(self, sums, others):
        """``(gates, part)`` of those of the two that are there."""
        pairs = (self.summed, sums), (self.apart, others)
        return [(gates, part) for gates, part in pairs if gates]

    def reordered(self, weights):
        """[..., gates, H] of each of ``parts`` -> [..., G, H] in the order of the gates."""
        if self.whole:
            return weights[0]
        order = sorted(range(self.problem.gates), key=(self.summed + self.apart).__getitem__)
        return jnp.concatenate(weights, -2)[..., jnp.array(order), :]

    def _gates(self, sums, others):
        """The gates one by one, in order."""
        gates = {}
        for which, part in self.parts(sums, others):
            gates |= zip(which, p.split(part, len(which)), strict=True)
        return [gates[k] for k in range(self.problem.gates)]


def _joined(parts):
    """``Packed`` of lists of gates."""
    return Packed(*(jnp.concatenate(gates, -1) if gates else None for gates in parts))


def _side_by_side(arrays, count):
    """Up to ``count`` arrays [..., H] in one, [..., count * H]; zero where there is none."""
    width = arrays[0].shape[-1]
    leading, zero = [(0, 0, 0)] * (arrays[0].ndim - 1), jnp.zeros((), arrays[0].dtype)

    def padded(k, array):
        return lax.pad(array, zero, [*leading, (k * width, (count - 1 - k) * width, 0)])

    return functools.reduce(jnp.add, itertools.starmap(padded, enumerate(arrays)))


@functools.lru_cache(1024)
def _apart(update, gates, states, unit):
    """The gates k whose x[k] and r[k] the update uses otherwise than once each, in x[k] + r[k]."""
    row = traced_with(update, jax.ShapeDtypeStruct((1,), jnp.float32))
    rows = (row,) * gates
    with nowhere():
        jaxpr = jax.make_jaxpr(update)(
            (row,) * states, rows, rows, **dict.fromkeys(unit, row)
        ).jaxpr

    def summed(x, r):
        uses = list(_uses(jaxpr, x)), list(_uses(jaxpr, r))
        return uses[0] == uses[1] and [name for *_, name in uses[0]] == ["add"]

    xs, rs = jaxpr.invars[states : states + gates], jaxpr.invars[states + gates :]
    return tuple(k for k in range(gates) if not summed(xs[k], rs[k]))


def _uses(jaxpr, var, path=()):
    """Of each use of a variable: the calls it is inside of, the equation, and its name.

    A call whose derivative has a rule is a use itself: the rule may tell x from r.
    """
    jaxpr, _ = opened(jaxpr)
    for eqn in jaxpr.eqns:
        inner = called(eqn, rules=False)
        places = [i for i, v in enumerate(eqn.invars) if v is var]
        for i in places:
            at = (*path, id(eqn))
            if inner is None:
                yield *at, eqn.primitive.name
            else:
                yield from _uses(inner, opened(inner)[0].invars[i], at)
    yield from ((*path, "result") for v in jaxpr.outvars if v is var)
