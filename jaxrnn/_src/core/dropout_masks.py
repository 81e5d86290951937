"""Random masks: functions of the key, the row of the batch and a count of steps."""

from typing import overload

import jax
import jax.numpy as jnp

from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.typing import PRNGKey


@overload
def fold(key: PRNGKey, number: int) -> PRNGKey: ...


@overload
def fold(key: None, number: int) -> None: ...


def fold(key, number):
    """A key of its own for each number; None, which is evaluation, stays None."""
    return None if key is None else jax.random.fold_in(_threefry(key), number)


def kept(key, rate, count, shape, per="step"):
    """Which features are kept: bool [...batch, *shape], false with probability ``rate``.

    Args:
      key: a ``jax.random`` key.
      rate: from 0 to 1.
      count: int [...batch], how many steps have gone since the episode began.
      shape: of the features of a row.
      per: "step" for other masks at other counts, or "sequence" for the same at all of them.
    """
    rows = jnp.arange(count.size, dtype=jnp.int32).reshape(count.shape)
    key = _threefry(key)

    def draw(count, row):
        own = jax.random.fold_in(key, row)
        own = jax.random.fold_in(own, count) if per == "step" else own
        return jax.random.bernoulli(own, 1 - rate, shape)

    for _ in count.shape:
        draw = jax.vmap(draw)
    return draw(count, rows)


def scaled(x, kept, rate):
    """Zero where x is not kept, and more of the others: x in expectation."""
    if rate == 1:
        return jnp.zeros_like(x)
    # In a wide type, for 1 - rate may be zero in that of x. Divided after the choice: a gradient
    # that the division makes infinite is then dropped with its feature, and not times zero.
    wide = jnp.where(kept, x, jnp.zeros_like(x)).astype(promoted(x.dtype, jnp.dtype("float32")))
    return (wide / (1 - rate)).astype(x.dtype)


def _threefry(key):
    """A key of JAX's default generator, made of all words of any key; its own keys stay.

    Under ``vmap`` the other generators ("rbg", "unsafe_rbg") draw for all rows from the first
    row's key: what a row draws would depend on its neighbours.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = (jax.random.key_data(key) if typed else jnp.asarray(key)).reshape(-1)
    words = jnp.pad(words, (0, max(0, 2 - words.size)))
    own = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    for i in range(2, words.size):  # rbg's halves are equal at first: their sum would be zero
        own = jax.random.fold_in(own, words[i])
    return own
