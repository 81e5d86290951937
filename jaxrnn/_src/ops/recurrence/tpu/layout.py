"""How a problem lies in the memory of a TPU."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxrnn._src.ops.recurrence.packed import Packing
from jaxrnn._src.ops.recurrence.tpu import tiles
from jaxrnn._src.ops.recurrence.tpu.lanes import LANES, lanes

# What `jax.default_matmul_precision` is where XLA rounds the factors of a product to bfloat16.
_ROUNDED = (None, "default", "fastest", "bfloat16", "BF16_BF16_F32")


class Layout:
    """A problem's arrays as the kernels want them, and what fits into VMEM.

    Attributes:
      time, count: steps and rows.
      product, total: the types of factors and of sums.
      forward, backward: the ``Tiles`` of each kernel, None where not even the least fits.
      projects: the forward takes the input's product too, a chunk at a time: the gates' input
        part is then never in HBM, where it would be larger than all else. It needs rows that fill
        registers, and room for ``w`` that takes no rows from a tile. Else XLA takes the product
        before.
    """

    def __init__(self, problem, operands, target):
        self.problem, self.operands = problem, operands
        self.packing = Packing(problem, operands.unit)
        self.time, *self.batch, self.inputs = operands.xs.shape
        self.count = math.prod(self.batch)
        heads = operands.r.shape[0] if operands.r.ndim == 4 else 1
        self.lanes = lanes(operands.w.shape[2], problem.gates, heads)
        self.total, self.product = operands.state[0].dtype, operands.product_dtype
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        if target.platform == "tpu" and precision in _ROUNDED:
            self.product = jnp.dtype(jnp.bfloat16)
        self._fit(tiles.vmem(target.chip))

    def _fit(self, limit):
        width, total, product = self.lanes.all, self.total.itemsize, self.product.itemsize
        gates = self.problem.gates * width * total
        packed = sum(self.packing.sizes) * width
        states = self.problem.states * width * total
        ys = width * self.operands.xs.dtype.itemsize
        xs = tiles.up(self.inputs, LANES) * self.operands.xs.dtype.itemsize
        r = self.lanes.used * self.problem.gates * width * product
        w = tiles.up(self.inputs, 16) * self.problem.gates * width * product
        blocks = self.lanes.blocks > 1
        few = tiles.FEW_LONG_STEPS if blocks else tiles.FEW_STEPS
        fit = functools.partial(tiles.fit, self.count, self.time, few=few, limit=limit)
        # What comes and goes is there twice: one part is worked on while the next arrives. The
        # states of a row: where they begin and end, and at work; so are its gates.
        row = 6 * states + 2 * gates + 2 * LANES * 4
        after = states * self.problem.every
        kept = packed * total + states + after
        self.forward = fit(resident=r, row=row, row_step=2 * (gates + ys + kept))
        self.projects = False
        if self.forward and (self.count % 16 == 0 or self.count > tiles.MOST_ROWS):
            row_step = 2 * (xs + ys + kept) + gates
            product_rows = tiles.PRODUCT_ROWS * gates  # before they are put down
            found = fit(resident=r + w + product_rows, row=row, row_step=row_step)
            self.projects = found is not None and found.rows == self.forward.rows
            self.forward = found if self.projects else self.forward
        row_step = 2 * (kept + ys + packed * product)
        # All gradients of a row's gates and states are there with them, or a block's.
        row = row if blocks else 2 * row
        self.backward = fit(resident=r, row=row, row_step=row_step)

    def plan(self, found):
        """The ``kernel.Plan`` for some ``Tiles``."""
        from jaxrnn._src.ops.recurrence.tpu import kernel

        return kernel.Plan(
            self.packing,
            tuple(sorted(self.operands.unit)),
            self.lanes,
            found,
            self.time,
            self.count,
            self.problem.reverse,
            self.product,
            self.total,
        )

    def shared(self, found):
        """What both kernels are given."""
        from jaxrnn._src.ops.recurrence.tpu import kernel

        operands = self.operands
        mask, starts = (
            None if f is None else f.reshape(self.time, self.count)
            for f in (operands.mask, operands.starts)
        )
        flagged = mask is not None or starts is not None
        unit = [operands.unit[name] for name in sorted(operands.unit)]
        return {
            "unit": [self.lanes.spread(u)[None].astype(self.total) for u in unit],
            "flags": [kernel.flags(mask, starts, found.steps)] if flagged else [],
        }

    def flat(self, a):
        """[T, *batch, K] -> [T, B, K]."""
        return a.reshape(self.time, self.count, a.shape[-1])

    def flat_rows(self, a):
        """[*batch, H] -> [B, all]."""
        return self.lanes.spread(a.reshape(self.count, a.shape[-1]))

    def spread(self, a):
        """[T, *batch, K * H] -> [T, B, K * all]."""
        return self.lanes.spread(self.flat(a))

    def unflat(self, a):
        """The inverse of ``spread``."""
        a = self.lanes.gather(a)
        return a.reshape(self.time, *self.batch, a.shape[-1])

    def unflat_rows(self, a):
        """The inverse of ``flat_rows``."""
        a = self.lanes.gather(a)
        return a.reshape(*self.batch, a.shape[-1])


def too_large(problem, operands, target):
    """Why a problem does not fit into the VMEM of a chip; None if it does."""

    def fits(chip):
        found = Layout(problem, operands, target._replace(chip=chip))
        return found.forward is not None and found.backward is not None

    chip = target.chip
    if fits(chip):
        return None
    size = math.prod(operands.r.shape) * Layout(problem, operands, target).product.itemsize
    others = ", ".join(filter(fits, tiles.VMEM)) or "none"
    return (
        f"recurrent weights of {size / tiles.MIB:.0f} MiB, and what comes and goes beside them, do"
        f" not fit into the {tiles.vmem(chip) / tiles.MIB:.0f} MiB of VMEM that a kernel is given"
        f" on {chip or 'a chip nobody has named'}; they fit on: {others}"
    )
