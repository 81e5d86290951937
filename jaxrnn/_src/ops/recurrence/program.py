"""An elementwise function as a short program over registers, for a kernel to interpret.

The function is traced, and its jaxpr simplified: common parts once, products and sums joined,
registers used again. What the programs are made of is in ``native/cpu/operations.h``.
"""

import math
from typing import NamedTuple, cast

import jax
import numpy as np

from jaxrnn._src.ops.recurrence.elements import Nodes, Unknown, follow


class Program(NamedTuple):
    """Registers hold the inputs, then the constants, then what instructions give.

    Attributes:
      instructions: for each, the operation's number, the register of its result, and three
        registers of arguments; those not needed repeat the first.
      constants: their values.
      outputs: the register of each result. None is an input's.
      inputs: how many.
      registers: how many, of all three kinds.
    """

    instructions: tuple[tuple[int, int, int, int, int], ...]
    constants: tuple[float, ...]
    outputs: tuple[int, ...]
    inputs: int
    registers: int


def compiled(function, avals, operations) -> Program:
    """``function`` of flat arrays, all of one shape, as a program.

    Args:
      function: elementwise; gives a tree of arrays.
      avals: the ``jax.ShapeDtypeStruct`` of each argument.
      operations: the names of what a program can be made of, in the order of their numbers.

    Raises:
      Unknown: it cannot be.
    """
    closed = jax.make_jaxpr(lambda *flat: jax.tree.leaves(function(*flat)))(*avals)
    graph = Graph(operations, avals[0].dtype)
    outputs = [graph.owned(node) for node in follow(closed, graph)]
    outputs = graph.fused(outputs)
    return graph.allocated(outputs, len(avals))


