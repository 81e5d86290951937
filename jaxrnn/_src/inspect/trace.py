"""What every name in a cell's equations stands for, at every step."""

import dataclasses
import functools
import operator
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxrnn._src.core import wide_scan
from jaxrnn._src.core.cell import Cell, labelled, unroll
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.equations import code_of, watched
from jaxrnn._src.core.sequence import resets, select
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.core.typing import InputArray, Params, PRNGKey, State
from jaxrnn._src.wrappers.stack import bidirectional
from jaxrnn._src.wrappers.views import check_cell

OUTPUT = "y"


def trace(
    cell: Cell,
    params: Params,
    xs: InputArray,
    state: State | None = None,
    *,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    reverse: bool = False,
    key: PRNGKey | None = None,
) -> dict[str, Any]:
    """Every gate, what enters it, and every state, at every step, by its name in the equation.

    The names are those of the local variables of the function a cell is written as: the update of
    ``jaxrnn.gated``, the step of ``jaxrnn.cell``, or what is said in one of this library's own
    cells, which are named as in their docstrings. So it is with a cell of yours: give a value a
    name, and it is shown. A name that is bound more than once stands for the last of its values;
    a dict of arrays ``a`` with ``a["i"]`` is shown as ``a_i``.

    - A state is that after the step: under the name its new value has, or else its old one; else
      it is ``h``, if it is the first, or ``state_1`` and so on.
    - What an update of ``jaxrnn.gated`` unpacks as ``xi`` and ``ri``, and uses only as their sum,
      is shown as that sum, ``a_i``: what enters the gate i. If the parts have other uses, as those
      of a GRU's candidate, both are shown.
    - What depends on neither the input nor the state, as weights do, is left out, and so is what
      is no array of floating or complex numbers with the axes of the batch.

    It runs as a scan of ``cell.step``, whatever ``unroll`` would run. Nothing is done to cells
    that are not traced, and under ``jax.jit`` what of the result is not used is not computed.

    Args:
      cell, params, xs, state, lengths, mask, starts, reverse, key: see ``jaxrnn.unroll``.

    Returns:
      A dict of arrays [T, ...batch, ...], and ``"y"``, the outputs. Of a cell made of others it
      follows the parameters: where these have a cell's own under a name ("0" and "1" in a stack,
      "forward" and "backward"), the trace of that cell is a dict under this name; where the
      parameters are the cell's (``residual``, ``zoneout``, ``initialized``), so are the names,
      and states and ``"y"`` are those of the whole.

      At a step that is not real a state is held, and all else is zero.

    Raises:
      ValueError, TypeError: as ``jaxrnn.unroll``.

    >>> cell = jaxrnn.lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> found = jaxrnn.trace(cell, params, jnp.ones((5, 2, 3)))
    >>> sorted(found), found["f"].shape
    (['a_f', 'a_g', 'a_i', 'a_o', 'c', 'f', 'g', 'h', 'i', 'o', 'y'], (5, 2, 4))
    >>> deep = jaxrnn.stack(jaxrnn.elman(4), jaxrnn.project(2))
    >>> found = jaxrnn.trace(deep, deep.init(jax.random.key(0), 3), jnp.ones((5, 3)))
    >>> jax.tree.map(lambda a: a.shape, found)
    {'0': {'a_h': (5, 4), 'h': (5, 4), 'y': (5, 4)}, '1': {'y': (5, 2)}, 'y': (5, 2)}
    """
    check_cell("trace", cell)
    run = kept_by(cell, _run, "reverse", "implementation")
    # What checks a sequence's arguments checks them here too.
    _, found = unroll(
        dataclasses.replace(cell, unroll=run), params, xs, state,
        lengths=lengths, mask=mask, starts=starts, reverse=reverse, key=key,
    )  # fmt: skip
    return cast(dict[str, Any], found)  # in the place of ys


def _run(cell, params, state, xs, mask, starts, reverse, key, implementation):
    """What stands in place of the cell's unroll."""
    del implementation
    state, found = _whole(cell, params, state, xs, mask, starts, reverse, key)
    return state, _nested(found)


# What is found is a dict from a path, a tuple of names, to an array.


class _Step(NamedTuple):
    """A step, and what was found in it."""

    state: Any
    y: jax.Array
    found: dict  # of [...batch, ...]
    paths: tuple  # of each array of the state, None of one that is not shown


