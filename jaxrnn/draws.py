"""Random masks: functions of the key, the row of the batch and a count of steps."""

import jax
import jax.numpy as jnp


def fold(key, number):
    """A key of its own for each number; None, which is evaluation, stays None."""
    return None if key is None else jax.random.fold_in(key, number)


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

    def draw(count, row):
        own = jax.random.fold_in(key, row)
        own = jax.random.fold_in(own, count) if per == "step" else own
        return jax.random.bernoulli(own, 1 - rate, shape)

    for _ in count.shape:
        draw = jax.vmap(draw)
    return draw(count, rows)


def scaled(x, kept, rate):
    """Zero where x is not kept, and more of the others: x in expectation."""
    return jnp.where(kept, x / max(1 - rate, 1e-30), jnp.zeros_like(x))
