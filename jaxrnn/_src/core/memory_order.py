"""Whether xs, [T, B, ...], lie in memory as [B, T, ...].

A module that is given the batch first brings time to the front, as every cell wants it. It says so
for all that a cell does, in a context that is part of the keys of JAX's caches: a kernel that can
read either order in place takes the transpose back, and XLA removes both.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

from jaxrnn._src.core.typing import Array

_batch_first = jax.make_user_context(False)


def batch_first(value: bool) -> AbstractContextManager[None]:
    """A context in which sequences lie in memory with the batch first, or not."""
    return _batch_first(value)


def is_batch_first(xs: Array) -> bool:
    """Whether xs [T, B, I] are best read as [B, T, I]. Of more batch axes nothing is known."""
    return _batch_first.value and xs.ndim == 3


def in_place(function: Callable[..., Any], *xs: Array) -> Any:
    """``function`` of arrays [T, B, ...], elementwise but for their last axis, as they lie.

    It gives an array, or a tree of them.
    """
    if not all(map(is_batch_first, xs)):
        return function(*xs)
    turned = lambda a: a.swapaxes(0, 1)
    return jax.tree.map(turned, function(*map(turned, xs)))