def _whole(cell, params, state, xs, mask, starts, reverse, key, initial=None):
    """The state after all steps, and what was found, [T, ...batch, ...] each."""
    cell = _written(cell)
    if _without_step(cell):
        return _by_parts(cell, params, state, xs, mask, starts, reverse, key)
    initial = cell.initial_state(params, xs.shape[1:-1]) if initial is None else initial
    state = initial if state is None else state
    given = varying((params, state, initial, xs, mask, resets(starts, mask, reverse)))
    params, state, initial, xs, mask, starts = given
    step = lambda state, x: _one(cell, params, state, x, key)
    shown = _dependent(lambda *args: step(*args).found, state, xs[:1].sum(0))

    def body(state, inputs):
        x, real, start = inputs
        if start is not None:
            state = select(start, initial, state)
        new, y, found, paths = step(state, x)
        found = {path: a for path, a in found.items() if path in shown} | {(OUTPUT,): y}
        new = select(real, new, state)
        held = {path: a for path, a in zip(paths, jax.tree.leaves(new)) if path in found}
        held.pop((OUTPUT,), None)  # a state of the same name: the output it is
        return new, select(real, found, 0) | held

    return wide_scan.scan(body, state, (xs, mask, starts), reverse=reverse)


def _by_parts(cell, params, state, xs, mask, starts, reverse, key):
    """``_whole`` of a cell that needs the whole sequence, by those it is made of."""
    found = {}

    def spied(name, child):
        @functools.wraps(child.unroll)  # it may be asked whether it takes `initial`
        def run(inner, state, xs, mask, starts, reverse, key, implementation, **initial):
            del implementation
            state, own = _whole(child, inner, state, xs, mask, starts, reverse, key, **initial)
            found.update(_under(_prefix(cell, params, name, inner, xs), own))
            return state, own[OUTPUT,]

        return labelled(dataclasses.replace(child, unroll=run), gated=child.gated)

    made = _remade(cell, spied)
    state, ys = made.unroll(params, state, xs, mask, starts, reverse, key, None)
    return state, found | {(OUTPUT,): ys}


def _one(cell, params, state, x, key):
    """A step of a cell, as ``_Step``."""
    cell, outer, found, within = _written(cell), x, {}, []

    def spied(name, child):
        def step(inner, state, x, key=None):
            state, y, own, paths = _one(child, inner, state, x, key)
            prefix = _prefix(cell, params, name, inner, outer)
            found.update(_under(prefix, own | {(OUTPUT,): y}))
            within[:] = [path and prefix + path for path in paths]
            return state, y

        return labelled(dataclasses.replace(child, step=step), gated=child.gated)

    children = _children(cell)
    with watched() as frames:
        new, y = _remade(cell, spied).step(params, state, x, key)
    own, before = {}, jax.tree.leaves(state)
    for frame in frames:
        own |= _names(frame, (cell, *children.values()))
    old = {id(a): name for name, a in own.items() if any(a is b for b in before)}
    known = {id(a) for a in (*before, x)}
    batch = x.shape[:-1]
    found |= {
        (name,): a for name, a in own.items() if id(a) not in known and _is_shown(a, batch)
    }  # fmt: skip
    paths, told = [], _told(cell, len(before))
    for k, (leaf, last) in enumerate(zip(jax.tree.leaves(new), before)):
        if not _is_shown(leaf, batch):
            paths.append(None)
            continue
        same = [path for path, a in found.items() if a is leaf]
        # An output may be a state of the cell it is of, but not of one around it.
        path = next((p for p in same if p != (OUTPUT,) or not children), None)
        if path is None and id(last) in old:
            path = (old[id(last)],)
        if path is None and len(children) == 1 and k < len(within):
            path = within[k]
        path = path or (told[k] if k < len(told) else f"state_{k}" if k else "h",)
        found[path] = leaf
        paths.append(path)
    shown = dict(found)
    found.clear()  # what was made again of spies may be kept somewhere, as a key
    return _Step(new, y, shown, tuple(paths))


