"""One line for each mode on how to read the table of the main job."""

from benchmarks.sequences.rows import of
from benchmarks.shared.words import listed

NAMES = {"forward": "Forward", "train": "Training", "decode": "Decoding"}


def sentences(rows):
    """Who is fastest at the longest length, and why a row is missing."""
    found = []
    for mode in dict.fromkeys(row.mode for row in rows):
        found += _fastest(of(rows, mode), NAMES[mode])
    for row in rows:
        if row.problem is not None:
            found.append(f"{NAMES[row.mode]}: {row.cell} at T={row.length:,}: {row.problem}.")
    if not found and not any(row.samples for row in rows):
        return ["Nothing was measured."]
    return found


def _fastest(measured, name):
    if len(measured) < 2:
        return
    length = max(set.intersection(*map(set, measured.values())), default=None)
    if length is None:
        return
    times = {cell: by_length[length].per_token.median for cell, by_length in measured.items()}
    first, *others = sorted(times, key=times.get)
    takes = [f"{cell} {_digits(times[cell] / times[first])}" for cell in others]
    yield f"{name} at T={length:,}: {first} is fastest; {listed(takes)} times as long."


def _digits(ratio):
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2f}"
