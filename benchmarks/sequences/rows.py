"""Rows of the main job's table, and what follows from several of them."""

import dataclasses
import math
import statistics

from benchmarks.shared import timing


@dataclasses.dataclass
class Row:
    """One cell in one mode at one length.

    Attributes:
      mode: "forward", "train" or "decode".
      cell: the name of its constructor.
      length: T; for "decode" the context before the token.
      batch: B.
      parameters: how many numbers the model is.
      runs: the implementations that the cell ran on.
      tokens: how many in a call.
      samples: seconds of each call.
      compile_seconds: before the first.
      memory_bytes: arguments, outputs and temporaries of the compiled program.
      device_peak_bytes: the most the device has held since the process began, where it tells.
      problem: why there are no samples; None if there are.
    """

    mode: str
    cell: str
    length: int
    batch: int
    parameters: int | None = None
    runs: str | None = None
    tokens: int | None = None
    samples: list = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    device_peak_bytes: int | None = None
    problem: str | None = None

    @property
    def per_token(self):
        """Seconds a token: ``timing.Summary``."""
        return timing.summary([s / self.tokens for s in self.samples])

    @property
    def tokens_per_second(self):
        return 1 / self.per_token.median

    def to_json(self):
        """Everything, with what follows from the samples."""
        found = {}
        if self.samples:
            median, low, high = timing.summary(self.samples)
            found = {"median": median, "quartiles": [low, high]}
            found["tokens_per_second"] = self.tokens_per_second
        return {**dataclasses.asdict(self), **found}


def of(rows, mode):
    """The measured rows of a mode: ``{cell: {length: row}}``, in the order they were run."""
    found = {}
    for row in rows:
        if row.mode == mode and row.samples:
            found.setdefault(row.cell, {})[row.length] = row
    return found


def exponent(by_length):
    """The power of T that time grows with: the slope of log(time) over log(T), least squares.

    The time is that of one whole sequence of length T, or, in decoding, of one token after T.
    A recurrent cell has 1 and 0, attention goes towards 2 and 1.

    Args:
      by_length: ``{length: row}`` of one cell in one mode.

    Returns:
      The slope, or None for fewer than two lengths.
    """
    if len(by_length) < 2:
        return None
    times = [
        row.per_token.median * (1 if row.mode == "decode" else length)
        for length, row in by_length.items()
    ]
    logs = [[math.log(v) for v in values] for values in (by_length, times)]
    return statistics.linear_regression(*logs).slope