class Graph(Nodes):
    """The operations of a function whose numbers are all of one type, or true or false."""

    def __init__(self, operations, dtype):
        super().__init__()
        self.numbers = {name: number for number, name in enumerate(operations)}
        self.dtype = dtype

    def closed_over(self, const, aval):
        raise Unknown("a closed-over value that is not known yet")

    def make(self, name, *args):
        if name not in self.numbers:
            raise Unknown(name)
        values = [self.value(a) for a in args]
        if name == "add" and 0.0 in values:
            return args[1 - values.index(0.0)]
        if name == "mul" and 1.0 in values:
            return args[1 - values.index(1.0)]
        if name == "sub" and values[1] == 0.0:
            return args[0]
        if name in _COMMUTING:
            args = sorted(args)
        return self.node(name, *args)

    def owned(self, node):
        """A result must not be an input: it would be overwritten while others need it."""
        return self.node("copy", node) if self.nodes[node][0] == "input" else node

    def operate(self, name, eqn, args):
        dtype = eqn.outvars[0].aval.dtype
        given = [v.aval.dtype for v, a in zip(eqn.invars, args) if self.value(a) is None]
        for one in (dtype, *given):
            if one not in (self.dtype, _TRUTH):
                raise Unknown(f"{name} of {one}")
        if name == "convert_element_type":
            if dtype == _TRUTH and given != [dtype]:
                return self.make("ne", args[0], self.constant(0))
            return args[0]
        if name in _REWRITTEN:
            return _REWRITTEN[name](self, eqn, *args)
        return self.make(_RENAMED.get(name, name), *args)

    def arguments(self, node):
        name, *args = self.nodes[node]
        return () if name in _LEAVES else args

    def power(self, base, exponent):
        """By squaring; a negative exponent divides."""
        if exponent < 0:
            return self.make("div", self.constant(1), self.power(base, -exponent))
        if exponent == 0:
            return self.constant(1)
        if exponent == 1:
            return base
        half = self.power(base, exponent // 2)
        whole = self.make("mul", half, half)
        return self.make("mul", whole, base) if exponent % 2 else whole

    def fused(self, outputs):
        """A product that only one sum needs becomes part of the sum."""
        uses = [0] * len(self.nodes)
        for node in outputs:
            uses[node] += 1
        for node in reversed(range(len(uses))):  # what is made of a node comes after it
            if uses[node]:
                for a in self.arguments(node):
                    uses[a] += 1

        def product(node):
            return self.nodes[node][0] == "mul" and uses[node] == 1

        new = {}
        for node in range(len(uses)):
            name, *args = self.nodes[node]
            if not uses[node] or name in _LEAVES:
                new[node] = node
                continue
            if name == "add" and product(args[0]):
                args, name = (*self.nodes[args[0]][1:], args[1]), "fma"
            elif name == "add" and product(args[1]):
                args, name = (*self.nodes[args[1]][1:], args[0]), "fma"
            elif name == "sub" and product(args[1]):
                args, name = (*self.nodes[args[1]][1:], args[0]), "fnma"
            elif name == "sub" and product(args[0]):
                args, name = (*self.nodes[args[0]][1:], args[1]), "fms"
            new[node] = self.node(name, *(new[a] for a in args))
        return [new[node] for node in outputs]

    def allocated(self, outputs, inputs):
        """Instructions in an order that needs few registers, and the registers."""
        order, placed, stack = [], set(), list(reversed(outputs))
        while stack:
            node = stack[-1]
            first = next((a for a in self.arguments(node) if a not in placed), None)
            if node not in placed and first is not None:
                stack.append(first)
                continue
            stack.pop()
            if node not in placed:
                placed.add(node)
                order.append(node)
        constants = [n for n in order if self.nodes[n][0] == "constant"]
        steps = [n for n in order if self.nodes[n][0] not in _LEAVES]
        register = {n: self.nodes[n][1] for n in order if self.nodes[n][0] == "input"}
        register |= {n: inputs + i for i, n in enumerate(constants)}
        last = {a: i for i, n in enumerate(steps) for a in self.nodes[n][1:]}
        last |= dict.fromkeys(outputs, len(steps))
        count, free, instructions = inputs + len(constants), [], []
        for i, node in enumerate(steps):
            name, *args = self.nodes[node]
            used = [register[a] for a in args]
            for a in set(args):
                if last[a] == i and self.nodes[a][0] not in _LEAVES:
                    free.append(register[a])
            if not free:
                free.append(count)
                count += 1
            register[node] = free.pop()
            used += [used[0]] * (3 - len(used))
            instructions.append((self.numbers[name], register[node], *used))
        return Program(
            tuple(instructions),
            tuple(cast(float, self.value(n)) for n in constants),
            tuple(register[n] for n in outputs),
            inputs,
            count,
        )


_LEAVES = ("input", "constant")
_COMMUTING = ("add", "mul")
_TRUTH = np.dtype(bool)
_RENAMED = {"add_any": "add"}


def _selected(graph, eqn, which, no, yes=None):
    return no if yes is None else graph.make("select", which, yes, no)


def _polynomial(graph, eqn, x, *coefficients):
    """Since JAX 0.12; the constant one comes first."""
    found = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        found = graph.make("add", graph.make("mul", found, x), coefficient)
    return found


def _clamped(graph, eqn, low, x, high):
    return graph.make("min", graph.make("max", x, low), high)


_REWRITTEN = {
    "select_n": _selected,
    "polynomial": _polynomial,
    "exp_neg_sq": lambda graph, eqn, x: graph.make(
        "exp", graph.make("neg", graph.make("mul", x, x))
    ),
    "integer_pow": lambda graph, eqn, x: graph.power(x, eqn.params["y"]),
    "square": lambda graph, eqn, x: graph.make("mul", x, x),
    "one_minus_square": lambda graph, eqn, x: graph.make(
        "sub", graph.constant(1), graph.make("mul", x, x)
    ),  # in the derivative of tanh since JAX 0.12
    "log2": lambda graph, eqn, x: graph.make(
        "mul", graph.make("log", x), graph.constant(1 / math.log(2))
    ),
    "rsqrt": lambda graph, eqn, x: graph.make("div", graph.constant(1), graph.make("sqrt", x)),
    "clamp": _clamped,
    "and": lambda graph, eqn, a, b: graph.make("mul", a, b),
    "or": lambda graph, eqn, a, b: graph.make("max", a, b),
    "xor": lambda graph, eqn, a, b: graph.make("ne", a, b),
    "not": lambda graph, eqn, a: graph.make("sub", graph.constant(1), a),
    "is_finite": lambda graph, eqn, x: graph.make(
        "lt", graph.make("abs", x), graph.constant(math.inf)
    ),
}
