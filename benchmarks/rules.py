"""Matrix memories by their rules: chunks and steps beside linear attention, and memory by T.

Each rule runs in chunks, as accelerators run it, as a scan of the step, and as the library
chooses; linear attention of the same size takes turns with it. How much memory a program needs is
its compiler's plan, and nothing runs for it. A run goes on where another stopped: rows that the
file has are not made again.
"""

import argparse
import datetime
import functools
import itertools

import jax

from benchmarks.shared import display, machine, memory, memory_rules, record, timing
from benchmarks.shared.options import several
from benchmarks.shared.words import listed

PARTS = ("memory", "times")
LENGTHS = (1024, 4096, 16384)
FORMS = {"chunks": memory_rules.chunks, "jaxrnn": memory_rules.ours, "scan": memory_rules.scan}
MOST = 3.0  # times linear attention's, a Householder step, that chunks may take
NOTES = {
    "jaxrnn": "as the library chooses: on a CPU the steps of some rules, not chunks",
    "samples": "seconds of the forward, the second of two calls in a row; sample i of all"
    " contenders is from round i; those with `base` are linear attention's, of the same size",
    "chunks, chosen": "time of chunks, and of what the library chooses, over that of linear"
    " attention's; of a rule that writes several times a step, for each time:"
    " [median, lower quartile, upper]",
    "scan": "time of the scan of the step over jaxrnn's, in the same way",
    "memory": f"{memory.NOTE}; of the forward, and of the gradient of all arrays",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks rules",
        description="Times the rules of matrix memories, and asks how much memory they take.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "rules", memory_rules.RULES)
    several(parser, "parts", PARTS)
    several(parser, "lengths", LENGTHS, kind=int)
    for name, usual in dict(batch=1, heads=4, width=64).items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each row, about")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console, about = parse(argv), display.console(), machine.describe()
    begin = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = chosen.out / f"rules-{about['platform']}.json"
    sizes = {name: getattr(chosen, name) for name in ("batch", "heads", "width")}
    before = record.before(path, sizes)
    rows, recorded = before.get("rows", []), before.get("recorded", {})
    known = {_case(row) for row in rows}
    wanted = [
        (part, rule, length)
        for part in chosen.parts
        for length in chosen.lengths
        for rule in chosen.rules
    ]
    cases = [case for case in wanted if case not in known]
    console.print(f"[bold]Matrix memories[/]\n{machine.line(about)}")
    console.print(f"{len(wanted) - len(cases)} of {len(wanted)} rows are there already\n")
    with display.progress(console, len(cases)) as step:
        for part, rule, length in cases:
            size = memory_rules.Size(length, *sizes.values())
            with step(f"{part:<6} {rule:<16} {size}") as done:
                row = {"part": part, "rule": rule, "T": length}
                row |= planned(rule, size) if part == "memory" else timed(rule, size, chosen)
                done(_brief(row))
            rows.append(row)
            recorded[part] = {"date": begin, "machine": about}
            record.save(
                path,
                {
                    "benchmark": "rules",
                    "recorded": recorded,
                    "options": sizes,
                    "notes": NOTES,
                    "words": sentences(rows),
                    "rows": rows,
                },
            )
    for sentence in sentences(rows):
        console.print(sentence)
    console.print(f"\nwritten: {path}")
    return 0


def planned(rule, size):
    """How many bytes the programs need, forward and with a gradient."""

    def loss(forward, taken):
        return (forward(taken) ** 2).sum()

    taken, found = jax.eval_shape(lambda: memory_rules.arrays(rule, size)), {}
    for name in ("jaxrnn", "scan"):
        forward = functools.partial(FORMS[name], rule)
        ways = {"forward": forward, "gradient": jax.grad(functools.partial(loss, forward))}
        found[name] = {
            way: memory.planned(timing.compiled(program, taken)[0])
            for way, program in ways.items()
        }
    return {"memory": found}


def timed(rule, size, chosen):
    """Seconds of every form, and of linear attention in turn with them."""
    calls, writes = {}, memory_rules.RULES[rule].writes
    for prefix, name in (("", rule), ("base ", memory_rules.BASE)):
        taken = memory_rules.arrays(name, size)
        for form in FORMS if not prefix else ("chunks", "jaxrnn"):
            program, _ = timing.compiled(functools.partial(FORMS[form], name), taken)
            calls[prefix + form] = functools.partial(program, taken)
    samples = timing.interleaved(calls, seconds=chosen.seconds)
    over = lambda a, b, by=1: [r / by for r in timing.ratio(samples[a], samples[b])]
    return {
        "samples": samples,
        "chunks": over("chunks", "base chunks", writes),
        "chosen": over("jaxrnn", "base jaxrnn", writes),
        "scan": over("scan", "jaxrnn"),
        "load": machine.load(),
    }


def sentences(rows):
    """What the rows say."""
    said = []
    for length in sorted({row["T"] for row in rows if row["part"] == "times"}):
        times = {r["rule"]: r for r in rows if (r["part"], r["T"]) == ("times", length)}
        over = [f"{n} {r['chunks'][0]:.1f}" for n, r in times.items() if r["chunks"][0] > MOST]
        chosen, scan = (
            _range((row[name][0], rule) for rule, row in times.items())
            for name in ("chosen", "scan")
        )
        said.append(
            f"T={length:,}: in chunks, {len(times) - len(over)} of {len(times)} rules take at most"
            f" {MOST:.0f} times linear attention's time, a write"
            f"{f'; more: {listed(over)}' if over else ''}. As the library chooses, they take"
            f" {chosen} times linear attention's; a scan of the step takes {scan} times ours."
        )
    for way, name in itertools.product(("forward", "gradient"), ("jaxrnn", "scan")):
        if growths := _growths(rows, name, way):
            said.append(
                f"memory, {way}, {name}: bytes a step at T={max(LENGTHS):,} are {_range(growths)}"
                f" of those at T={min(LENGTHS):,}."
            )
    return said


def _range(ratios):
    """The least and the most of ``(ratio, rule)``."""
    ratios = sorted(ratios)
    (least, first), (most, last) = ratios[0], ratios[-1]
    return f"{least:.2f} ({first}) to {most:.2f} ({last})"


def _growths(rows, name, way):
    """Bytes a step of the longest sequence over the shortest's: ``(ratio, rule)`` of each rule."""
    bytes_of = {
        (row["rule"], row["T"]): row["memory"][name][way] / row["T"]
        for row in rows
        if row["part"] == "memory"
    }
    least, most = min(LENGTHS), max(LENGTHS)
    return [
        (size / bytes_of[rule, least], rule)
        for (rule, length), size in bytes_of.items()
        if length == most and (rule, least) in bytes_of
    ]


def _brief(row):
    if row["part"] == "memory":
        found = row["memory"]["jaxrnn"]
        return ", ".join(f"{way} {size / 2**20:.1f} MiB" for way, size in found.items())
    chunks, scan = (f"{row[name][0]:.2f}" for name in ("chunks", "scan"))
    return f"chunks {chunks} of linear attention's, scan {scan} of jaxrnn's"


def _case(row):
    return row["part"], row["rule"], row["T"]
