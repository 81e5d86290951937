"""What is tagged in a cell's step, at every step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrnn._src.core import inputs, wide_scan
from jaxrnn._src.core.cell import Cell, check_cell, labelled, state_name, unroll
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.sequence import resets, select
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.core.tags import has_tags, is_tag
from jaxrnn._src.core.typing import InputArray, Inputs, Params, PRNGKey, State
from jaxrnn._src.ops.recurrence.elements import called, opened
from jaxrnn._src.wrappers.stack import bidirectional

OUTPUT = "y"


def trace(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    reverse: bool = False,
    key: PRNGKey | None = None,
) -> dict[str, Any]:
    """Every gate, what enters it, and every state, at every step, by its name in the equation.

    Shown is what the cell's step tags by ``jax.ad_checkpoint.checkpoint_name``, under the last
    part of its name: this library's cells tag the left sides of their equations, such as
    ``jaxrnn.lstm.f``, shown as ``f``. Tag a value in a cell of yours, and it is shown too. A name
    that is given more than once stands for the last of its values. A tag inside a scan, a branch,
    or a function with a derivative of its own is not seen.

    - A state is that after the step, under the name that its cell has for it (``states`` of
      ``jaxrnn.gated`` and ``jaxrnn.cell``); else under its tag; else it is ``h``, if it is the
      first, or ``state_1`` and so on.
    - What enters the gate i of a cell made by ``jaxrnn.gated`` is ``a_i``, where the update sees
      only the sum of the input's and the state's part. If the parts have other uses, as those of a
      GRU's candidate n, they are ``xn`` and ``rn``.
    - What is no array of floating or complex numbers with the axes of the batch is left out.

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
    run = kept_by(cell, _run)
    # What checks a sequence's arguments checks them here too.
    _, found = unroll(
        dataclasses.replace(cell, unroll=run),
        params,
        xs,
        state,
        lengths=lengths,
        mask=mask,
        starts=starts,
        reverse=reverse,
        key=key,
    )
    return cast(dict[str, Any], found)  # in the place of ys


def _run(cell, params, state, xs, options):
    """What stands in place of the cell's unroll."""
    state, found = _whole(cell, params, state, xs, options)
    return state, _nested(found)


# What is found is a dict from a path, a tuple of names, to an array.


class _Step(NamedTuple):
    """A step, and what was found in it."""

    state: Any
    y: jax.Array
    found: dict  # of [...batch, ...]
    paths: tuple  # of each array of the state, None of one that is not shown


def _whole(cell, params, state, xs, options, initial=None):
    """The state after all steps, and what was found, [T, ...batch, ...] each."""
    cell = _written(cell)
    if _without_step(cell):
        return _by_parts(cell, params, state, xs, options)
    initial = cell.initial_state(params, inputs.leading(xs)[1:]) if initial is None else initial
    state = initial if state is None else state
    starts = resets(options.starts, options.mask, options.reverse)
    given = varying((params, state, initial, xs, options.mask, starts))
    params, state, initial, xs, mask, starts = given

    def body(state, inputs):
        x, real, start = inputs
        if start is not None:
            state = select(start, initial, state)
        new, y, found, paths = _one(cell, params, state, x, options.key)
        found |= {(OUTPUT,): y}
        new = select(real, new, state)
        held = {path: a for path, a in zip(paths, jax.tree.leaves(new)) if path in found}
        held.pop((OUTPUT,), None)  # a state of the same name: the output it is
        return new, select(real, found, 0) | held

    return wide_scan.scan(body, state, (xs, mask, starts), reverse=options.reverse)


def _by_parts(cell, params, state, xs, options):
    """``_whole`` of a cell that needs the whole sequence, by those it is made of."""
    found = {}

    def spied(name, child):
        @functools.wraps(child.unroll)  # it may be asked whether it takes `initial`
        def run(inner, state, xs, options, **initial):
            state, own = _whole(child, inner, state, xs, options, **initial)
            found.update(_under(_prefix(cell, (params, xs), name, inner), own))
            return state, own[OUTPUT,]

        return labelled(dataclasses.replace(child, unroll=run), gated=child.gated)

    made = _remade(cell, spied)
    state, ys = made.unroll(params, state, xs, options)
    return state, found | {(OUTPUT,): ys}


def _one(cell, params, state, x, key):
    """A step of a cell, as ``_Step``."""
    cell = _written(cell)
    return _seen(cell, functools.partial(_step, cell), params, state, x, key)


def _step(cell, spied, params, state, x, key):
    """A step of a cell, whose children are ``spied``."""
    if cell.gated is None or _children(cell):
        return _remade(cell, spied).step(params, state, x, key)
    return cell.gated.step(params, state, x, around=functools.partial(_entering, cell.gated.form))


