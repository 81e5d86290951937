"""How a kernel's work is divided among the blocks of a GPU.

The constants and formulas are those of ``exchange.cu``, ``cluster.cu`` and ``alone.cu``.
"""

import math
from typing import NamedTuple

from jaxrnn._src.ops.gpu.chips import CLUSTER, KIB, Chip

WARPS = 8  # of a block: more would leave a thread fewer than 255 registers
ALONE = True  # whether a block may have all units of a head
_PIECE = 64  # bytes of K that two matrix instructions take
MOST_HELD = 96  # registers of weights in a thread
_MOST_WARPS, _MOST_ALONE, _MOST_USED = 8, 128, 200  # of a block that is alone; registers
_MOST_SUMS = 64  # registers of sums in a thread
_MOST_UNITS = 4  # of a thread
_REGISTERS = 1 << 16  # of a multiprocessor
_SENT = 0.3  # microseconds, predicted: sums on their way to another block of the cluster


class Layer(NamedTuple):
    """What has to be divided.

    Attributes:
      size: bytes of a factor of the products.
      gates: G.
      width: units of a head.
      groups: heads of all members, each of which runs alone.
      rows: of the batch.
    """

    size: int
    gates: int
    width: int
    groups: int
    rows: int


class Plan(NamedTuple):
    """A kernel's launch.

    Attributes:
      warps: of a block.
      units: of a block.
      blocks: of a group.
      tile: rows of a group.
      tiles: of all rows.
      shared: bytes of shared memory.
      at_once: groups of a launch; if there are more, launches follow each other.
      launches: how many.
      exchange: bytes of the exchange for each step.
      cost: of a step, in microseconds, as far as this file knows.
      alone: whether a block has all units of a head, so that no blocks exchange anything.
      cluster: blocks that divide K, 1 if none do.
    """

    warps: int
    units: int
    blocks: int
    tile: int
    tiles: int
    shared: int
    at_once: int
    launches: int
    exchange: int
    cost: float
    alone: bool = False
    cluster: int = 1


def plan(layer: Layer, chip: Chip, *, backward: bool) -> Plan | None:
    """The cheapest plan, None if there is none."""
    return min(plans(layer, chip, backward), key=lambda p: p.cost, default=None)


def plans(layer: Layer, chip: Chip, backward: bool) -> list[Plan]:
    """All that fit."""
    found = [*_alone(layer, chip, backward), *_exchanging(layer, chip, backward, 1, chip.blocks)]
    in_clusters = CLUSTER * chip.clusters
    return [*found, *_exchanging(layer, chip, backward, CLUSTER, in_clusters)]


