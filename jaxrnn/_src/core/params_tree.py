"""Parameters as callers hold them: any mapping, and maybe without what is empty.

Cells see dicts of dicts. They are made here of a Flax ``FrozenDict``, an ``OrderedDict`` or any
other mapping; gradients have the caller's structure all the same, as JAX takes them outside. What
JAX does not know as a tree, as ``types.MappingProxyType``, it takes as no argument of a transform:
a function that is jitted or differentiated may close over one.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxrnn._src.core import checks


def dicts(params):
    """A mapping as a dict, and so the mappings in it; anything else as it is.

    A dataclass that is a mapping too stays as it is: who wrote a cell for it reads its fields.
    """
    if not isinstance(params, Mapping) or dataclasses.is_dataclass(params):
        return params
    return {name: dicts(value) for name, value in params.items()}


class OfDicts:
    """A function of parameters that are given to it as dicts. Equals another of the same."""

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, params, *args, **options):
        return self.__wrapped__(dicts(params), *args, **options)

    def __eq__(self, other):
        return isinstance(other, OfDicts) and self.__wrapped__ == other.__wrapped__

    def __hash__(self):
        return hash(self.__wrapped__)

    def __repr__(self):
        return repr(self.__wrapped__)

    def __reduce__(self):
        return OfDicts, (self.__wrapped__,)


def parts(params, inits, own=()):
    """The parameters of a cell made of others, with an empty dict for each part that has none.

    A checkpoint that is flattened to arrays by their paths has no empty dicts, so such a part may
    be missing.

    Args:
      params: of the whole.
      inits: of each part, by its name: ``(key, in_size) -> params``.
      own: names of what else there is.

    Raises:
      ValueError: a part with parameters is missing, or there is something else.
    """
    given = params if isinstance(params, Mapping) else ()
    empty = {n: {} for n, init in inits.items() if n not in given and is_empty(init)}
    checks.check_names(params, [n for n in (*inits, *own) if n not in empty])
    return params if not empty else {**params, **empty}


def is_empty(init, in_size=1):
    """Whether ``init`` makes no arrays; also if it wants another size, and so does not say."""
    try:
        made = jax.eval_shape(lambda: init(jax.random.key(0), in_size))
    except (TypeError, ValueError):
        return True  # what is missing is then missed where it is used
    return not jax.tree.leaves(made)
