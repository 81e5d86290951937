"""What the C++ kernels of matrix memories are called with: time, one axis of rows, then heads.

Heads do not see each other, as channels do not.
"""

from typing import NamedTuple

from jaxrnn._src.ops import native
from jaxrnn._src.ops.row_partition import Batch, Result


class Heads(NamedTuple):
    """The heads of a batch, for so many steps, of which every ``chunk`` has a memory saved."""

    time: int
    chunk: int
    batch: Batch

    def state(self, a):
        """A result [B, N, ...] like ``a``."""
        return Result((None, *a.shape[len(self.batch.sizes) :]), a.dtype, 1)

    def steps(self, a, dtype=None):
        """A result [T, B, N, ...] like ``a``."""
        shape = (self.time, None, *a.shape[1 + len(self.batch.sizes) :])
        return Result(shape, dtype or a.dtype, 2)

    def chunks(self, a):
        """A result like a state ``a``, one for each chunk."""
        shape = (-(-self.time // self.chunk), None, *a.shape[len(self.batch.sizes) :])
        return Result(shape, a.dtype, 2)

    def call(self, name, out, timed, states, flags, **attributes):
        """Calls ``name`` with what is not None: the results by name, None in place of a None.

        Args:
          out: a ``Result`` or None by name.
          timed, states: arrays [T, B, N, ...], then arrays [B, N, ...].
          flags: arrays [T, B] by name; which of them there are is an attribute too.
          attributes: as ``native.call`` has them.
        """
        args = [self.batch.flat(a, 1, 2) for a in timed if a is not None]
        args += [self.batch.flat(a, 0, 1) for a in states if a is not None]
        args += [self.batch.flat(a, 1) for a in flags.values() if a is not None]
        has = {flag: a is not None for flag, a in flags.items()}
        results = [result for result in out.values() if result is not None]
        made = iter(native.call(name, args, results, **has, **attributes))
        return {
            n: None if r is None else self.batch.unflat(next(made), r.shape.index(None))
            for n, r in out.items()
        }
