"""What the parameters of a cell are, said once: for making them and for checking them."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.typing import Array, Initializer, PRNGKey, Shape, Spec


class Inputs(NamedTuple):
    """In a shape: as many as the input has features at each of the places of ``shape``."""

    shape: tuple[int, ...] = ()

    @property
    def places(self) -> int:
        return math.prod(self.shape)

    def size(self, name: str, features: int) -> int:
        """How many these are, of so many ``features`` at all places."""
        if features % self.places:
            want = f"a multiple of {self.places}, as many at each place of shape={self.shape}"
            raise ValueError(f"{name}: got {features} features, want {want}")
        return features // self.places


INPUTS = Inputs()  # as many as the input has features


def check_spec(spec: Spec) -> None:
    """A dict from names to ``(shape, initializer)``, with the size of the input in one shape.

    Raises:
      TypeError, ValueError: naming the parameter that is not so.
    """
    want = "a dict from names to (shape, initializer)"
    if not isinstance(spec, Mapping):
        raise TypeError(f"spec: got {checks.described(spec)}, want {want}")
    for name, pair in spec.items():
        fits = isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])
        if not fits or not isinstance(pair[0], tuple):
            raise TypeError(f"spec[{name!r}]: got {pair!r}, want (shape, initializer)")
        for n in pair[0]:
            if not isinstance(n, Inputs):
                checks.size(f"spec[{name!r}]", n)
    if not any(isinstance(n, Inputs) for shape, _ in spec.values() for n in shape):
        raise ValueError(
            "spec: got no shape with jaxrnn.INPUTS, want it where inputs meet a weight"
        )


input_init = jax.nn.initializers.glorot_uniform()
recurrent_init = jax.nn.initializers.orthogonal()
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def numbers(*values):
    """An initializer of [G, H]: a number for each gate."""

    def init(key, shape, dtype):
        del key
        return jnp.broadcast_to(jnp.array(values, dtype)[:, None], shape)

    return init


def feedforward(hidden, gates, bias=None):
    """The spec of ``w`` [I, G, H] and ``b`` [G, H], as ``gated`` has them."""
    return {
        "w": ((INPUTS, gates, hidden), input_init),
        "b": ((gates, hidden), zeros if bias is None else numbers(*bias)),
    }


class whole(NamedTuple):  # noqa: N801, made like a function
    """An initializer of all of an array, though its shape looks like that of gates."""

    init: Callable

    def __call__(self, key, shape, dtype):
        return self.init(key, shape, dtype)


def taps(init):
    """An initializer of [*taps, I, G, H]: each gate by itself, with all its taps."""

    def every_gate(key, shape, dtype):
        *inputs, gates, hidden = shape
        one = lambda key: init(key, (*inputs, hidden), dtype)
        return jax.vmap(one, out_axes=-2)(jax.random.split(key, gates))

    return whole(every_gate)


def identity(key, shape, dtype):
    """An initializer of a square matrix."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def gated(hidden, gates, heads=1, recurrent=None, bias=None):
    """The spec of ``w`` [I, G, H], ``r`` [N, D, K, D] for N heads of width D, and ``b`` [G, H].

    Args:
      hidden: H; ``r`` is [H, K, H] where there is one head.
      gates: G.
      heads: N.
      recurrent: K, how many gates have a recurrent part; None for all.
      bias: what each gate's bias begins at; None for zero.
    """
    count, width = gates if recurrent is None else recurrent, hidden // heads
    shape = (hidden, count, hidden) if heads == 1 else (heads, width, count, width)
    rest = feedforward(hidden, gates, bias)
    return {"w": rest["w"], "r": (shape, recurrent_init), "b": rest["b"]}


def made(spec, key, in_size):
    """Parameters of a spec, in JAX's default floating type.

    Args:
      spec: dict from a name to ``(shape, initializer)``. ``INPUTS`` in a shape stands for
        ``in_size``, ``Inputs(shape)`` for its part at each place. An initializer is
        ``(key, shape, dtype) -> array``, as in ``jax.nn.initializers``. Of [K, G, H] and
        [N, D, G, D] it makes each gate by itself: a scale or an orthogonal matrix is meant for one
        gate, not for all side by side. One that is ``whole`` makes the array as it is.
      key: a ``jax.random`` key.
      in_size: I.
    """
    checks.check_key(key)
    shapes = _shapes(spec, "in_size", checks.size("in_size", in_size))
    keys = jax.random.split(key, len(spec))
    return {
        name: each_gate(init, k, shapes[name]) for k, (name, (_, init)) in zip(keys, spec.items())
    }


def each_gate(init: Initializer, key: PRNGKey, shape: Shape) -> Array:
    """``init`` of an array, gate by gate where it has gates."""
    dtype = jnp.result_type(float)
    if len(shape) < 3 or isinstance(init, whole):
        return init(key, shape, dtype)
    *heads, inputs, gates, hidden = shape
    some = jax.vmap(lambda k: init(k, (inputs, hidden), dtype))
    count = gates * (heads[0] if heads else 1)
    flat = some(jax.random.split(key, count)).reshape(*heads, gates, inputs, hidden)
    return jnp.moveaxis(flat, -3, -2)


def width(spec, params, size):
    """A size, or what ``INPUTS`` stands for in the shapes of these parameters."""
    if not isinstance(size, Inputs):
        return size
    name, shape = next((name, s) for name, (s, _) in spec.items() if size in s)
    return params[name].shape[shape.index(size)]


def check(spec, params, x):
    """Parameters have the names and shapes of a spec, and x [..., I] the features they are for.

    Raises:
      ValueError, TypeError: naming the array that does not fit, or x.
    """
    found = ((name, shape, n) for name, (shape, _) in spec.items() for n in shape)
    name, shape, inputs = next((c for c in found if isinstance(c[2], Inputs)), (None, (), INPUTS))
    shapes = _shapes(spec, "xs", x.shape[-1])
    axis = 0 if name is None else shape.index(inputs)  # no parameter need have an axis of features
    checks.check_params(params, shapes, name, x, axis, inputs.places)
    dtype = arithmetic(params)
    checks.check_floating("xs", x)
    if promoted(x.dtype, dtype) != dtype:
        want = f"{dtype} or less, the arithmetic's type, which the parameters give"
        raise TypeError(f"xs: got {x.dtype}, want {want}")


def _shapes(spec, given, features):
    one = lambda n: n.size(given, features) if isinstance(n, Inputs) else n
    return {name: tuple(map(one, shape)) for name, (shape, _) in spec.items()}
