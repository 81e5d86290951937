"""Cells whose parameters begin otherwise."""

import dataclasses
import math
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell, check_cell, constructor, labelled
from jaxrnn._src.core.param_spec import each_gate, input_init, recurrent_init
from jaxrnn._src.core.typing import Array, Initializer, Initializers, PRNGKey, Shape


@constructor
def initialized(
    cell: Cell, scheme: Literal["torch", "keras"] | None = None, **by_name: Initializers
) -> Cell:
    """The same cell, whose parameters begin otherwise.

    Args:
      cell: a cell; in one made of others, the parameters of all of them are meant.
      scheme: of the parameters of each recurrent cell, those that have ``w`` and ``r``: "torch",
        uniform within 1 / sqrt(H) for all of them, biases too; or "keras", ``w`` Glorot uniform
        and ``r`` orthogonal, each made for all gates side by side. None for what the cells say.
      by_name: the name of a parameter, and what it begins as: an initializer ``(key, shape, dtype)
        -> array``, or the name of one in ``jax.nn.initializers``, which makes each gate by
        itself; or a tuple of these, one for each gate.

    Returns:
      A ``Cell`` that differs in ``init`` alone.

    Raises:
      ValueError: an unknown scheme or initializer; no parameter has the name; not one for each
        gate.

    >>> jaxrnn.initialized(jaxrnn.gru(4), "torch", b="zeros")
    initialized(cell=gru(hidden=4), scheme='torch', b='zeros')
    >>> relu = jaxrnn.elman(2, activation="relu")
    >>> identity = lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)
    >>> cell = jaxrnn.initialized(relu, r=identity)  # IRNN, arXiv:1504.00941
    >>> cell.init(jax.random.key(0), 3)["r"][:, 0]
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    check_cell("initialized", cell)
    if scheme is not None and scheme not in _SCHEMES:
        raise ValueError(f"scheme: got {scheme!r}, want None or one of {tuple(_SCHEMES)}")
    named = {name: _initializer(name, value) for name, value in by_name.items()}

    def init(key, in_size):
        found = set()

        def remade(params, key):
            makers = _SCHEMES[scheme](params) if scheme and {"w", "r"} <= set(params) else {}
            makers |= {name: make for name, make in named.items() if name in params}
            found.update(params)
            keys = dict(zip(params, jax.random.split(key, max(len(params), 1))))
            return {
                name: remade(value, keys[name])
                if isinstance(value, dict)
                else makers[name](keys[name], value.shape, value.dtype)
                if name in makers
                else value
                for name, value in params.items()
            }

        checks.check_key(key)
        own, other = jax.random.split(key)
        params = remade(params_tree.dicts(cell.init(own, in_size)), other)
        if not set(named) <= found:
            came = sorted(set(named) - found)
            raise ValueError(f"initialized: got {came}, want some of {sorted(found)}: {cell}")
        return params

    return labelled(dataclasses.replace(cell, init=init), gated=cell.gated)


@dataclasses.dataclass(frozen=True)
class chrono:  # noqa: N801, an initializer
    """Biases for memories up to so many steps long (Tallec & Ollivier 2018, arXiv:1804.11188).

        b_forget ~ log(uniform(1, longest - 1))      b_input = -b_forget

    An initializer of a bias [G, H] for ``jaxrnn.initialized``; other gates begin at zero.

    Args:
      longest: how many steps the longest dependency spans, more than 2.
      forget: which gate keeps the state: 1 for ``lstm``, and for ``gru``, whose z it is.
      input: which one lets in what is new: 0 for ``lstm``; None if there is none, as in ``gru``.

    >>> cell = jaxrnn.initialized(jaxrnn.lstm(4), b=jaxrnn.chrono(100))
    >>> i, f, g, o = cell.init(jax.random.key(0), 3)["b"]
    >>> bool((f > 0).all()), bool((i == -f).all())
    (True, True)
    >>> gru = jaxrnn.initialized(jaxrnn.gru(4), b=jaxrnn.chrono(100, forget=1, input=None))
    """

    longest: float
    forget: int = 1
    input: int | None = 0

    def __post_init__(self) -> None:
        if not self.longest > 2:
            raise ValueError(f"longest: got {self.longest}, want more than 2 steps")

    def __call__(self, key: PRNGKey, shape: Shape, dtype: DTypeLike) -> Array:
        count = shape[0]
        for name, gate in (("forget", self.forget), ("input", self.input)):
            if gate is not None and not 0 <= gate < count:
                raise ValueError(f"{name}: got {gate}, want the number of one of {count} gates")
        steps = jax.random.uniform(key, shape[1:], dtype, 1, self.longest - 1)
        b = jnp.zeros(shape, dtype).at[self.forget].set(jnp.log(steps))
        return b if self.input is None else b.at[self.input].set(-jnp.log(steps))


def _torch(params):
    """PyTorch's; what it has as two biases that are summed is one here, and begins as one."""
    bound = 1 / math.sqrt(params["w"].shape[-1])
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    return dict.fromkeys(params, uniform)


def _keras(params):
    """Keras's; its biases are those that jaxrnn's cells begin with."""
    return {"w": _side_by_side(input_init), "r": _side_by_side(recurrent_init)}


_SCHEMES = {"torch": _torch, "keras": _keras}


def _side_by_side(init):
    """An initializer of [..., K, G, H] that makes all gates as one matrix [K, G * H]."""

    def made(key, shape, dtype):
        *heads, inputs, gates, hidden = shape
        keys = jax.random.split(key, math.prod(heads))
        return jax.vmap(lambda k: init(k, (inputs, gates * hidden), dtype))(keys).reshape(shape)

    return made


def _initializer(name: str, value: Any) -> Initializer:
    """``(key, shape, dtype) -> array`` of what a caller gives for a parameter."""
    if isinstance(value, tuple):
        each = [_initializer(name, one) for one in value]

        def made(key, shape, dtype):
            *front, gates, hidden = shape
            if len(each) != gates:
                raise ValueError(f"{name}: got {len(each)}, want one for each of {gates} gates")
            one = (*front, 1, hidden)
            keys = jax.random.split(key, gates)
            return jnp.concatenate([make(k, one, dtype) for make, k in zip(each, keys)], -2)

        return made
    if isinstance(value, str):
        make = getattr(jax.nn.initializers, value, None)
        try:
            value = make if value in ("zeros", "ones") else make()  # pyright: ignore[reportOptionalCall]
        except TypeError:
            want = "the name of one in jax.nn.initializers that needs no arguments"
            raise ValueError(f"{name}: got {value!r}, want {want}, or a function") from None
    if not callable(value):
        want = "an initializer (key, shape, dtype) -> array, its name, or a tuple of these"
        raise TypeError(f"{name}: got {value!r}, want {want}")
    made_by = cast(Initializer, value)
    return lambda key, shape, dtype: each_gate(made_by, key, shape).astype(dtype)
