"""The body of a loop as parts, which a kernel runs one after the other on some rows.

A part is a product with a weight, a sum over units of each row, or an elementwise program. The
body is followed through its jaxpr, traced on two rows. What an array holds is written down element
by element: the node that makes it, and the place there. What only moves elements is then NumPy's,
and an operation on arrays becomes one on each run of elements that lie side by side.

A value that another part needs goes through a buffer. Parts are run by level: how many products
and sums must come before.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.core
import numpy as np
from jax.extend.core import Primitive

from jaxrnn._src.ops.recurrence import elements
from jaxrnn._src.ops.recurrence.elements import Unknown, called, opened
from jaxrnn._src.ops.recurrence.program import Graph, Program

ROWS = 2  # that a body is traced on
PRODUCT, SUM, PROGRAM = range(3)  # kinds of parts
BUFFER, INPUT, OUTPUT = range(3)  # kinds of places

product = Primitive("loop_product")  # (a, name, transposed, width): what `dot` of a body gives


@product.def_abstract_eval
def _shape(a, *, name, transposed, width):
    del name, transposed
    return jax.core.ShapedArray((*a.shape[:-1], width), a.dtype)


class Parts(NamedTuple):
    """What the kernel is told: see ``native/cpu/loop_task.h``.

    Attributes:
      widths: of the buffers. Each has an element for each unit of every row.
      parts: the parts, as numbers.
      programs: those that parts name.
      carry: ``(array, offset, buffer, new)`` of each stretch of what is carried: the buffer that
        it is in, and the one with its new value.
      made: the widths of the arrays that a step writes.
      outputs: of each output of the body ``(kind, which)``: an array that a step writes, or an
        input that it equals.
      weights: names of the products' weights, in the order of their numbers.
    """

    widths: tuple[int, ...]
    parts: tuple[int, ...]
    programs: tuple[Program, ...]
    carry: tuple[tuple[int, int, int, int], ...]
    made: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    weights: tuple[str, ...]


def compiled(closed, carried: int, steps: Sequence[bool], operations) -> Parts:
    """A body ``(carry, inputs) -> (carry, outputs)`` of flat arrays as parts.

    Args:
      closed: its jaxpr, traced on ``ROWS`` rows; ``product`` is what its products are.
      carried: how many arrays are carried.
      steps: of each input, whether it has a value for each step.
      operations: the names of what a program can be made of, in the order of their numbers.

    Raises:
      Unknown: it cannot be.
    """
    avals, cuts = closed.in_avals, {}
    if not carried:
        raise Unknown("a state without arrays")
    if any(0 in aval.shape for aval in avals):
        raise Unknown("an array without units")
    while True:
        followed = _Followed(operations, avals[0].dtype, cuts)
        try:
            given = [followed.given("carry", i, aval) for i, aval in enumerate(avals[:carried])]
            given += [followed.given("input", i, aval) for i, aval in enumerate(avals[carried:])]
            out = followed.jaxpr(closed, given)
            return _Plan(followed).parts(given, out, carried, steps)
        except _Cut:
            pass  # again, with the arrays in more stretches


class _Cut(Exception):
    """Where a run of elements begins or ends, an array has to be cut."""


class _Leaf(NamedTuple):
    """A stretch of an array that no program makes."""

    kind: str  # "carry", "input", "product" or "sum"
    index: int
    offset: int
    width: int


class _Product(NamedTuple):
    name: str
    transposed: bool
    factor: tuple[tuple[int, int], ...]  # runs
    width: int


# An element of an array: its node, and its place among what the node makes. Constants are the same
# in all rows; other elements say which row they are of.
_NODE, _ROW, _CONSTANT = 24, 1 << 56, 1 << 57
_MOST = 64  # runs of an array

_MOVES = {
    name: elements.MOVES[name]
    for name in ("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "concatenate")
    + ("stack", "unstack", "split", "pad", "rev")
}


class _Followed:
    """The nodes of a body; its arrays are NumPy's, of elements."""

    def __init__(self, operations, dtype, cuts):
        self.graph, self.cuts = Graph(operations, dtype), cuts
        self.leaves, self.width = [], {}  # the latter of nodes
        self.products, self.sums = {}, {}  # the elements that each gives

    def jaxpr(self, jaxpr, args):
        jaxpr, consts = opened(jaxpr)
        env = dict(zip(jaxpr.invars, args, strict=True))
        env |= zip(jaxpr.constvars, map(self.constants, consts), strict=True)

        def read(atom):
            return self.constants(atom.val) if hasattr(atom, "val") else env[atom]

        for eqn in jaxpr.eqns:
            out = self.equation(eqn, [read(a) for a in eqn.invars])
            env |= zip(eqn.outvars, out, strict=True)
        return [read(a) for a in jaxpr.outvars]

    def equation(self, eqn, args):
        name, inner = eqn.primitive.name, called(eqn)
        if inner is not None:
            return self.jaxpr(inner, args)
        if name in elements.SAME:
            return args
        if name in _MOVES:
            out = _MOVES[name](eqn, *args)
            out = [a.astype(np.int64) for a in (out if isinstance(out, list) else [out])]
            for a in out:
                _row(a, name)
            return out
        if name == product.name:
            return [self.product(eqn.params, *args)]
        if name == "reduce_sum":
            return [self.summed(eqn.params["axes"], *args)]
        if name not in elements.ELEMENTWISE or len(eqn.outvars) > 1:
            raise Unknown(name)
        return [self.elementwise(name, eqn, args)]

    def given(self, kind, index, aval):
        """The elements of an array [ROWS, ...] that the body is given."""
        row = self.leaf(kind, index, int(np.prod(aval.shape[1:], dtype=int)))
        return _rows(row.reshape(aval.shape[1:]))

    def leaf(self, kind, index, width):
        """The elements of a row, cut into stretches."""
        ends = [0, *sorted(self.cuts.get((kind, index), ())), width]
        row = []
        for begin, end in itertools.pairwise(ends):
            node = self.graph.node("input", len(self.leaves))
            self.leaves.append(_Leaf(kind, index, begin, end - begin))
            self.width[node] = end - begin
            row.append((node << _NODE) + np.arange(end - begin))
        return np.concatenate(row)

    def constants(self, value):
        try:
            value = np.asarray(value)
            bits, inverse = np.unique(value.astype(float).view(np.int64), return_inverse=True)
        except Exception:  # a tracer, or a type without numbers
            raise Unknown("a closed-over value that is not known yet") from None
        nodes = [self.constant(v) for v in bits.view(float)]
        return np.array(nodes, np.int64)[inverse.reshape(-1)].reshape(value.shape)

    def constant(self, value):
        node = self.graph.constant(value)
        self.width[node] = 0
        return _CONSTANT + (node << _NODE)

    def value(self, array):
        """Of an array of constants."""
        at = lambda element: self.graph.value((element & ~_CONSTANT) >> _NODE)
        return np.array([at(int(e)) for e in array.ravel()]).reshape(array.shape)

    def elementwise(self, name, eqn, args):
        aval = eqn.outvars[0].aval
        if all((a >= _CONSTANT).all() for a in args):
            values = [self.value(a).astype(v.aval.dtype) for a, v in zip(args, eqn.invars)]
            found = elements.computed(name, eqn, values)
            if found is None:
                raise Unknown(f"{name} of constants")
            return self.constants(np.broadcast_to(found, aval.shape))
        flat = [_row(np.broadcast_to(a, aval.shape), name).ravel() for a in args]
        out = np.empty(flat[0].shape, np.int64)
        for begin, end in _runs(*flat):
            nodes = [self.node(a[begin:end]) for a in flat]
            node = self.graph.operate(name, eqn, nodes)
            out[begin:end] = self.run(node, end - begin)
        return _rows(out.reshape(aval.shape[1:]))

    def run(self, node, size):
        """So many elements of a node: all of it, or one again and again."""
        if self.graph.value(node) is not None:
            return self.constant(self.graph.value(node))
        if not self.wide(node):
            raise Unknown("a number made of constants")
        return (node << _NODE) + (np.arange(size) if self.wide(node) == size else 0)

    def wide(self, node):
        """How many elements a node has in a row."""
        if node not in self.width:
            self.width[node] = 0
            self.width[node] = max(map(self.wide, self.graph.arguments(node)), default=0)
        return self.width[node]

    def node(self, run):
        """What a run is all of: a node of as many elements, or of one, or a constant."""
        first, size = int(run[0]), len(run)
        if first >= _CONSTANT:
            return (first & ~_CONSTANT) >> _NODE
        if size > 1 and first == run[1]:
            size = 1
        node, begin = first >> _NODE, first & ((1 << _NODE) - 1)
        if begin or size != self.wide(node):
            known = sum(map(len, self.cuts.values()))
            self.cut(node, begin)
            self.cut(node, begin + size)
            raise _Cut if sum(map(len, self.cuts.values())) > known else Unknown("a cut")
        return node

    def cut(self, node, at):
        name, *args = self.graph.nodes[node]
        if name == "input":
            leaf = self.leaves[args[0]]
            if 0 < at < leaf.width:
                self.cuts.setdefault((leaf.kind, leaf.index), set()).add(leaf.offset + at)
        elif name != "constant":
            for a in args:
                if self.wide(a) == self.wide(node):
                    self.cut(a, at)

    def pieces(self, row):
        """The runs of a row: ``(node, size)`` of each."""
        return tuple((self.node(row[begin:end]), end - begin) for begin, end in _runs(row))

    def product(self, params, a):
        if a.ndim != 2:
            raise Unknown("a product of more than one axis of units")
        factor = self.pieces(_row(a, "a product"))
        one = _Product(params["name"], params["transposed"], factor, params["width"])
        return _rows(self.result("product", self.products, one, one.width))

    def result(self, kind, known, one, width):
        """The elements that a product or a sum gives; it is taken once."""
        if one not in known:
            known[one] = self.leaf(kind, len(known), width)
        return known[one]

    def summed(self, axes, a):
        if 0 in axes:
            raise Unknown("a sum over rows")
        row = _row(a, "a sum")
        kept = [axis for axis in range(row.ndim) if axis + 1 not in axes]
        shape = [row.shape[axis] for axis in kept]
        parts = row.transpose(*kept, *(axis - 1 for axis in axes))
        parts = parts.reshape(int(np.prod(shape, dtype=int)), -1)
        if len(parts) > _MOST or not parts.size:
            raise Unknown("sums over too many runs, or over nothing")
        return _rows(np.array([self.sum(part) for part in parts], np.int64).reshape(shape))

    def sum(self, part):
        if len(part) == 1:
            return part[0]
        return self.result("sum", self.sums, self.pieces(part), 1)[0]


