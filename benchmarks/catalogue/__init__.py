"""Writes docs/cells.md, a table and the equations of every cell, from the code and docstrings."""

import argparse
import inspect
import math
import re
from pathlib import Path

import jax

import jaxrnn
from benchmarks.catalogue import latex
from benchmarks.shared import zoo

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cells.md"
# Numbers that no other size is, so that they can be told in a shape.
_INPUTS, _HIDDEN = 104, 88
_AS_MANY = (  # inputs as outputs
    "linoss",
    "lru",
    "mamba",
    "rg_lru",
    "rwkv4",
    "rwkv4_channels",
    "s5",
    "sru",
    "transformer_block",
)
_LARGE = 1024  # I and H where products are counted
_LESS = {"s5": 256}  # the eigenvectors of 2048 x 2048 numbers take half a minute
# Whose numbers the tests of weights and of peers (test_interop_*, test_peers_*) hold a cell to.
PEERS = {
    "conv1d": ("Keras", "Flax"),
    "conv_lstm": ("Keras", "Flax", "Haiku"),
    "elman": ("PyTorch", "Keras", "Flax", "Haiku", "ONNX"),
    "gated_delta_block": ("transformers",),
    "grouped_attention": ("transformers",),
    "gru": ("PyTorch", "Keras", "Flax", "Haiku", "Equinox", "ONNX"),
    "lstm": ("PyTorch", "Keras", "Flax", "Haiku", "Equinox", "ONNX"),
    "mamba": ("transformers",),
    "mamba2_block": ("transformers",),
    "mamba_block": ("transformers",),
    "mlstm_block": ("transformers",),
    "rg_lru_block": ("transformers",),
    "rwkv4": ("transformers",),
    "rwkv4_channels": ("transformers",),
    "ugrnn": ("Flax",),
}
HEAD = """\
# The cells

Written by `python -m benchmarks catalogue` from the code and its docstrings.

*CPU*, *TPU* and *GPU* name the implementation that runs a cell there: a kernel (`cpu`, `tpu`,
`gpu`) or code arranged for XLA (`xla`). A dash means neither: XLA compiles the cell's own code.
*Matmuls* counts the multiply-adds of a step with weights, in H² at I = H; a convolution over
places is shown for 8 of them. Every cell is checked against its paper's equations in NumPy at
float64, forward and gradients, `attention` and `grouped_attention` forward alone;
`transformer_block` is made of cells that are. *Also checked against* names other libraries.

| cell | paper | CPU | TPU | GPU | matmuls | also checked against |
| --- | --- | --- | --- | --- | --- | --- |
"""
EQUATIONS = """
## Equations

A step computes these in order, from its input x and its state: a name on the left replaces the
value that it had before. ⊙ multiplies elements. Shapes have I inputs and H units, and D is the
size of a head. A state is given for one row of the batch. The [reference](reference/cells.md) says
which gates a parameter holds, and in which order.
"""


def main(argv=None):
    """Runs the job; its exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks catalogue", description="Writes docs/cells.md."
    ).parse_args(argv)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


def page():
    rows, sections = zip(*map(_entry, zoo.names()))
    return "".join((HEAD, *rows, EQUATIONS, *sections))


def _entry(name):
    """A row of the table, and a section of the equations."""
    cell = zoo.cell(name, _HIDDEN)
    key = jax.random.key(0)
    inputs = _HIDDEN if name in _AS_MANY else _INPUTS
    params = jax.eval_shape(lambda: cell.init(key, zoo.in_size(name, inputs)))
    state = jax.eval_shape(lambda p: cell.initial_state(p, ()), params)
    file = Path(inspect.getsourcefile(getattr(jaxrnn, name).build)).relative_to(ROOT)
    summary, paper, equations = said(name)
    row = (
        f"[`{name}`](#{name})",
        _linked(paper),
        *_runs(cell, params, zoo.inputs(name, (64, 16, inputs))),
        f"{_products(name):.3g}",
        _listed(PEERS.get(name, ())),
    )
    parameters = _listed(_parameters(params))
    shapes = [_shape(leaf) for leaf in jax.tree.leaves(state)]
    names = cell.states if len(cell.states) == len(shapes) else ()
    states = ", ".join([f"`{n}` {s}" for n, s in zip(names, shapes)] or shapes)
    section = f"""
### {name}

{_linked(summary)} [Source](../{file}).

```math
{latex.block(equations)}
```

Parameters: {parameters}. State: {states}.
"""
    return f"| {' | '.join(row)} |\n", section


def said(name):
    """A docstring's first paragraph, the paper in it, and the lines of its equations."""
    first, *rest = inspect.getdoc(getattr(jaxrnn, name)).split("\n\n")
    summary = " ".join(first.split())
    found = re.search(r"\(([^()]*\d{4}[^()]*)\)", summary)
    blocks = [text for text in rest if text.startswith("    ")]
    lines = blocks[0].splitlines() if blocks else []
    lines = [re.sub(" {2,}", "  ", line.strip()).replace("`", "") for line in lines]
    return summary, found[1] if found else "", lines


def _linked(papers):
    """Papers on arXiv as links."""
    link = r"[\1](https://arxiv.org/abs/\2)"
    return re.sub(r"(\b[^;:(]*?\d{4}), arXiv:([\d.]+(?:v\d+)?)", link, papers)


def _parameters(params, prefix=""):
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _parameters(value, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}` {_shape(value)}"


def _shape(array):
    letters = {_INPUTS: "I", _HIDDEN: "H"}
    sizes = [letters.get(n) or _multiple(n) for n in array.shape]
    return f"[{', '.join(sizes)}]" + (" complex" if jax.numpy.iscomplexobj(array) else "")


def _multiple(n):
    for size, letter in ((_HIDDEN, "H"), (_INPUTS, "I")):
        if n and n % size == 0:
            wide = (n // size - 1) * 4 == size  # of all heads, with an offset
            return f"({letter} / 4 + 1) {letter}" if wide else f"{n // size} {letter}"
        if n * 4 == size or n * 8 == size:  # of a head, and at a place
            return f"{letter} / {size // n}"
        if (n - 1) * 4 == size:  # of a head, and its sum of keys
            return f"{letter} / 4 + 1"
    return str(n)


def _runs(cell, params, xs):
    """What runs on a CPU, a TPU and a GPU."""
    for platform in ("cpu", "tpu", "gpu"):
        choices = jaxrnn.explain(cell, params, xs, platform=platform).choices
        yield _listed(f"`{c.runs}`" for c in choices if c.runs != "reference") or "-"


def _products(name):
    """Multiply-adds of a step of one row, in H^2."""
    size = _LESS.get(name, _LARGE)
    cell = zoo.cell(name, size)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), zoo.in_size(name, size)))
    state = jax.eval_shape(lambda p: cell.initial_state(p, ()), params)
    step = jax.make_jaxpr(cell.step)(params, state, zoo.inputs(name, (size,)))
    return _counted(step.jaxpr) / size**2


def _counted(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = [eqn.invars[0].aval.shape[axis] for axis in contracted]
            total += eqn.outvars[0].aval.size * math.prod(terms)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
            total += eqn.outvars[0].aval.size * kernel.size // kernel.shape[out]
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += eqn.params.get("length", 1) * _counted(inner)
    return total


def _listed(texts):
    return ", ".join(dict.fromkeys(texts))
