"""Names for values inside a cell: what they are, and functions without them.

A tag is JAX's own: ``jax.ad_checkpoint.checkpoint_name``. ``jaxrnn.trace`` shows what is tagged,
and a policy of ``jax.checkpoint`` selects by the same names. Kernels know no tags, so an update is
given to them without: see ``core/closures.py``.
"""

import functools
import weakref

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def tag(name, value):
    """The value, tagged ``jaxrnn.<name>``: ``tag("lstm.f", f)`` is ``f``, named ``jaxrnn.lstm.f``.

    Args:
      name: of the cell, and of the value in its equations.
      value: an array.
    """
    return checkpoint_name(value, f"jaxrnn.{name}")


def tag_all(cell, **values):
    """Each value, tagged by its name: ``q, k = tag_all("gla", q=q, k=k)``."""
    return tuple(tag(f"{cell}.{name}", value) for name, value in values.items())


def is_tag(eqn):
    """Whether an equation of a jaxpr is a tag."""
    return eqn.primitive.name == "name"


def has_tags(jaxpr):
    """Whether there is a tag in a jaxpr, at any depth."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        is_tag(eqn) or any(map(has_tags, _jaxprs(eqn.params.values()))) for eqn in jaxpr.eqns
    )


def without_tags(closed):
    """A closed jaxpr without its tags, at any depth."""
    return ClosedJaxpr(_without(closed.jaxpr), closed.consts)


def untagged(function):
    """A function of arrays without its tags: the same function for the same one, while it lives.

    It computes the same numbers and has the same derivatives. A tag in a rule for derivatives, as
    in the forward half of a ``jax.custom_vjp``, stays.
    """
    known = _untagged.get(function)
    if known is not None:
        return known

    @functools.wraps(function)
    def run(*args, **named):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args, **named)
        flat = jaxpr_as_fun(without_tags(closed))(*jax.tree.leaves((args, named)))
        return jax.tree.structure(out).unflatten(flat)

    _untagged[function] = run
    return run


_untagged = weakref.WeakValueDictionary()


def _without(jaxpr):
    same, eqns = {}, []
    read = lambda atom: atom if hasattr(atom, "val") else same.get(atom, atom)
    for eqn in jaxpr.eqns:
        given = list(map(read, eqn.invars))
        if is_tag(eqn):
            same[eqn.outvars[0]] = given[0]
            continue
        params = eqn.params
        if any(map(has_tags, _jaxprs(params.values()))):
            params = {name: _changed(value) for name, value in params.items()}
        eqns.append(eqn.replace(invars=given, params=params))
    return jaxpr.replace(eqns=eqns, outvars=list(map(read, jaxpr.outvars)))


def _changed(value):
    """A parameter of an equation, without the tags in the jaxprs that it holds."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_changed, value)) if any(map(_is_jaxpr, value)) else value
    if not _is_jaxpr(value) or not has_tags(value):
        return value  # the same one: what was compiled of it is found again
    return without_tags(value) if hasattr(value, "jaxpr") else _without(value)


def _jaxprs(values):
    for value in values:
        yield from filter(_is_jaxpr, value if isinstance(value, (tuple, list)) else (value,))


def _is_jaxpr(value):
    return hasattr(value, "jaxpr") or hasattr(value, "eqns")
