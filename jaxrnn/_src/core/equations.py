"""The functions that equations are written in, and what their names stood for in one step."""

import contextlib
import functools
import inspect
import sys
from typing import NamedTuple

from jax.extend.core import get_opaque_trace_state

_codes = set()


def equations(*functions):
    """Marks functions whose local variables are the names of a cell's equations.

    What makes a cell of a function marks it, so that ``jaxrnn.trace`` finds a user's names too.
    Returns the first of them: it may stand before a ``def``.
    """
    _codes.update(map(code_of, functions))
    return functions[0]


def code_of(function):
    """What a function is whatever it is a closure of; None of what is not written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(inspect.unwrap(function), "__code__", None)


class Frame(NamedTuple):
    """A call of a function that is marked."""

    code: object
    given: dict  # its arguments, by name
    names: dict  # its local variables when it returned


@contextlib.contextmanager
def watched():
    """A list to which every call of a function that is marked is added when it returns.

    Python's profiler says when that is, in this thread and inside the ``with`` alone: outside, a
    mark costs nothing. Calls under another transform of JAX, whose values mean nothing outside of
    it, are left out.
    """
    frames, given, level, before = [], {}, get_opaque_trace_state(), sys.getprofile()

    def watch(frame, event, _):
        if frame.f_code not in _codes or get_opaque_trace_state() != level:
            return
        if event == "call":
            given[id(frame)] = dict(frame.f_locals)
        elif event == "return" and id(frame) in given:
            frames.append(Frame(frame.f_code, given.pop(id(frame)), dict(frame.f_locals)))

    sys.setprofile(watch)
    try:
        yield frames
    finally:
        # Python 3.11's cProfile is no function, and has to be put back by its own hand.
        enable = getattr(before, "enable", None)
        sys.setprofile(before) if enable is None else enable()
