"""An elementwise function as a short program over registers, for a kernel to interpret.

The function is traced, and its jaxpr simplified: common parts once, products and sums joined,
registers used again. What the programs are made of is in ``native/operations.h``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Unknown(Exception):
    """The function has an operation that programs have not; its name is the message."""


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
    jaxpr = jax.make_jaxpr(lambda *flat: jax.tree.leaves(function(*flat)))(*avals)
    graph = _Graph(operations)
    inputs = [graph.node("input", i) for i in range(len(avals))]
    outputs = [graph.owned(node) for node in graph.inline(jaxpr.jaxpr, jaxpr.consts, inputs)]
    outputs = graph.fused(outputs)
    return graph.allocated(outputs, len(avals))


class _Graph:
    """Nodes are numbers; each is an operation and its arguments, and none is there twice."""

    def __init__(self, operations):
        self.numbers = {name: number for number, name in enumerate(operations)}
        self.nodes, self.known = [], {}

    def node(self, *key):
        if key not in self.known:
            self.known[key] = len(self.nodes)
            self.nodes.append(key)
        return self.known[key]

    def constant(self, value):
        return self.node("constant", float(value))

    def value(self, node):
        """The number a node is, None if it is not constant."""
        operation, *args = self.nodes[node]
        return args[0] if operation == "constant" else None

    def make(self, name, *args):
        if name not in self.numbers:
            raise Unknown(name)
        values = [self.value(a) for a in args]
        if name in _FOLDED and None not in values:
            return self.constant(_FOLDED[name](*values))
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

    def inline(self, jaxpr, consts, args):
        """The nodes of a jaxpr's results."""
        env = dict(zip(jaxpr.invars, args, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.array(const)

        def read(atom):
            return self.array(atom.val) if hasattr(atom, "val") else env[atom]

        for eqn in jaxpr.eqns:
            out = self.equation(eqn, [read(a) for a in eqn.invars])
            env |= zip(eqn.outvars, out, strict=True)
        return [read(a) for a in jaxpr.outvars]

    def array(self, const):
        try:
            values = np.unique(np.asarray(const, float))
        except Exception:  # a tracer, or a type without numbers
            values = ()
        if len(values) != 1:
            raise Unknown("an array that differs between units, but is no unit weight")
        return self.constant(values[0])

    def equation(self, eqn, args):
        name = eqn.primitive.name
        inner = [v for v in eqn.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
        if inner:
            sub = inner[0]
            called = getattr(getattr(sub, "debug_info", None), "func_name", None)
            if called == "exp_neg_sq":  # erf's derivative, since JAX 0.12
                square = self.make("mul", *args, *args)
                return [self.make("exp", self.make("neg", square))]
            return self.inline(getattr(sub, "jaxpr", sub), getattr(sub, "consts", ()), args)
        dtype = eqn.outvars[0].aval.dtype
        truth = dtype.kind == "b"
        varying = [v for v, a in zip(eqn.invars, args, strict=True) if self.value(a) is None]
        others = {v.aval.dtype for v in varying if v.aval.dtype.kind != "b"}
        if not truth and not (jnp.issubdtype(dtype, jnp.floating) and others <= {dtype}):
            raise Unknown(f"{name} giving {dtype}")
        if name in _SAME:
            if truth and others:
                return [self.make("ne", args[0], self.constant(0))]
            return args[:1]
        if name in _REWRITTEN:
            return [_REWRITTEN[name](self, eqn, *args)]
        return [self.make(_RENAMED.get(name, name), *args)]

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
        seen, stack = set(), list(outputs)
        for node in outputs:
            uses[node] += 1
        while stack:
            node = stack.pop()
            if node in seen or self.nodes[node][0] in _LEAVES:
                continue
            seen.add(node)
            for a in self.nodes[node][1:]:
                uses[a] += 1
                stack.append(a)

        def product(node):
            return self.nodes[node][0] == "mul" and uses[node] == 1

        new = {}

        def rebuilt(node):
            if node not in new:
                new[node] = build(node)
            return new[node]

        def build(node):
            name, *args = self.nodes[node]
            if name in _LEAVES:
                return node
            if name == "add" and product(args[0]):
                args, name = (*self.nodes[args[0]][1:], args[1]), "fma"
            elif name == "add" and product(args[1]):
                args, name = (*self.nodes[args[1]][1:], args[0]), "fma"
            elif name == "sub" and product(args[1]):
                args, name = (*self.nodes[args[1]][1:], args[0]), "fnma"
            elif name == "sub" and product(args[0]):
                args, name = (*self.nodes[args[0]][1:], args[1]), "fms"
            return self.node(name, *map(rebuilt, args))

        return [rebuilt(node) for node in outputs]

    def allocated(self, outputs, inputs):
        """Instructions in an order that needs few registers, and the registers."""
        order, placed = [], set()

        def visit(node):
            if node in placed:
                return
            placed.add(node)
            if self.nodes[node][0] not in _LEAVES:
                for a in self.nodes[node][1:]:
                    visit(a)
            order.append(node)

        for node in outputs:
            visit(node)
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
            tuple(self.value(n) for n in constants),
            tuple(register[n] for n in outputs),
            inputs,
            count,
        )


_LEAVES = ("input", "constant")
_COMMUTING = ("add", "mul")
_SAME = {
    "copy", "copy_p", "stop_gradient", "convert_element_type", "broadcast_in_dim", "reshape",
    "squeeze", "expand_dims", "optimization_barrier",
}  # fmt: skip
_RENAMED = {"add_any": "add"}
_FOLDED: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
}


def _clamped(graph, eqn, low, x, high):
    return graph.make("min", graph.make("max", x, low), high)


_REWRITTEN = {
    "select_n": lambda graph, eqn, which, no, yes: graph.make("select", which, yes, no),
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
