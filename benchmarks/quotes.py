"""Puts what the kept results say into docs/benchmarks.md, where it marks the place.

Between ``<!-- the words of NAME -->`` and ``<!-- -->`` stand the words of ``results/NAME.json``,
or a table if it has none. So the page says what a command said of the result that is kept, and
nothing is copied by hand.
"""

import argparse
import json
import re
import textwrap

from benchmarks import record

PAGE = record.RESULTS.parents[1] / "docs" / "benchmarks.md"
MARKED = re.compile(r"(<!-- the words of ([\w-]+) -->\n)[^<]*(<!-- -->)")
CONTENDERS = {"jaxrnn": "jaxrnn", "scan": "scan of the step", "linen": "Flax Linen"}


def main(argv=None):
    """Runs the job; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quotes",
        description="Puts what the results say into docs/benchmarks.md.",
    )
    parser.parse_args(argv)
    PAGE.write_text(quoted(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


def quoted(page):
    """The text of the page with each result's words between their marks."""
    return MARKED.sub(lambda mark: f"{mark[1]}{_words(mark[2])}\n{mark[3]}", page)


def _words(name):
    result = json.loads((record.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if "words" not in result:
        return _kernels(result["rows"])
    wrap = textwrap.TextWrapper(
        width=99, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )
    return "\n".join(map(wrap.fill, result["words"]))


def _kernels(rows):
    """Kernels a step of the small layer in float32, a column for each contender."""
    cases = {}
    for row in rows:
        if row["dtype"] == "float32" and row["shape"].startswith("small "):
            shape, case = row["shape"], f"{row['cell'].upper()} {row['direction']}"
            counts = cases.setdefault(case.replace("_", " "), {})
            counts[row["contender"]] = f"{row['a_step']:.3g}"
    lines = [[f"float32, {shape}", *CONTENDERS.values()], ["---"] * (1 + len(CONTENDERS))]
    lines += [[case, *(counts[name] for name in CONTENDERS)] for case, counts in cases.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
