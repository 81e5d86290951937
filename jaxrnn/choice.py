"""Choosing an implementation, and saying why.

A table of implementations is a dict from name to module, the best first. A module's
``unsupported(problem, operands, platform)`` is None where it can run, else the reason why not.
"""

import contextlib
import contextvars
from typing import NamedTuple

REFERENCE = "reference"
NAMES = (REFERENCE, "xla", "gpu")  # every name that `implementation=` can have, of any operation


class Choice(NamedTuple):
    """What one operation of a cell runs on.

    Attributes:
      operation: the operation and its sizes.
      runs: the implementation's name.
      others: why each other implementation does not run.
    """

    operation: str
    runs: str
    others: dict[str, str]


class Explanation(NamedTuple):
    """What ``jaxrnn.explain`` found; prints as a table.

    Attributes:
      cell: the cell, as it prints.
      platform: the platform asked about.
      choices: one for each operation of the cell, in the order they run.
    """

    cell: str
    platform: str
    choices: tuple[Choice, ...]

    def __str__(self):
        lines = [f"{self.cell} on {self.platform}"]
        for choice in self.choices:
            lines.append(f"  {choice.operation}")
            lines.append(f"    {choice.runs:<10} runs")
            lines += [f"    {name:<10} no: {why}" for name, why in choice.others.items()]
        if not self.choices:
            lines.append("  no recurrence, nothing to choose")
        return "\n".join(lines)


def choose(table, problem, platform, operands):
    """The module that runs ``problem`` on ``platform``.

    Raises:
      ValueError: ``problem.implementation`` names one that cannot.
    """
    name = problem.implementation
    if name is None:
        fits = (m for m in table.values() if m.unsupported(problem, operands, platform) is None)
        return next(fits)
    why = table[name].unsupported(problem, operands, platform)
    if why is not None:
        raise ValueError(f"implementation={name!r} cannot run this on {platform}: {why}")
    return table[name]


_recorder = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def recording(platform):
    """Collects into the list it gives the choices of all operations traced inside."""
    choices = []
    token = _recorder.set((platform, choices))
    try:
        yield choices
    finally:
        _recorder.reset(token)


def record(operation, table, problem, operands):
    """Tells ``explain`` what ``operation`` runs on; nothing if nobody asked."""
    if _recorder.get() is None:
        return
    platform, choices = _recorder.get()
    asked = problem.implementation
    runs, others = (REFERENCE if asked == REFERENCE else None), {}
    for name, module in table.items():
        why = module.unsupported(problem, operands, platform)
        if why is None and asked not in (None, name):
            why = f"implementation={asked!r} was asked for"
        elif why is None and runs is not None:
            why = f"{runs} is faster"
        if why is None:
            runs = name
        else:
            others[name] = why
    if runs != REFERENCE:
        others[REFERENCE] = "the specification: runs when it is asked for"
    choices.append(Choice(operation, runs, others))


def record_reference(operation, why):
    """The same for an operation that has no implementation but its reference."""
    if _recorder.get() is not None:
        others = {name: why for name in NAMES if name != REFERENCE}
        _recorder.get()[1].append(Choice(operation, REFERENCE, others))
