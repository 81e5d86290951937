"""Inputs of each step that no weight multiplies, such as the time since the step before.

A kernel hands an update gates, and no inputs. So each of these is a gate too, whose weights are
constant: one for its own features, zero for all others, and nothing recurrent. What a product
rounds, it must not: its feature is cut into three parts, of 8 bits each, which a product of
bfloat16 or TF32 takes as they are and sums up in float32 to what they were.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import checks
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.typing import Array, Params

FEATURES = "x"  # the name of what weights multiply


def names(
    inputs: Any, unit: Any = (), gates: tuple[str, ...] = (), argument: str = "inputs"
) -> tuple[str, ...]:
    """Of the inputs, as arguments of an update that has ``unit`` and ``gates`` too."""
    if isinstance(inputs, str):
        raise TypeError(f"{argument}: got {inputs!r}, want a tuple of names, as ({inputs!r},)")
    found = tuple(inputs)
    wrong = [n for n in found if not isinstance(n, str) or not n.isidentifier() or n == FEATURES]
    if wrong or len(set(found)) < len(found) or set(found) & {*unit, *gates}:
        taken = ", of a gate or in unit" if gates else ""
        want = f"different names, none of them {FEATURES!r}{taken}"
        raise ValueError(f"{argument}: got {found}, want {want}")
    return found


def features(inputs: tuple[str, ...], given: Any, name: str) -> Any:
    """What weights multiply, of what a cell is given: its size, or the array.

    Raises:
      ValueError, TypeError: something is missing, or another size or type.
    """
    if not inputs:
        return given
    wanted = (FEATURES, *inputs)
    if not isinstance(given, Mapping) or set(given) != set(wanted):
        came = sorted(given) if isinstance(given, Mapping) else checks.described(given)
        raise ValueError(f"{name}: got {came}, want a dict of {', '.join(wanted)}")
    return given[FEATURES]


def sized(inputs: tuple[str, ...], in_size: Any) -> Any:
    """The size of the features; all others have one, which is checked."""
    size = features(inputs, in_size, "in_size")
    for name in inputs:
        if in_size[name] != 1:
            raise ValueError(f"in_size[{name!r}]: got {in_size[name]}, want 1")
    return size


def joined(
    inputs: tuple[str, ...], params: Params, xs: Mapping[str, Array]
) -> tuple[Array, Array, Array]:
    """``(xs, w, b)`` of the features and these inputs, for as many further gates.

    Args:
      inputs: their names.
      params: ``w`` [I, G, H] and ``b`` [G, H].
      xs: the features [..., I], and each input [..., 1].
    """
    x, w, b = xs[FEATURES], params["w"], params["b"]
    dtype, hidden, count = promoted(x.dtype, w.dtype), w.shape[-1], len(inputs)
    parts = [part for name in inputs for part in _parts(name, xs[name], x, dtype)]
    own = jnp.repeat(jnp.eye(count, dtype=w.dtype), len(parts) // count, 0)
    own = jnp.broadcast_to(own[:, :, None], (*own.shape, hidden))
    above = jnp.concatenate([w, jnp.zeros((w.shape[0], count, hidden), w.dtype)], 1)
    below = jnp.concatenate([jnp.zeros((len(parts), w.shape[1], hidden), w.dtype), own], 1)
    return (
        jnp.concatenate([x.astype(dtype), *parts], -1),
        jnp.concatenate([above, below]),
        jnp.concatenate([b, jnp.zeros((count, hidden), b.dtype)]),
    )


def _parts(name: str, a: Array, x: Array, dtype: Any) -> list[Array]:
    """An input as features that sum up to it; the last one has its derivative."""
    checks.check_floating(f"xs[{name!r}]", a)
    want = (*x.shape[:-1], 1)
    if a.shape != want:
        raise ValueError(f"xs[{name!r}]: got shape {a.shape}, want {want}, one for each row")
    parts = []
    if dtype != jnp.float64:  # which no product rounds
        for _ in range(2):
            parts.append(lax.stop_gradient(lax.reduce_precision(a, 8, 7)))
            a = a - parts[-1]
    return [part.astype(dtype) for part in (*parts, a)]
