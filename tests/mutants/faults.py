"""The table of faults: those chosen by hand (chosen.txt), and those drawn by a seed (drawn.txt).

A fault is written as a few lines, with an empty one after it:

    PATH: WORD
    tests: ARGUMENTS OF PYTEST      any number of these; none for the tests that own the file
    reason: WHY                     nobody can notice it; left out where somebody has to
    -a text of the file
    +what takes its place
"""

import re
from pathlib import Path
from typing import NamedTuple

from .owners import owners

CHOSEN, DRAWN = (Path(__file__).with_name(f"{name}.txt") for name in ("chosen", "drawn"))


class Fault(NamedTuple):
    """One small edit of one file.

    Attributes:
      path: of the file, from the checkout's root.
      word: what tells it from other faults of the file.
      before: a text that stands once in the file.
      after: what takes its place.
      tests: command lines of pytest, one of which has to notice it; none for the file's owners.
      reason: why none can.
    """

    path: str
    word: str
    before: str
    after: str
    tests: tuple[str, ...] = ()
    reason: str = ""

    @property
    def name(self):
        return f"{self.path}: {self.word}"

    @property
    def lines(self):
        """The command lines to run."""
        return self.tests or owners(self.path)

    def planted(self, text):
        """The text of the file with the fault in it.

        Raises:
          ValueError: the file has not, or no longer, one place for it.
        """
        count = text.count(self.before)
        if count != 1:
            raise ValueError(f"{self.name}: its text stands {count} times in the file, want 1")
        return text.replace(self.before, self.after)


def table():
    """All faults, those of one file after the other."""
    return sorted(read(CHOSEN.read_text()) + read(DRAWN.read_text()), key=lambda f: f.path)


def read(text):
    """The faults of a text."""
    return [_fault(block) for block in re.split(r"\n\n+", text.strip("\n")) if block]


def write(faults):
    """The text of faults."""
    return "\n".join(map(_text, faults))


def _fault(block):
    title, *rest = block.split("\n")
    path, _, word = title.partition(": ")
    of = lambda mark: [line.removeprefix(mark) for line in rest if line.startswith(mark)]
    unknown = [line for line in rest if not line.startswith(("-", "+", "tests: ", "reason: "))]
    if not word or unknown:
        raise ValueError(f"no fault: {block}")
    return Fault(
        path,
        word,
        "\n".join(of("-")),
        "\n".join(of("+")),
        tuple(of("tests: ")),
        " ".join(of("reason: ")),
    )


def _text(fault):
    lines = [fault.name, *(f"tests: {line}" for line in fault.tests)]
    lines += [f"reason: {fault.reason}"] if fault.reason else []
    lines += [f"-{line}" for line in fault.before.split("\n")]
    lines += [f"+{line}" for line in fault.after.split("\n")]
    return "\n".join(lines) + "\n"
