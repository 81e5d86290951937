"""Loops over time that write down what a step gives, in place.

On a GPU every array that a step writes down is a kernel of its own, and so is counting the steps.
There a chunk of steps is run and then written down, which takes as many kernels a chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sharding import varying

# For 16 in its place, XLA makes a tenth fewer kernels and takes twice as long to compile.
_CHUNK = 8


def one_by_one(step, carry, xs, ys, *, reverse):
    """A scan that writes over an array it reads.

    Args:
      step: ``(carry, x, y) -> (carry, y)``.
      carry: what goes from step to step.
      xs: tree of [T, ...] arrays.
      ys: the same; each step's part is replaced by what the step gives.
      reverse: from the last step to the first.

    Returns:
      ``(carry, ys)``.
    """
    steps = _steps(ys)

    def body(i, both):
        carry, ys = both
        t = steps - 1 - i if reverse else i
        x, y = _at((xs, ys), t)
        carry, y = step(carry, x, y)
        return carry, _put(ys, y, t)

    return lax.fori_loop(0, steps, body, (carry, ys))


def in_chunks(step, carry, xs, ys, *, reverse):
    """The same, a chunk of steps at a time; those left over one by one."""
    steps = _steps((xs, ys))
    size = min(_CHUNK, steps) if isinstance(steps, int) else 1
    chunks, rest = divmod(steps, size)

    def loop(count, size, first, both):
        """Chunks of ``size`` steps, from time ``first``."""

        def body(i, both):
            carry, ys = both
            t = first + size * (count - 1 - i if reverse else i)
            part = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, t, size), (xs, ys))
            carry, new = lax.scan(
                lambda carry, x: step(carry, *x), carry, part, reverse=reverse, unroll=True
            )
            put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=t, axis=0)
            return carry, jax.tree.map(put, ys, new)

        return lax.fori_loop(0, count, body, both)

    both = loop(chunks, size, rest if reverse else 0, (carry, ys))
    return loop(rest, 1, 0 if reverse else steps - rest, both)


def scan_in_chunks(step, carry, xs, *, reverse):
    """``jax.lax.scan`` by ``in_chunks``.

    ``jax.lax.scan(unroll=8)`` does the same where 8 divides T. Where it does not, it copies all
    inputs and outputs, and compiles the steps left over a second time.
    """
    y = jax.eval_shape(lambda carry, xs: step(carry, _at(xs, 0))[1], carry, xs)
    ys = jax.tree.map(lambda a: jnp.zeros((_steps(xs), *a.shape), a.dtype), y)
    ys = varying((carry, ys))[1]
    return in_chunks(lambda carry, x, _: step(carry, x), carry, xs, ys, reverse=reverse)


def _steps(tree):
    return jax.tree.leaves(tree)[0].shape[0]


def _at(tree, t):
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False), tree)


def _put(tree, values, t):
    def put(a, value):
        return lax.dynamic_update_index_in_dim(a, value, t, 0)

    return jax.tree.map(put, tree, values)
