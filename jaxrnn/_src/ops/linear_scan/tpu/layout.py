"""How the arrays of a linear recurrence lie in a TPU's memory, and how much is there at a time.

A register has 8 sublanes of 128 lanes. The rows of a batch lie in sublanes and channels in lanes;
of fewer than 5 rows, a register holds 2 or 4 times as many lanes.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

_LANES = 128  # of a register
TILE = 4096  # numbers in a tile: enough registers to hide how long one operation takes
_VMEM = 8 << 20  # bytes of all blocks, half of what any TPU gives a kernel
STEPS = 1024  # of a chunk


class Layout(NamedTuple):
    """[T, B, D] as [steps, rows, lanes].

    Attributes:
      steps, rows, lanes: of an array.
      tile: rows and lanes of a tile.
    """

    steps: int
    rows: int
    lanes: int
    tile: tuple[int, int]

    def timed(self, a):
        """[T, B, D] as arrays [steps, rows, lanes]."""
        return parts(a)

    def state(self, a):
        """[B, D] as arrays [rows, lanes]."""
        return parts(a)

    def constant(self, a):
        """[D] as arrays [1, lanes]."""
        return parts(a[None])

    def chunk(self, itemsize):
        """How many steps are in VMEM at a time, of arrays of so many bytes an element together."""
        rows, lanes = self.tile
        step = _sublanes(rows) * _up(lanes, _LANES) * itemsize
        fit = min(_VMEM // (2 * step), STEPS)  # a block comes or goes, another is worked on
        return self.steps if self.steps <= fit else fit // 8 * 8

    def words(self, flags, size):
        """bool [T, B] as the bits of int32 [tiles, chunks, 1, size]: a bit for each row."""
        tile = self.tile[0]
        chunks, tiles = -(-self.steps // size), -(-flags.shape[1] // tile)
        filled = [(0, chunks * size - self.steps), (0, tiles * tile - flags.shape[1])]
        flags = jnp.pad(flags, filled).reshape(chunks, size, tiles, tile)
        bits = jnp.left_shift(1, lax.broadcasted_iota(jnp.int32, flags.shape, 3))
        words = jnp.where(flags, bits, 0).sum(3, dtype=jnp.int32)
        return jnp.moveaxis(words, 2, 0)[:, :, None]


def of(shape, itemsize):
    """The ``Layout`` of [T, B, D]; the narrowest array has ``itemsize`` bytes an element."""
    steps, rows, lanes = shape
    tile = min(rows, 32 // min(itemsize, 4))  # as many rows as lie together in memory
    tiles = -(-lanes * min(_sublanes(tile), 8) // TILE)
    width = lanes if tiles == 1 else _up(-(-lanes // tiles), _LANES)
    return Layout(steps, rows, lanes, (tile, width))


def parts(a):
    """An array, or the real and the imaginary part of a complex one."""
    return [a.real, a.imag] if jnp.iscomplexobj(a) else [a]


def parts_of(dtype):
    """The types of ``parts``."""
    return [part.dtype for part in parts(jnp.zeros((), dtype))]


def joined(arrays):
    """The inverse of ``parts``."""
    return lax.complex(*arrays) if len(arrays) == 2 else arrays[0]


def _sublanes(rows):
    """What rows take up: 2 (one row does, in bfloat16), 4, or a multiple of 8."""
    return _up(rows, 8) if rows > 4 else 4 if rows > 2 else 2


def _up(n, multiple):
    return -(-n // multiple) * multiple
