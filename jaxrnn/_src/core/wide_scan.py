"""``jax.lax.scan``, with the gradients of what all steps share summed in float32 at least.

JAX sums the gradient of an array that a scan's body closes over, as weights are, in the type of
the array. A bfloat16 has 8 bits: once a sum of steps is some hundred times as large as what a
step adds, it stands still. So what is narrower than float32 goes into the loop as float32, and
each step casts it back: a step computes with the same numbers, and the sum is a float32.
"""

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxrnn._src.core import dispatch, time_division


def scan(body, carry, xs, *, reverse=False):
    """``jax.lax.scan(body, carry, xs, reverse=reverse)``."""
    time_division.refuse()
    traced = []

    def look(carry, x):  # in a scan, which may trace it again in other types of the carry
        closed, out = jax.make_jaxpr(body, return_shape=True)(carry, x)
        traced[:] = closed, jax.tree.structure(out)
        return _call(*traced, carry, x)

    with dispatch.in_loop():
        jax.eval_shape(lambda carry, xs: lax.scan(look, carry, xs, reverse=reverse), carry, xs)
    closed, tree = traced
    types = jax.tree.structure(carry).unflatten(closed.in_avals[: len(jax.tree.leaves(carry))])
    carry = jax.tree.map(_cast, carry, types)
    shared = [c.astype(jnp.float32) if _is_narrow(c) else c for c in closed.consts]

    def step(carry, x):
        consts = [_cast(s, c) for s, c in zip(shared, closed.consts)]
        return _call(ClosedJaxpr(closed.jaxpr, consts), tree, carry, x)

    return lax.scan(step, carry, xs, reverse=reverse)


def _call(closed, tree, *args):
    return tree.unflatten(jaxpr_as_fun(closed)(*jax.tree.leaves(args)))


def _cast(a, like):
    same = jax.typeof(a).dtype == like.dtype
    return a if same else lax.convert_element_type(a, like.dtype)


def _is_narrow(a):
    """Whether a sum would be. What is no tracer has no gradient."""
    floating = isinstance(a, jax.core.Tracer) and jnp.issubdtype(a.dtype, jnp.floating)
    return floating and a.dtype.itemsize < 4
