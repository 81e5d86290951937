"""What an implementation of the linear recurrence is given, and what all of them share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._src.core.checks import check_flags
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.sequence import select

Array = jax.Array


class Problem(NamedTuple):
    """The static half: hashable, known at trace time."""

    reverse: bool
    implementation: str | None


class Operands(NamedTuple):
    """The arrays. T time, B any batch axes, D channels.

    Either ``a`` or ``constant`` is given: factors of each step and row, or of all of them.
    """

    b: Array  # [T, B, D], floating or complex; so are the factors
    a: Array | None  # [T, B, D]
    constant: Array | None  # [D]
    h0: Array  # [B, D], in the type of the arithmetic
    mask: Array | None  # bool [T, B]
    starts: Array | None  # bool [T, B], in the order of processing (`sequence.resets`)

    @property
    def factor_dtype(self) -> Any:
        """The type of the factors."""
        return self._factors(self.a).dtype

    def factor(self, a: Array | None, like: Array) -> Array:
        """A step's factors, in the shape and type of its state; ``a`` is its part of ``a``."""
        return jnp.broadcast_to(self._factors(a).astype(like.dtype), like.shape)

    def _factors(self, a: Array | None) -> Array:
        factors = self.constant if a is None else a
        assert factors is not None  # one of the two is given
        return factors


def cut(start: Array | None, state: Array) -> Array:
    """Zero in the rows where an episode starts."""
    return state if start is None else select(~start, state, 0)


def keeps(operands: Operands) -> bool:
    """A forward keeps the states before each step for its backward.

    It need not where the outputs hold them: without mask, and in a type as exact as the gradient
    they are for.
    """
    exact = operands.b.dtype in (operands.h0.dtype, operands.factor_dtype)
    return operands.mask is not None or not exact


def before(problem: Problem, operands: Operands, hs: Array, kept: tuple[Array, ...]) -> Array:
    """The states before each step, [T, B, D], zero at starts."""
    if kept:
        return kept[0]
    first = operands.h0[None].astype(hs.dtype)
    parts = (hs[1:], first) if problem.reverse else (first, hs[:-1])
    return cut(operands.starts, jnp.concatenate(parts).astype(operands.h0.dtype))


def completed(a, b, h0, mask, starts, reverse) -> Operands:
    """The checked arguments, with zero for a state that is not given.

    Raises:
      ValueError, TypeError: naming the argument, what came and what is wanted.
    """
    layout = "[T, ...batch, D]"
    b = _array("b", b, layout)
    if b.ndim < 2:
        raise ValueError(f"b: got shape {b.shape}, want {layout}, two axes at least")
    a = _array("a", a, f"{layout} or [D]")
    if a.shape not in (b.shape, b.shape[-1:]):
        want = f"b's, {b.shape}, or [D] = {b.shape[-1:]}"
        raise ValueError(f"a: got shape {a.shape}, want {want}")
    if jnp.iscomplexobj(a) != jnp.iscomplexobj(b):
        raise TypeError(f"a: got {a.dtype} with b of {b.dtype}, want both real or both complex")
    total = promoted(jnp.dtype("float32"), a.dtype, b.dtype)
    if h0 is None:
        h0 = jnp.zeros(b.shape[1:], total)
    h0 = _array("h0", h0, "[...batch, D]")
    if h0.shape != b.shape[1:]:
        raise ValueError(f"h0: got shape {h0.shape}, want [...batch, D] = {b.shape[1:]}")
    if promoted(h0.dtype, total) != total:
        raise TypeError(
            f"h0: got {h0.dtype}, want {total}, the arithmetic's type, or a narrower one"
        )
    for name, flags in (("mask", mask), ("starts", starts)):
        if flags is not None:
            check_flags(name, flags, b.shape[:-1], "[T, ...batch]")
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse: got {reverse!r}, want True or False")
    each = a.ndim == b.ndim
    return Operands(b, a if each else None, None if each else a, h0.astype(total), mask, starts)


def _array(name, value, layout):
    if not hasattr(value, "dtype") or not hasattr(value, "ndim"):
        raise TypeError(f"{name}: got {type(value).__name__}, want an array {layout}")
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise TypeError(f"{name}: got {value.dtype}, want a floating or complex type")
    return jnp.asarray(value)
