"""The main job's rows as tables in the terminal."""

import math

from benchmarks.sequences.rows import exponent, of
from benchmarks.shared import display

TITLES = {
    "forward": "forward: the logits of a batch",
    "train": "train: loss, gradient and Adam's update for a batch",
    "decode": "decode: one token after another of one stream, after T tokens of context",
}

NOTE = (
    "time: median of a call, for decode of a token, and ± half the distance of its quartiles; the"
    " fastest of each length is bold. memory: arguments, outputs and temporaries of the compiled"
    " program. growth: the power of T that the time of one sequence, for decode of one token,"
    " grows with."
)


def show(console, rows):
    """Prints a table for each mode, all within 80 columns."""
    for mode in dict.fromkeys(row.mode for row in rows):
        console.print(_table([row for row in rows if row.mode == mode], mode))
        console.print()
    if rows:
        console.print(NOTE, style="dim")


def brief(row):
    """A row in a few words, while the others still run."""
    if row.problem is not None:
        return f"[red]{row.problem}[/]"
    rate = f"{row.tokens_per_second:>10,.0f} tokens/s"
    return f"{_time(row):<13} {rate}  compiled in {row.compile_seconds:.1f} s"


def _table(rows, mode):
    table = display.table(TITLES[mode])
    table.add_column("cell")
    for name in ("T", "B", "time", "tokens/s", "memory", "compile", "params", "growth"):
        table.add_column(name, justify="right", no_wrap=True)
    measured = of(rows, mode)
    for cell in dict.fromkeys(row.cell for row in rows):
        own = [row for row in rows if row.cell == cell]
        growth = exponent(measured.get(cell, {}))
        for row in own:
            last = row is own[-1]
            table.add_row(
                cell if row is own[0] else "",
                f"{row.length:,}",
                f"{row.batch:,}",
                *_measured(row, _fastest(row, measured)),
                f"{row.parameters:,}" if last and row.parameters else "",
                f"T^{growth:.2f}" if last and growth is not None else "",
                end_section=last,
            )
    return table


def _measured(row, fastest):
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:,.0f} MB"
    compiling = "" if row.compile_seconds is None else f"{row.compile_seconds:.1f} s"
    if row.problem is not None:
        return f"[red]{row.problem.partition(':')[0]}[/]", "", memory, compiling
    style = "[bold]" if fastest else "[not bold]"
    rate = f"{row.tokens_per_second:,.0f}"
    return f"{style}{_time(row)}[/]", f"{style}{rate}[/]", memory, compiling


def _fastest(row, measured):
    others = [by_length[row.length] for by_length in measured.values() if row.length in by_length]
    return row is min(others, key=lambda r: r.per_token.median, default=None)


def _time(row):
    """Median and quartiles of a call, in decode of a token."""
    calls = row.tokens if row.mode == "decode" else 1
    return duration(*(s * row.tokens / calls for s in row.per_token))


def duration(median, low, high):
    """Seconds in three digits and a unit, and half the distance of the quartiles in percent."""
    unit, size = ("s", 1) if median >= 1 else ("ms", 1e-3) if median >= 1e-3 else ("µs", 1e-6)
    digits = max(0, 2 - math.floor(math.log10(median / size)))
    return f"{median / size:.{digits}f} {unit} ±{(high - low) / 2 / median:>3.0%}"
