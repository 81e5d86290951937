"""Where episodes begin."""

import jax.numpy as jnp

from jaxrnn._src.core import checks
from jaxrnn._src.core.typing import Array, InputArray


def from_dones(dones: InputArray, before: InputArray | bool) -> Array:
    """``starts`` from the ends of episodes: where one ends, the next begins a step later.

    Step t takes an observation and acts on it; ``dones[t]`` says that this act ended the episode,
    and that the observation of step t + 1 is the first of another. What some programs keep beside
    an observation as ``last_done`` is ``starts`` already.

    Args:
      dones: bool [T, ...batch], ends by any cause: in Gymnasium's words, terminated or truncated.
      before: bool [...batch], that of the step before the first, ``dones[-1]`` of a chunk whose
        state is carried on; or True or False for all rows: True where the sequence begins anew.

    Returns:
      bool [T, ...batch], for ``jaxrnn.unroll``.

    Raises:
      ValueError, TypeError: at trace time, of another shape or type.

    >>> dones = jnp.array([False, True, False, False, True])
    >>> jaxrnn.from_dones(dones, before=True)
    Array([ True, False,  True, False, False], dtype=bool)
    >>> jaxrnn.from_dones(dones[:2], before=dones[-1])
    Array([ True, False], dtype=bool)
    """
    layout = "[T, ...batch]"
    if getattr(dones, "ndim", None) == 0:
        raise ValueError(f"dones: got shape (), want {layout}, one axis at least")
    checks.check_flags("dones", dones, getattr(dones, "shape", layout), layout)
    if isinstance(before, bool):
        before = jnp.full(dones.shape[1:], before)
    checks.check_flags("before", before, dones.shape[1:], "[...batch]")
    dones = jnp.asarray(dones)
    return jnp.concatenate([jnp.asarray(before)[None], dones])[: len(dones)]
