"""The main job's options: checked, by name, and what they mean for one row."""

import argparse
import importlib

import jax

import jaxrnn
from benchmarks.sequences import modes
from benchmarks.shared import record
from jaxrnn._src.core import dispatch

CELLS = {
    name: value
    for name, value in sorted(vars(jaxrnn).items())
    if isinstance(value, jaxrnn.constructor) and "hidden" in value.__signature__.parameters
}


def parse(argv=None):
    """The options as ``argparse`` gives them; ``cells`` are constructors by name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="LSTM, GRU or attention for long sequences, on this machine? Times a"
        " next-byte model on real text over longer and longer sequences.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="other commands: python -m benchmarks peers, python -m benchmarks kernels",
    )
    add = parser.add_argument
    add(
        "--cells",
        nargs="+",
        metavar="CELL",
        type=constructor,
        default=[jaxrnn.lstm, jaxrnn.gru, jaxrnn.attention],
        help=f"any of {', '.join(CELLS)}, or module:name of a constructor of your own",
    )
    add(
        "--lengths",
        nargs="+",
        metavar="T",
        type=positive,
        default=[256, 1024, 4096, 16384],
        help="steps in a sequence",
    )
    add("--width", metavar="H", type=positive, default=128, help="of embedding and layers")
    add("--layers", metavar="K", type=positive, default=2, help="of the cell")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--tokens",
        metavar="N",
        type=positive,
        help="in a batch, at every length (default: one sequence of the longest)",
        default=argparse.SUPPRESS,
    )
    size.add_argument(
        "--batch",
        metavar="B",
        type=positive,
        help="sequences at every length, instead of equal tokens",
        default=argparse.SUPPRESS,
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float64"],
        default="float32",
        help="of the arithmetic; weights are trained in float32 at least",
    )
    add(
        "--mode",
        nargs="+",
        choices=list(modes.MODES),
        default=list(modes.MODES),
        help="what to time",
    )
    add(
        "--implementation",
        choices=dispatch.NAMES,
        default=argparse.SUPPRESS,
        help="the one to run (default: the best for each cell)",
    )
    add(
        "--device",
        choices=["cpu", "gpu", "tpu"],
        default=argparse.SUPPRESS,
        help="where to run (default: JAX's own choice)",
    )
    add(
        "--seconds",
        metavar="S",
        type=float,
        default=150.0,
        help="how long the whole run should take; a slow row still gets three calls",
    )
    add(
        "--repeats",
        metavar="N",
        type=positive,
        default=argparse.SUPPRESS,
        help="timed calls of every row, however long they take",
    )
    record.add_folder(parser)
    # SUPPRESS keeps a misleading "default: None" out of the help
    unset = dict.fromkeys(("tokens", "batch", "implementation", "device", "repeats"))
    chosen = parser.parse_args(argv, argparse.Namespace(**unset))
    try:
        complete(chosen)
    except (RuntimeError, TypeError, ValueError) as error:
        parser.error(str(error))
    return chosen


def complete(chosen):
    """Puts what follows from the options into them.

    Raises:
      ValueError, TypeError: the options don't fit together.
      RuntimeError: JAX has no such device.
    """
    chosen.lengths = sorted(set(chosen.lengths))
    chosen.cells = {cell.__name__: cell for cell in chosen.cells}
    chosen.mode = list(dict.fromkeys(chosen.mode))
    chosen.device = jax.devices(chosen.device)[0]
    if chosen.batch is None and chosen.tokens is None:
        chosen.tokens = chosen.lengths[-1]
    for length in chosen.lengths:
        if chosen.tokens is not None and chosen.tokens % length:
            raise ValueError(
                f"--tokens: got {chosen.tokens}, want a multiple of every length, as {length};"
                f" or give --batch instead"
            )
    for constructor in chosen.cells.values():
        cell(constructor, chosen.width, chosen.lengths[0], chosen.mode[0])


def constructor(name):
    """The constructor of a cell: one of jaxrnn's, or ``module:name``."""
    module, colon, own = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), own) if colon else CELLS.get(name)
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"got {name!r}: {error}") from error
    if not isinstance(found, jaxrnn.constructor):
        want = f"{', '.join(CELLS)}, or module:name of a constructor of cells"
        raise argparse.ArgumentTypeError(f"got {name!r}, want {want}")
    return found


def positive(text):
    """A whole number from 1."""
    number = int(text.replace(",", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, want 1 or more")
    return number


def batch(chosen, length):
    """B, the sequences in a batch."""
    return chosen.batch or chosen.tokens // length


def cell(constructor, width, length, mode):
    """A cell of ``width`` units with room for ``length`` steps, if it needs room.

    An endless stream has no room for all of it: there, attention sees the last ``length`` steps.
    """
    takes = constructor.__signature__.parameters
    room = "window" if mode == "decode" and "window" in takes else "context"
    return constructor(width, **({room: length} if room in takes else {}))


def title(chosen):
    """What is measured, in a line."""
    size = f"{chosen.tokens:,} tokens" if chosen.batch is None else f"{chosen.batch} sequences"
    layers = "1 layer" if chosen.layers == 1 else f"{chosen.layers} layers"
    return f"Next-byte model, {layers} of width {chosen.width}, {size} a batch, {chosen.dtype}"


def to_json(chosen):
    """The options as JSON has them."""
    given = {name: value for name, value in vars(chosen).items() if name != "out"}
    return {**given, "cells": list(chosen.cells), "device": chosen.device.platform}
