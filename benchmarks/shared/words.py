"""Ratios of times, in words."""

import statistics

EQUAL = 1.05  # times closer than this are not told apart


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