def _names(frame, cells):
    """What a function's names stood for when it returned; what enters a gate, as a sum."""
    names = {}
    for name, value in frame.names.items():
        inner = value if isinstance(value, dict) else {}
        names |= {f"{name}_{key}": a for key, a in inner.items()} | {name: value}
    arrays = ((name, a) for name, a in names.items() if isinstance(a, jax.Array))
    names = {name: a for name, a in arrays if not name.startswith("_")}
    forms = [c.gated.form for c in cells if c.gated is not None]
    form = next((f for f in forms if code_of(f.update) is frame.code), None)
    if form is None:
        return names
    _, xs, rs = list(frame.given.values())[:3]
    rs = dict(zip(form.recurrent, rs))
    for k in form.summed:
        x = _name_of(xs[k], "x", names)
        r = _name_of(rs[k], "r", names) if k in rs else x
        if x and r and x[1:] == r[1:]:
            parts = [names.pop(name) for name in dict.fromkeys((x, r))]
            names[f"a_{x[1:]}"] = functools.reduce(operator.add, parts)
    return names


def _name_of(part, letter, names):
    """The name of a gate's part, the letter and what the gate is called; None if it has none."""
    fits = (n for n, a in names.items() if a is part and n[0] == letter and len(n) > 1)
    return next(fits, None)


def _told(cell, count):
    """The names that a constructor's docstring has for ``count`` states: options may change it."""
    doc = cell.made and cell.made.constructor.__doc__
    _, begins, rest = (doc or "").partition("State ``(")
    found = re.findall(r"``\((\w+(?:, \w+)*),?\)``", f"``({rest}") if begins else []
    named = [names.split(", ") for names in found]
    return next((n for n in named if len(n) == count), named[0] if named else ())


def _is_shown(a, batch):
    return jnp.issubdtype(a.dtype, jnp.inexact) and a.shape[: len(batch)] == batch


def _dependent(function, *args):
    """The names in what ``function`` gives whose arrays depend on its arguments."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr = closed.jaxpr
    reached = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if not reached.isdisjoint(v for v in eqn.invars if not hasattr(v, "val")):
            reached.update(eqn.outvars)
    # A dict's arrays are in the order of its sorted names.
    pairs = zip(sorted(out), jaxpr.outvars)
    return {path for path, v in pairs if not hasattr(v, "val") and v in reached}


def _nested(found):
    """A dict of dicts, from paths."""
    tree = {}
    for (*outer, name), a in found.items():
        functools.reduce(lambda inner, at: inner.setdefault(at, {}), outer, tree)[name] = a
    return tree


# How a cell is made: by its constructor, of other cells or of other functions.


def _written(cell):
    """The cell as what made it wrote it: a ``transformer_block`` is a stack."""
    while cell.made is not None:
        make, args, named = cell.made
        inner = make.build(*args, **dict(named))
        if inner.made is None or (_children(cell) and not _children(inner)):
            return cell
        cell = inner
    return cell


def _children(cell):
    """The cells a cell is made of, by the names its constructor has for them."""
    if cell.made is None:
        return {}
    given = {str(i): value for i, value in enumerate(cell.made.args)} | dict(cell.made.kwargs)
    if cell.made.constructor is bidirectional and given["backward"] is None:
        given["backward"] = given["forward"]
    return {name: value for name, value in given.items() if isinstance(value, Cell)}


def _remade(cell, change):
    """The cell, made again of ``change(name, child)`` in place of each child."""
    children = {name: change(name, child) for name, child in _children(cell).items()}
    if not children:
        return cell
    make, args, named = cell.made
    args = [children.pop(str(i), value) for i, value in enumerate(args)]
    return make(*args, **(dict(named) | children))


def _prefix(cell, params, name, inner, x):
    """Where what is found in a child belongs: under its name if its parameters are its own.

    Args:
      cell, params, x: what is traced.
      name, inner: of the child, and its parameters.
    """
    if not jax.tree.leaves(inner):  # then they may be missing
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), x.shape[-1]))
    shared = not isinstance(params, dict) or name not in params
    return () if shared and len(_children(cell)) == 1 else (name,)


def _under(prefix, found):
    return {prefix + path: a for path, a in found.items()}


def _without_step(cell):
    """Whether a cell, or one it is made of, needs the whole sequence."""
    cell = _written(cell)
    is_whole = cell.made is not None and cell.made.constructor is bidirectional
    return is_whole or any(map(_without_step, _children(cell).values()))
