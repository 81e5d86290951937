"""Arrays that a user's function closes over, made into operands.

A function that is a static parameter of a primitive hides what it closes over: JAX neither
differentiates, batches nor shards it. So an update is traced, the constants of its jaxpr become
weights of the units, and what the primitive is given is the jaxpr alone. Its tags are removed here
too: kernels have no lowering for them.
"""

import weakref
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jaxrnn._src.core.sharding import varies
from jaxrnn._src.core.tags import has_tags, untagged, without_tags

Array = jax.Array


class Closed(NamedTuple):
    """An update without closed-over arrays and without tags.

    Attributes:
      update: ``update(state, x, r, **unit)``; the caller's own where it has neither.
      unit: what it closed over, as weights [H] that it takes by name.
      why: None, or why some array cannot be an operand; then ``update`` is the caller's own.
    """

    update: Any
    unit: dict[str, Array]
    why: str | None = None


def closed_update(update, states, gates, unit, hidden, dtype) -> Closed:
    """``update(state, x, r, **unit)`` with the arrays it closes over as weights of the units.

    It has no tags. The same update gives the same function, so that nothing compiles twice.

    Args:
      update: an elementwise update, as ``jaxrnn.gated`` takes it.
      states, gates: how many arrays there are in ``state``, and in ``x`` and ``r``.
      unit: the names of the weights it takes.
      hidden: H.
      dtype: of the arithmetic.
    """
    counts = states, gates, gates
    row, jaxpr = _NUMBER.update(dtype=dtype), _of_numbers(update, counts, unit, dtype)
    size = _units(jaxpr)
    if jaxpr is None or size is not None:
        row = jax.ShapeDtypeStruct((hidden,), dtype)
        jaxpr = _traced(update, counts, unit, row)
    plain = update
    if has_tags(jaxpr):
        plain, jaxpr = untagged(update), without_tags(jaxpr)
    operands = [_is_operand(c, row.shape) for c in jaxpr.consts]
    for const, is_operand in zip(jaxpr.consts, operands, strict=True):
        if isinstance(const, jax.core.Tracer) and (not is_operand or varies(const)):
            return Closed(update, {}, f"{_name(update)} closes over {_traced_array(const)}")
    if not any(operands) and size is None:
        return Closed(plain, {})
    values = [c for c, is_operand in zip(jaxpr.consts, operands, strict=True) if is_operand]
    names = tuple(f"<closed {i}>" for i in range(len(values)))  # no argument has such a name
    key = counts, unit, row.shape, row.dtype, tuple(map(_typed, jaxpr.consts))
    known = _known.setdefault(update, {})
    if key not in known:
        known[key] = _Converted(_name(update), jaxpr, operands, counts, (*unit, *names), row)
    wide = [jnp.broadcast_to(v.astype(dtype), (hidden,)) for v in values]
    return Closed(known[key], dict(zip(names, wide, strict=True)))


# The converted function of each update: the same one at each call, so that nothing compiles twice.
# It holds no array that is traced, and lives no longer than the update.
_known = weakref.WeakKeyDictionary()


class _Converted:
    """An update that closes over nothing, from the jaxpr of one that did.

    Attributes:
      row: what its jaxpr was traced with: a scalar, or [H] if it closed over arrays of H units.
    """

    def __init__(self, name, jaxpr, operands, counts, names, row):
        self.__name__ = name
        self.row, self._names = row, names
        pairs = list(zip(jaxpr.consts, operands, strict=True))

        def run(moved, *flat):
            moved = iter(moved)  # the others stay: they are not traced
            consts = [next(moved) if moves else const for const, moves in pairs]
            out = jax.core.eval_jaxpr(jaxpr.jaxpr, consts, *flat)
            return [o.reshape(row.shape) for o in out]  # an array of one number makes arrays

        self._avals = [jax.ShapeDtypeStruct(c.shape, c.dtype) for c, moves in pairs if moves]
        rows = [row] * (sum(counts) + len(names) - len(self._avals))
        self._jaxpr = jax.make_jaxpr(run)(self._avals, *rows)  # another one: `jaxpr` has tracers

    def __call__(self, state, x, r, **unit):
        weights = [unit[name] for name in self._names]
        own = len(weights) - len(self._avals)
        flat = [*weights[own:], *state, *x, *r, *weights[:own]]
        run = self._run
        for _ in range(flat[-1].ndim - len(self.row.shape)):
            run = jax.vmap(run)
        return tuple(run(*flat))

    def _run(self, *flat):
        moved = map(_like, flat, self._avals)
        return jaxpr_as_fun(self._jaxpr)(*moved, *flat[len(self._avals) :])


def traced_with(update, default):
    """The ``ShapeDtypeStruct`` of the rows to trace an update with, like ``default`` if it can."""
    row = getattr(update, "row", default)
    return row if row.shape else jax.ShapeDtypeStruct(default.shape, row.dtype)


def bound(update):
    """Whether an update takes rows of one size only, that of the arrays it closed over."""
    return bool(getattr(update, "row", _NUMBER).shape)


_NUMBER = jax.ShapeDtypeStruct((), jnp.float32)


def units(update, counts, unit):
    """How many units the arrays have that an update closes over; None if it takes any number."""
    return _units(_of_numbers(update, counts, unit, jnp.float32))


def _of_numbers(update, counts, unit, dtype):
    """The jaxpr of an update of numbers in place of rows; None if it looks at its rows' shape."""
    try:
        return _traced(update, counts, unit, _NUMBER.update(dtype=dtype))
    except Exception:  # whoever traces it with rows tells the user, if it fails there too
        return None


def _units(jaxpr):
    shapes = {v.shape for v in jaxpr.out_avals} - {(), (1,)} if jaxpr else ()
    return min(shapes)[0] if len(shapes) == 1 and len(min(shapes)) == 1 else None


def closed_over(function, *args):
    """Why a function cannot be static: the traced array it closes over; None if there is none."""
    consts = jax.make_jaxpr(function)(*args).consts
    traced = [_traced_array(c) for c in consts if isinstance(c, jax.core.Tracer)]
    return f"the step closes over {traced[0]}" if traced else None


def _traced(update, counts, unit, row):
    state, x, r = ((row,) * n for n in counts)
    return jax.make_jaxpr(update)(state, x, r, **dict.fromkeys(unit, row))


def _is_operand(const, row):
    """A truth value or a floating number, one for all units or one for each."""
    kind = jnp.issubdtype(const.dtype, jnp.floating) or const.dtype == jnp.bool_
    return kind and (const.shape in ((), (1,)) or (const.shape == row and row != ()))


def _like(value, aval):
    """A weight of the units as the constant it stands for."""
    if value.shape != aval.shape:
        value = value.reshape(aval.shape) if value.size == 1 else value[:1].reshape(aval.shape)
    return value.astype(aval.dtype)


def _traced_array(const):
    where = ", which varies over mesh axes" if varies(const) else ""
    return f"a traced {_typed(const)}{where}"


def _typed(const):
    return f"{const.dtype}[{','.join(map(str, const.shape))}]"


def _name(update):
    return getattr(update, "__name__", repr(update))
