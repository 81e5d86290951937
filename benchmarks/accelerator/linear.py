"""``jaxrnn.linear_scan`` as ``accelerator`` checks and times it: as a cell, among the layers."""

import functools

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks.shared.shapes import Shape
from jaxrnn._src.core.dtypes import promoted


@jaxrnn.constructor
def linear_scan(hidden, *, constant=False, parts=1):
    """A cell of real numbers all around, so that it is checked as layers are.

    Its inputs are what is added and before that the factors, if they are not ``constant``. Of two
    ``parts``, the second half of an array is imaginary.
    """

    def joined(array):
        if parts == 1:
            return array
        array = array.astype(promoted(array.dtype, jnp.dtype("float32")))
        return jax.lax.complex(*jnp.split(array, parts, -1))

    def split(numbers, dtype):
        if parts == 2:
            numbers = jnp.concatenate([numbers.real, numbers.imag], -1)
        return numbers.astype(dtype)

    def unroll(params, state, xs, options):
        a, b = (params["a"], xs) if constant else jnp.split(xs, 2, -1)
        state, hs = jaxrnn.linear_scan(
            joined(a),
            joined(b),
            None if state is None else joined(state),
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            implementation=options.implementation,
        )
        return split(state, state.real.dtype), split(hs, xs.dtype)

    def init(key, in_size):
        return {"a": jnp.zeros(hidden)} if constant else {}

    def initial_state(params, batch_shape):
        return jnp.zeros((*batch_shape, hidden))

    return jaxrnn.Cell(init, initial_state, None, unroll)  # nothing steps it


NAME = "linear_scan"
CELLS = {
    NAME: linear_scan,
    f"{NAME} complex": functools.partial(linear_scan, constant=True, parts=2),
}
# Several chunks of time, tiles of rows and of channels, each with a rest.
CHUNKS = Shape("chunks", 9, 230, 1280, 640)


def fitted(cell, shape):
    """A shape with as many inputs as the cell takes, where it is one of these."""
    if cell not in CELLS:
        return shape
    return shape._replace(I=2 * shape.H if cell == NAME else shape.H)


# What is timed.

SHAPES = Shape("b8-t4096", 8, 4096, 1024, 1024), Shape("b1-t16384", 1, 16384, 1024, 1024)


def build(function, cell, shape, dtype):
    """A contender of ``shared.scans``, as those of ``shared.contenders`` are."""
    params = {"a": jax.ShapeDtypeStruct((shape.T, shape.B, shape.H), dtype)}
    return (lambda params, b: function(params["a"], b)), params