def _seen(cell, run, params, state, x, key):
    """``run(spied, params, state, x, key)``, a step of a cell, as ``_Step``."""
    within = []  # the paths of a child's state

    def step(params, state, x, key):
        outer, found = (params, x), {}

        def spied(name, child):
            def seen(run, inner, state, x, key):
                new, y, own, paths = _seen(_written(child), run, inner, state, x, key)
                prefix = _prefix(cell, outer, name, inner)
                found.update(_under(prefix, own | {(OUTPUT,): y}))
                within[:] = [path and prefix + path for path in paths]
                return new, y

            return _spied(child, seen)

        new, y = run(spied, params, state, x, key)
        shown = dict(found)
        found.clear()  # what was made again of spies may be kept somewhere, as a key
        return new, y, shown

    (new, y, found), tags = _tagged(step, params, state, x, key)
    batch, children = inputs.leading(x), _children(cell)
    found |= {(name,): a for name, a in tags.items() if _is_shown(a, batch)}
    paths = []
    for k, leaf in enumerate(jax.tree.leaves(new)):
        path = None
        if _is_shown(leaf, batch):
            # An output may be a state of the cell it is of, but not of one around it.
            same = [p for p, a in found.items() if a is leaf and (p != (OUTPUT,) or not children)]
            declared = [(name,) for name in cell.states[k : k + 1]]
            inner = [within[k]] if len(children) == 1 and k < len(within) else []
            path = next(p for p in (*declared, *same, *inner, (state_name(k),)) if p)
            found[path] = leaf
        paths.append(path)
    return _Step(new, y, found, tuple(paths))


def _spied(child, seen):
    """A cell whose steps are ``seen(run, params, state, x, key)``."""

    def step(params, state, x, key=None):
        return seen(functools.partial(_step, _written(child)), params, state, x, key)

    def changed(params, state, x, h=None, **options):
        around = functools.partial(_entering, child.gated.form)
        run = lambda spied, params, state, x, key: child.gated.step(
            params, state, x, h, around, **options
        )
        return seen(run, params, state, x, None)

    gated = child.gated and child.gated._replace(step=changed)
    return labelled(dataclasses.replace(child, step=step), gated=gated)


def _entering(form, update):
    """The update of a cell made by ``jaxrnn.gated``, with tags of what enters its gates."""

    @functools.wraps(update)
    def run(state, x, r, **options):
        for k, gate in enumerate(form.gates):
            if k not in form.summed:
                checkpoint_name(x[k], f"x{gate}")
                checkpoint_name(r[k], f"r{gate}")
            else:
                checkpoint_name(x[k] + r[k] if k in form.recurrent else x[k], f"a_{gate}")
        return update(state, x, r, **options)

    return run


def _tagged(function, *args):
    """What a function gives, and what it tags, by the last part of its name."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    found = {}

    def run(jaxpr, consts, args):
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read = lambda atom: atom.val if hasattr(atom, "val") else values[atom]
        for eqn in jaxpr.eqns:
            given, inner = list(map(read, eqn.invars)), called(eqn, rules=False)
            if is_tag(eqn):
                found[eqn.params["name"].rpartition(".")[2]] = given[0]
                out = given
            elif inner is not None and has_tags(inner):
                out = run(*opened(inner), given)
            else:
                params = eqn.primitive.get_bind_params(eqn.params)
                out = eqn.primitive.bind(*given, **params)
                out = out if eqn.primitive.multiple_results else [out]
            values |= zip(eqn.outvars, out, strict=True)
        return list(map(read, jaxpr.outvars))

    flat = run(*opened(closed), jax.tree.leaves(args))
    return jax.tree.structure(shape).unflatten(flat), found


def _is_shown(a, batch):
    return jnp.issubdtype(a.dtype, jnp.inexact) and a.shape[: len(batch)] == batch


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


def _prefix(cell, outer, name, inner):
    """Where what is found in a child belongs: under its name if its parameters are its own.

    Args:
      cell, outer: what is traced: a cell, and its parameters and inputs.
      name, inner: of the child, and its parameters.
    """
    params, x = outer
    if not jax.tree.leaves(inner):  # then they may be missing
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), inputs.sizes(x)))
    shared = not isinstance(params, dict) or name not in params
    return () if shared and len(_children(cell)) == 1 else (name,)


def _under(prefix, found):
    return {prefix + path: a for path, a in found.items()}


def _without_step(cell):
    """Whether a cell, or one it is made of, needs the whole sequence."""
    cell = _written(cell)
    is_whole = cell.made is not None and cell.made.constructor is bidirectional
    return is_whole or any(map(_without_step, _children(cell).values()))
