"""What the inputs of a cell may be: features, tokens, or both in a dict."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def leading(x):
    """The axes of time and batch: all but the features, which integers have none of.

    Args:
      x: an array of floats [..., I] or of integers [...], or a dict of such arrays.
    """
    one = next(iter(jax.tree.leaves(x)))
    return one.shape if jnp.issubdtype(one.dtype, jnp.integer) else one.shape[:-1]


def swapped(xs):
    """The batch, if time and batch were swapped in xs; None without a batch."""
    steps, *batch = leading(xs)
    return (steps, *batch[1:]) if batch else None


def sizes(x):
    """What ``init`` calls ``in_size``: I, None for integers, a dict for a dict."""
    if isinstance(x, Mapping):
        return {name: sizes(one) for name, one in x.items()}
    return None if jnp.issubdtype(x.dtype, jnp.integer) else x.shape[-1]


def example(in_size):
    """Inputs of one step, of an ``in_size``."""
    if isinstance(in_size, Mapping):
        return {name: example(one) for name, one in in_size.items()}
    if in_size is None:
        return jnp.zeros(1, jnp.int32)
    return jnp.zeros((1, in_size), jnp.result_type(float))
