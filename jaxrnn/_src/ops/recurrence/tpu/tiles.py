"""What of a problem is in a TPU's VMEM at a time."""

from typing import NamedTuple

MIB = 1 << 20
# VMEM of a core, by ``jax.Device.device_kind``.
VMEM = {
    "TPU v4": 16 * MIB,
    "TPU v5": 64 * MIB,
    "TPU v5 lite": 128 * MIB,
    "TPU v6 lite": 128 * MIB,
    "TPU7x": 64 * MIB,
}
_SHARE = 0.75  # of it, that a kernel is given: XLA keeps something, and so does the compiler
MOST_ROWS = 128  # of a tile: more make the code long, and load the weights no more seldom
MOST_STEPS = 128  # of a chunk: its flags fill a register's lanes
FEW_STEPS = 4  # of a chunk: fewer do not hide what it takes to change it; smaller tiles do
FEW_LONG_STEPS = 2  # where a step goes through blocks: it is thousands of cycles for few rows too
# Rows of which one product takes the inputs: enough to hide that the weights are loaded for it.
PRODUCT_ROWS = 256


class Tiles(NamedTuple):
    """A tile of the grid.

    Attributes:
      rows: of the batch.
      steps: a chunk's.
      group: steps of which one product takes the inputs; a chunk is a multiple.
      limit: bytes of VMEM that the kernel may take.
    """

    rows: int
    steps: int
    group: int
    limit: int


def vmem(chip):
    """The bytes of VMEM a kernel may take on a chip; if it is unknown, the least of all."""
    return int(_SHARE * VMEM.get(chip, min(VMEM.values())))


def fit(rows, steps, *, resident, row, row_step, few, limit):
    """The ``Tiles`` of a batch of ``rows`` over ``steps``, None if not even the least fits.

    Args:
      resident: bytes that stay.
      row: bytes for each row of a tile.
      row_step: bytes for each step of each row.
      few: steps of a chunk, of which smaller tiles are better than fewer.
      limit: bytes of VMEM.
    """
    count = -(-rows // MOST_ROWS)
    while True:
        tile = rows if count == 1 else up(-(-rows // count), 16)
        padded = up(tile, 16)
        left = limit - resident - padded * row
        chunk = min(steps, MOST_STEPS, max(left, 0) // (padded * row_step))
        group = min(chunk, max(PRODUCT_ROWS // tile, 1))
        if chunk >= min(steps, few) or (chunk and tile <= 16):
            return Tiles(tile, chunk - chunk % group, group, limit)
        if tile <= 16:
            return None
        count *= 2


def up(n, multiple):
    return -(-n // multiple) * multiple