def _rows(row):
    """The elements of all rows, of those of the first."""
    return np.stack([row + r * _ROW * (row < _CONSTANT) for r in range(ROWS)])


def _row(array, name):
    """The first row's, if each row's elements are its own."""
    if (array >= _CONSTANT).all():
        return array[0] if array.ndim else array
    if array.ndim == 0 or array.shape[0] != ROWS or (_rows(array[0]) != array).any():
        raise Unknown(f"{name}: a row that sees another")
    return array[0]


def _runs(*rows):
    """``(begin, end)`` of the elements that lie side by side, or are the same, in all rows."""
    steps = np.diff(np.stack(rows))
    count, begin, runs = len(rows[0]), 0, 0
    while begin < count:
        end = begin + 1
        if end < count and ((steps[:, begin] == 0) | (steps[:, begin] == 1)).all():
            other = (steps[:, begin:] != steps[:, begin : begin + 1]).any(0)
            end = begin + (int(other.argmax()) if other.any() else count - 1 - begin) + 1
        yield begin, end
        begin, runs = end, runs + 1
        if runs > _MOST:
            raise Unknown("elements in another order")


class _Plan:
    """Which part makes each value, and which values go through buffers."""

    def __init__(self, followed):
        self.followed, self.graph = followed, followed.graph
        self.levels = {}  # of nodes
        self.widths, self.buffers, self.leaves = [], {}, {}  # buffers: of values, and of leaves
        self.wanted = {}  # by level and width: the places of each value that a program makes
        self.taken = {}  # by product or sum: its text up to its results
        self.ones = {"product": list(followed.products), "sum": list(followed.sums)}
        self.weights = sorted({one.name for one in followed.products})

    def parts(self, given, out, carried, steps):
        """``Parts`` of what the body was given and gave."""
        carry = [
            stretch
            for i, arrays in enumerate(zip(given[:carried], out[:carried], strict=True))
            for stretch in self.carry(i, *(_row(a, "a state").ravel() for a in arrays))
        ]
        made, outputs = [], []
        inputs = enumerate(zip(given[carried:], steps, strict=True))
        known = {a.tobytes(): (INPUT, i) for i, (a, timed) in inputs if timed}
        for array in out[carried:]:
            key = array.tobytes()
            if key not in known:
                known[key] = OUTPUT, len(made)
                made.append(self.output(len(made), _row(array, "an output").ravel()))
            outputs.append(known[key])
        texts, programs = [], []
        while self.wanted:  # the last first: it may want more of those before it
            level, size = key = max(self.wanted)
            values = self.wanted.pop(key)
            texts.append((key, self.program(level, size, values, programs)))
        for (kind, index), text in self.taken.items():
            results = self.results(kind, index)
            count = [len(results) // 2] if kind == "product" else []
            results = results if kind == "product" else results[:1]
            texts.append(((self.rank(kind, index), 0), [*text, *count, *results]))
        text = [n for _, part in sorted(texts) for n in part]
        return Parts(
            widths=tuple(self.widths),
            parts=tuple(text),
            programs=tuple(programs),
            carry=tuple(carry),
            made=tuple(made),
            outputs=tuple(outputs),
            weights=tuple(self.weights),
        )

    def carry(self, array, old, new):
        for begin, end in list(_runs(old, new)):
            leaf, node = (self.followed.node(row[begin:end]) for row in (old, new))
            size = end - begin
            yield array, begin, self.buffer(leaf, size), self.buffer(node, size, leaf)

    def output(self, index, row):
        """Wants the stretches of an array that a step writes; its width."""
        offset = 0
        for node, size in self.followed.pieces(row):
            self.want(node, size).append((OUTPUT, index, offset))
            offset += size
        return offset

    def leaf(self, node):
        """The number of a leaf, or None."""
        name, *args = self.graph.nodes[node]
        return args[0] if name == "input" else None

    def level(self, node):
        """How many products and sums come before it."""
        if node not in self.levels:
            leaf = self.leaf(node)
            if leaf is None:
                level = max(map(self.level, self.graph.arguments(node)), default=0)
            else:
                level = self.rank(*self.followed.leaves[leaf][:2])
            self.levels[node] = level
        return self.levels[node]

    def rank(self, kind, index):
        if kind not in ("product", "sum"):
            return 0
        return 1 + max(self.level(node) for node, _ in self.factor(kind, index))

    def factor(self, kind, index):
        """What a product or a sum takes."""
        one = self.ones[kind][index]
        return one.factor if kind == "product" else one

    def want(self, node, size):
        """The places of so many elements of a node, for a program to fill."""
        return self.wanted.setdefault((self.level(node), size), {}).setdefault(node, [])

    def buffer(self, node, size, carried=None):
        """Where so many elements of a node are.

        What is carried takes its new value, ``node``, from a buffer of its own: another's may have
        its own new value by then.
        """
        leaf = self.leaf(node)
        if leaf is not None and size == self.followed.leaves[leaf].width:
            kind = self.followed.leaves[leaf].kind
            if kind in ("product", "sum") or kind == "carry" and carried in (None, node):
                return self.of_leaf(leaf)
        if (node, size) not in self.buffers:
            self.buffers[node, size] = self.new(size)
            self.want(node, size).append((BUFFER, self.buffers[node, size], 0))
        return self.buffers[node, size]

    def new(self, size):
        self.widths.append(size)
        return len(self.widths) - 1

    def of_leaf(self, leaf):
        if leaf not in self.leaves:
            one = self.followed.leaves[leaf]
            self.leaves[leaf] = self.new(one.width)
            if one.kind in ("product", "sum"):
                self.take(one.kind, one.index)
        return self.leaves[leaf]

    def take(self, kind, index):
        if (kind, index) in self.taken:
            return
        self.taken[kind, index] = text = []
        factor = self.factor(kind, index)
        if kind == "product":
            one = self.ones[kind][index]
            text += PRODUCT, self.weights.index(one.name), int(one.transposed)
        else:
            text.append(SUM)
        text.append(len(factor))
        text += [n for node, size in factor for n in (self.buffer(node, size), size)]

    def results(self, kind, index):
        """``(buffer, width)`` of each stretch of what a product or a sum gives."""
        leaves = enumerate(self.followed.leaves)
        mine = [(i, one) for i, one in leaves if one[:2] == (kind, index)]
        return [n for i, one in mine for n in (self.of_leaf(i), one.width)]

    def program(self, level, size, values, programs):
        """The text of a program that makes ``values``, their places by node."""

        def inside(node):
            makes = self.graph.arguments(node) and self.level(node) == level
            return makes and self.followed.wide(node) == size

        found, stack = set(), list(values)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += self.graph.arguments(node) if inside(node) else ()
        graph = Graph(tuple(self.graph.numbers), self.graph.dtype)
        new, sources = {}, []
        for node in sorted(found):
            if self.graph.value(node) is not None:
                new[node] = graph.constant(self.graph.value(node))
            elif inside(node):
                name, *args = self.graph.nodes[node]
                new[node] = graph.node(name, *(new[a] for a in args))
            else:
                new[node] = graph.node("input", len(sources))
                sources.append(self.source(node, size))
        # In a register of its own, a result is made where it is wanted.
        moved = {node for node in values if not inside(node)}
        own = lambda node: any(kind == BUFFER for kind, *_ in values[node]) and node in moved
        outputs = [graph.node("copy", new[n]) if own(n) else new[n] for n in values]
        program = graph.allocated(graph.fused(outputs), len(sources))
        programs.append(program)
        places = [
            (register, *place)
            for register, node in zip(program.outputs, values, strict=True)
            for place in values[node]
        ]
        flat = lambda rows: [len(rows), *(n for row in rows for n in row)]
        return [PROGRAM, size, len(programs) - 1, *flat(sources), *flat(places)]

    def source(self, node, size):
        """``(kind, which, offset, whether one element is spread over all)``."""
        width, leaf = self.followed.wide(node), self.leaf(node)
        spread = int(width != size)
        if leaf is not None and self.followed.leaves[leaf].kind == "input":
            one = self.followed.leaves[leaf]
            return INPUT, one.index, one.offset, spread
        return BUFFER, self.buffer(node, width), 0, spread
