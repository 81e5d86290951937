"""Functions with loops in them, compiled once, also where they are called outside of ``jax.jit``.

There JAX compiles a loop for every new function that it is handed, and keeps what it compiled.
"""

import functools

import jax

from jaxrnn._src.core import dispatch


def once(function, *static):
    """``function``, compiled once for each value of the arguments named ``static``.

    What is compiled lives as long as what this returns, so a cell's functions should belong to
    the cell.
    """
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def run(*args, **named):
        # What was traced before is not traced again, and `explain` would not hear of it.
        return (function if dispatch.is_recording() else compiled)(*args, **named)

    return run


def once_each(function):
    """``function(problem, *args)``, ``once`` for each problem, of which the latest are kept."""
    of = functools.lru_cache(256)(lambda problem: once(functools.partial(function, problem)))
    return functools.wraps(function)(lambda problem, *args: of(problem)(*args))


def kept_by(cell, function, *static):
    """``once`` of ``function(cell, ...)``, which the cell keeps."""
    kept = vars(cell).setdefault("_once", {})
    if function not in kept:
        kept[function] = once(functools.partial(function, cell), *static)
    return kept[function]
