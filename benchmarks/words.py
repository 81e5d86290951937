"""What the rows show, in words."""

import itertools
import statistics

from benchmarks.rows import crossing, exponent, of

EQUAL = 1.05  # times closer than this are not told apart

NAMES = {"forward": "Forward", "train": "Training", "decode": "Decoding"}


def sentences(rows):
    """A few lines, each computed from the rows."""
    found = []
    for mode in dict.fromkeys(row.mode for row in rows):
        measured = of(rows, mode)
        found += [f"{NAMES[mode]}: {part}." for part in _about(measured, mode)]
    for row in rows:
        if row.problem is not None:
            where = f"{NAMES[row.mode]}: {row.cell} at T={row.length:,}"
            found.append(f"{where}: {row.problem}.")
    return found or ["Nothing was measured."]


def _about(measured, mode):
    if len(measured) == 1:
        ((cell, by_length),) = measured.items()
        rates = [f"{r.tokens_per_second:,.0f} tokens/s at T={t:,}" for t, r in by_length.items()]
        yield f"{cell} does {listed(rates)}"
    if len(measured) > 1:
        yield _fastest(measured)
        yield from _against_the_last(measured)
    growth = {cell: exponent(by_length) for cell, by_length in measured.items()}
    powers = [f"T^{power:.2f} for {cell}" for cell, power in growth.items() if power is not None]
    if powers:
        what = "one token" if mode == "decode" else "one sequence"
        yield f"the time of {what} grows as {listed(powers)}"


def _fastest(measured):
    """Who is fastest at which lengths."""
    wins = []
    for length in sorted(set().union(*measured.values())):
        times = _times(measured, length)
        best = min(times.values())
        wins.append((length, [cell for cell, time in times.items() if time < EQUAL * best]))
    parts = []
    for cells, group in itertools.groupby(wins, key=lambda win: win[1]):
        lengths = [length for length, _ in group]
        every = "every length, " if len(lengths) == len(wins) > 1 else ""
        to = f" to {lengths[-1]:,}" if len(lengths) > 1 else ""
        equal = "is fastest" if len(cells) == 1 else f"are fastest, within {EQUAL - 1:.0%},"
        parts.append(f"{listed(cells)} {equal} at {every}T={lengths[0]:,}{to}")
    return "; ".join(parts)


def _against_the_last(measured):
    """The others beside the cell that is fastest at the longest length."""
    times = _times(measured, max(set().union(*measured.values())))
    winner = min(times, key=times.get)
    for cell, by_length in measured.items():
        shared = sorted(set(by_length) & set(measured[winner]))
        if cell == winner or not shared:
            continue
        ratios = [
            by_length[t].per_token.median / measured[winner][t].per_token.median for t in shared
        ]
        ends = list(zip(shared, ratios, strict=True))[:: max(len(shared) - 1, 1)]
        (t, ratio), *last = ends
        takes = f"{_digits(ratio)} times {winner}'s time at T={t:,}"
        takes += "".join(f", {_digits(ratio)} times at T={t:,}" for t, ratio in last)
        where = crossing(by_length, measured[winner])
        if where is not None and min(ratios) < 1 / EQUAL:
            at, before, after = where
            between = f"between T={before:,} and {after:,}, near {at:,.0f}"
            yield f"{cell} is overtaken by {winner} {between}: it takes {takes}"
        elif min(ratios) > EQUAL and last:
            yield f"{cell} is slower than {winner} at every length: it takes {takes}"
        else:
            yield f"{cell} takes {takes}"


def _times(measured, length):
    return {
        cell: by_length[length].per_token.median
        for cell, by_length in measured.items()
        if length in by_length
    }


def _digits(ratio):
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2f}"


def against(group, ratios):
    """How ours compares with others.

    Args:
      group: who they are.
      ratios: ``{where: their time over ours}``.
    """
    mean, least, most = spread(ratios.values())
    lost = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio < 1 / EQUAL)
    slower = f"slower by more than {EQUAL - 1:.0%}"
    return (
        f"{mean:.2f} times as fast as {group} (geometric mean; {least:.2f} to {most:.2f}),"
        f" {f'{slower} at {lost}' if lost else f'nowhere {slower}'}."
    )


def best(row, peers=None):
    """The smallest ratio: that of the fastest peer. None where none of ``peers`` ran."""
    ran = (r[0] for name, r in row["ratio"].items() if peers is None or name in peers)
    return min(ran, default=None)


def spread(ratios):
    """Their geometric mean, the least and the most."""
    return statistics.geometric_mean(ratios), min(ratios), max(ratios)


def quotient(ratio):
    """A ratio and half the distance of its quartiles; red where ours is the slower one."""
    median, low, high = ratio
    text = f"{median:.2f} ±{(high - low) / 2:.2f}"
    return f"[red]{text}[/]" if median < 1 else text


def listed(items):
    """a, b and c."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
