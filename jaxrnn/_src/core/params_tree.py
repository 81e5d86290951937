"""Parameters as callers hold them: any mapping, and maybe without what is empty.

Cells see dicts of dicts. They are made here of a Flax ``FrozenDict``, an ``OrderedDict`` or any
other mapping; gradients have the caller's structure all the same, as JAX takes them outside. What
JAX does not know as a tree, as ``types.MappingProxyType``, it takes as no argument of a transform:
a function that is jitted or differentiated may close over one.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxrnn._src.core import checks


def dicts(params, name="params"):
    """A mapping as a dict, and so the mappings in it; anything else as it is.

    What holds an array and tells JAX so, as Flax's ``nnx.Param``, becomes the array. A dataclass
    that is a mapping too stays as it is: who wrote a cell for it reads its fields.

    Raises:
      TypeError: an array in it is another library's; ``name`` is what the mapping is called.
    """
    if not isinstance(params, jax.Array) and hasattr(params, "__jax_array__"):
        return params.__jax_array__()
    if hasattr(params, "dtype") and hasattr(params, "shape"):
        checks.check_array(name, params)
    if not isinstance(params, Mapping) or dataclasses.is_dataclass(params):
        return params
    return {key: dicts(value, f"{name}[{key!r}]") for key, value in params.items()}


class Called:
    """A function of a cell, which errors call by its name there. Equals another of the same."""

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        functools.update_wrapper(self, function)
        self.name = name

    def __call__(self, *args, **options):
        try:
            return self.__wrapped__(*args, **options)
        except TypeError:
            signature = inspect.signature(self.__wrapped__)
            try:
                signature.bind(*args, **options)
            except TypeError as error:
                took = f"{self.name}{signature}"
                raise TypeError(f"{self.name}: {error}; it takes {took}") from None
            raise

    def __eq__(self, other):
        return isinstance(other, Called) and self.__wrapped__ == other.__wrapped__

    def __hash__(self):
        return hash(self.__wrapped__)

    def __repr__(self):
        return repr(self.__wrapped__)

    def __reduce__(self):
        return type(self), (self.__wrapped__, self.name)


class OfKey(Called):
    """A cell's init, which is given a key: of what else it was given it may not say so itself."""

    def __call__(self, *args, **options):
        try:
            return super().__call__(*args, **options)
        except (TypeError, ValueError):
            if args and args[0] is not None:
                checks.check_key(args[0])
            raise


class OfDicts(Called):
    """One of parameters, which are given to it as dicts."""

    def __call__(self, *args, **options):
        if args:
            args = (dicts(args[0]), *args[1:])
        elif "params" in options:
            options = options | {"params": dicts(options["params"])}
        return super().__call__(*args, **options)


class OfBatch(OfDicts):
    """A cell's initial state, of batch axes."""

    def __call__(self, *args, **options):
        if len(args) > 1:
            checks.check_batch_shape(args[1])
        return super().__call__(*args, **options)


class OfInputs(OfDicts):
    """A cell's step, which is given inputs too, and maybe a key."""

    def __call__(self, *args, **options):
        if len(args) > 2:
            checks.check_step_input(args[2])
        key = args[3] if len(args) > 3 else options.get("key")
        if key is not None:
            checks.check_key(key)
        with checks.used("x", args[2] if len(args) > 2 else None):
            return super().__call__(*args, **options)


class OfSequence(OfDicts):
    """A cell's own ``unroll``, which is given ``Options``."""

    def __call__(self, *args, **options):
        if len(args) > 3:
            checks.check_options(args[3])
        with checks.used("xs", args[2] if len(args) > 2 else None):
            return super().__call__(*args, **options)


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


def is_empty(init: Callable[..., Any], in_size: Any = 1) -> bool:
    """Whether ``init`` makes no arrays; also if it wants another size, and so does not say."""
    try:
        made = jax.eval_shape(lambda: init(jax.random.key(0), in_size))
    except (TypeError, ValueError):
        return True  # what is missing is then missed where it is used
    return not jax.tree.leaves(made)