def _exchanging(layer, chip, backward, cluster, most):
    """Plans of blocks that exchange what they multiply; of these, ``most`` fit."""
    found = []
    piece = _PIECE // layer.size
    padded = up(layer.width, piece)
    depth = padded * (layer.gates if backward else 1)  # K
    pieces = depth // piece
    for units in (8, 16, 24, 32, 48, 64, 96, 128):
        blocks = up(math.ceil(padded / units), cluster)
        if blocks > most or (units > 8 and units >= 2 * padded):
            continue
        own = units * (1 if backward else layer.gates)  # columns of a block
        columns = cluster * own // 8  # in tiles
        for row_tiles in (1, 2, 4):
            # So few rows that a thread has no more units than it may: what fits one row fits any.
            tiles = math.ceil(layer.rows / min(16 * row_tiles, _MOST_UNITS * 32 * WARPS // units))
            tile = math.ceil(layer.rows / tiles)
            sums = 4 * row_tiles * columns
            each = math.ceil(tile * units / (32 * WARPS))
            if sums > _MOST_SUMS or tile <= 16 * (row_tiles // 2):
                continue
            mine = math.ceil(pieces / (cluster * WARPS))
            held = mine if mine * columns * 4 <= MOST_HELD else MOST_HELD // (columns * 4)
            weights = WARPS * (mine - held) * columns * 512
            working = min(WARPS, pieces)
            shared = weights + working * 16 * row_tiles * _stride(columns * 8) * 4
            if cluster > 1:  # what blocks send each other, and two counters
                shared += 2 * cluster * tile * _stride(own) * 4 + 16
            if shared > chip.shared:
                continue
            groups = layer.groups * tiles
            at_once = min(groups, most // blocks)
            launches = math.ceil(groups / at_once)
            cost = launches * _microseconds(
                backward=backward,
                cluster=cluster,
                blocks=blocks,
                each=each,
                row_tiles=row_tiles,
                products=row_tiles * columns * pieces / cluster,
                read=tile * depth * layer.size / cluster,
                weights=weights,
                sums=shared - weights,
                written=groups / launches * tile * units * blocks * (layer.gates + 2) * 4,
            )
            exchange = groups * tile * depth * layer.size
            found.append(
                Plan(
                    warps=WARPS,
                    units=units,
                    blocks=blocks,
                    tile=tile,
                    tiles=tiles,
                    shared=shared,
                    at_once=at_once,
                    launches=launches,
                    exchange=exchange,
                    cost=cost,
                    cluster=cluster,
                )
            )
    return found


def _stride(columns):
    """Of a row of sums, so that rows begin 8 banks of shared memory apart."""
    return columns + (40 - columns % 32) % 32


def _alone(layer, chip, backward):
    """Plans of one block for a head and a tile of rows; its weights are all in registers."""
    found = []
    piece = _PIECE // layer.size
    padded = up(layer.width, piece)
    warps, held = padded // 16, layer.gates * padded // piece * 8
    if not ALONE or warps > _MOST_WARPS or held > _MOST_ALONE:
        return found
    for row_tiles in (1, 2):
        tiles = math.ceil(layer.rows / (8 * row_tiles))
        tile = math.ceil(layer.rows / tiles)
        used = held + 8 * layer.gates * row_tiles + 8 * (layer.gates + 2) * (row_tiles - 1)
        shared = 2 * padded * layer.size * 8 * row_tiles * (layer.gates if backward else 1)
        if tile <= 8 * (row_tiles - 1) or used > _MOST_USED or shared > chip.shared:
            continue
        groups = layer.groups * tiles
        # Blocks that share a multiprocessor; each takes a KiB of its memory more than it asks for.
        on_one = min(_REGISTERS // (256 * 32 * warps), (chip.shared + KIB) // (shared + KIB))
        at_once = min(groups, on_one * chip.blocks)
        launches = math.ceil(groups / at_once)
        busy = math.ceil(min(groups, at_once) / chip.blocks)  # blocks that share one
        cost = launches * _microseconds_alone(
            backward=backward,
            gates=layer.gates,
            work=busy * warps * row_tiles,
            depth=padded // piece,
        )
        found.append(Plan(warps, padded, 1, tile, tiles, shared, at_once, launches, 0, cost, True))
    return found


def _microseconds_alone(*, backward, gates, work, depth):
    """What a step takes, about: predicted, for an H100 at 1.7 GHz, and not yet measured.

    A barrier, the trip through shared memory and the waits in between: 250 cycles. A matrix
    instruction keeps its quarter of a multiprocessor busy for 8 cycles. Of other instructions,
    there are some 20 for each gate of a unit, and 35 backward: those of an LSTM in bfloat16, as
    ``python -m benchmarks registers`` counts them. In float16 and of a GRU there are more, up to
    30 and 57.

    Args:
      backward: the kernel.
      gates: of the layer.
      work: warps times their tiles of rows on a multiprocessor, each with 16 units of 8 rows.
      depth: of a gate's products, in pieces.
    """
    multiplied = work / 4 * gates * depth * 2 * 8
    updated = work / 4 * 4 * gates * (35 if backward else 20)
    return (250 + max(multiplied, 150) + updated) / 1700


def _microseconds(
    *, backward, cluster, blocks, each, row_tiles, products, read, weights, sums, written
):
    """What a step takes, about.

    Without clusters, fitted to the times of 220 kernels on an H100, LSTM and GRU, H from 64 to
    2048 and B from 1 to 1024: off by 9% in the mean; the plan it calls cheapest takes 1.04 times
    the best one's. Clusters are predicted, not measured: what grows with the blocks is taken to
    grow with those that wait for the same word; sending the sums costs a fixed time.

    Args:
      backward: the kernel.
      cluster: blocks that divide K.
      blocks: that exchange.
      each: units of a thread.
      row_tiles: a tile of rows, in those of a matrix instruction.
      products: pairs of matrix instructions in a block.
      read: bytes that a block reads of the exchange.
      weights, sums: bytes of shared memory.
      written: bytes that all blocks put down.
    """
    return (
        0.48
        + 0.25 * backward
        + 0.0145 * blocks / cluster
        + (_SENT if cluster > 1 else 0)
        + (0.43 + 0.09 * backward) * each
        + 0.14 * (row_tiles - 1)
        + 1.6e-3 * products
        + 1.6e-5 * read
        + 3.4e-6 * weights
        + 7.1e-6 * sums
        + 2.6e-7 * written
    )


def up(n, multiple):
    return -(-n // multiple) * multiple
