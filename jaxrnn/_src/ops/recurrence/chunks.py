"""Long sequences in small memory: a chunk of steps at a time, and only its first state kept.

The backward runs each chunk's forward again (Chen et al. 2016, arXiv:1604.06174). With chunks of
about sqrt(T) steps, both the states kept and what one chunk's backward needs grow with sqrt(T).
Every implementation serves: it sees a chunk as a sequence.
"""

import math

import jax
import jax.numpy as jnp

from jaxrnn._src.core import wide_scan


def run(whole, problem, operands):
    """``whole(problem, operands)``, chunk by chunk.

    A symbolic number of steps has no root: then it runs as one chunk.
    """
    steps = operands.xs.shape[0]
    if not isinstance(steps, int):
        return whole(problem, operands)
    size = math.isqrt(steps - 1) + 1
    count, rest = divmod(steps, size)
    timed = {
        name: value
        for name in ("xs", "mask", "starts")
        if (value := getattr(operands, name)) is not None
    }

    shared = operands._replace(state=None, **dict.fromkeys(timed))

    @jax.checkpoint
    def chunk(shared, state, part):
        out = whole(problem, shared._replace(state=state, **part))
        return tuple(out[: problem.states]), out[problem.states :]

    def several(state, first):
        """``count`` chunks, from time ``first``."""

        def parts(a):
            return a[first : first + count * size].reshape(count, size, *a.shape[1:])

        state, ys = wide_scan.scan(
            lambda state, part: chunk(shared, state, part),
            state,
            jax.tree.map(parts, timed),
            reverse=problem.reverse,
        )
        return state, jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:]), ys)

    def others(state, first):
        part = jax.tree.map(lambda a: a[first : first + rest], timed)
        return chunk(shared, state, part) if rest else (state, None)

    state = operands.state
    if problem.reverse:
        state, after = several(state, rest)
        state, before = others(state, 0)
    else:
        state, before = several(state, 0)
        state, after = others(state, count * size)
    ys = [part for part in (before, after) if part is not None]
    return (*state, *(jnp.concatenate(both) for both in zip(*ys)))
