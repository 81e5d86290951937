"""Plants every fault and says what tests make of it: ``python -m tests.mutants [NAME ...]``."""

import argparse
import datetime
import fnmatch
import hashlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from . import faults
from .scratch import NOTICED, Scratch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "mutants.jsonl"  # which Git ignores
RECORD = Path(__file__).with_name("results.json")


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description="Plants faults in a copy of the checkout, one at a time, and runs the tests.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="of faults, with * and ?, as 'jaxrnn/_src/ops/linear_scan/*'; all if none is given",
    )
    parser.add_argument(
        "--range", metavar="FIRST:END", default=":", help="of their numbers in --list"
    )
    parser.add_argument(
        "--tests", metavar="CHECKOUT", type=Path, default=ROOT, help="another one's tests"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        default=RESULTS,
        help="a line for each run, as it ends; what is there is not run again",
    )
    parser.add_argument("--list", action="store_true", help="prints the faults, and runs nothing")
    parser.add_argument(
        "--record", action="store_true", help=f"writes into {RECORD.name}: for a commit"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs what is asked for; the exit status is 0 if every fault was noticed or has a reason."""
    asked = parse(argv)
    chosen = [
        (number, fault)
        for number, fault in enumerate(faults.table())
        if not asked.names or any(fnmatch.fnmatch(fault.name, name) for name in asked.names)
    ]
    if not chosen:
        raise SystemExit(f"no fault is named {' or '.join(asked.names)}; a file's are 'FILE*'")
    first, _, end = asked.range.partition(":")
    inside = range(int(first or 0), int(end or sys.maxsize))
    chosen = [(number, fault) for number, fault in chosen if number in inside]
    if asked.list:
        for number, fault in chosen:
            print(f"{number:>3}  {fault.name}\n{_edit(fault)}\n     {' ; '.join(fault.lines)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="jaxrnn-mutants-") as folder:
        scratch = Scratch(folder, ROOT, asked.tests)
        scratch.check()
        runs = Runs(asked.results, scratch)
        rows = []
        for number, fault in chosen:
            rows.append((fault, runs.of(fault)))
            print(_row(number, *rows[-1]), flush=True)
    report(rows)
    if asked.record:
        _record(rows)
    return int(any(not _is_well(*row) for row in rows))


class Runs:
    """Runs, and the results of those before.

    Args:
      path: of the file where results are.
      scratch: a ``Scratch``.
    """

    def __init__(self, path, scratch):
        self.path, self.scratch, self.known = path, scratch, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else ()
        for row in map(json.loads, lines):
            self.known[row["key"]] = row

    def of(self, fault):
        """The result of a fault: of one line of its tests after the other, until it is noticed.

        Tests that are not green without it are no witnesses.
        """
        lines = [line for line in fault.lines if self.scratch.present(line)]
        seconds, run = 0, {"result": "broken", "by": f"the suite has none of {fault.lines}"}
        for line in lines:
            whole = self._once(line, 1800)
            if whole["result"] != "green":
                run = whole | {"result": f"{whole['result']} without the fault"}
                break
            run = self._once(line, 60 + 3 * whole["seconds"], fault)
            seconds += run["seconds"]
            if run["result"] != "green":
                break
        return run | {"seconds": round(seconds, 1)}

    def _once(self, line, limit, fault=None):
        key = self.scratch.key(line, fault)
        if key not in self.known:
            outcome = self.scratch.run(line, limit, fault)
            name = fault.name if fault else None
            row = {"fault": name, "tests": line, **outcome._asdict(), "key": key}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.known[key] = row
            if fault is None:
                print(f"      {outcome.seconds:>6.1f} s  {outcome.result:<8}  {line}", flush=True)
        return self.known[key]


def report(rows):
    """Prints what the table says."""
    count = Counter(run["result"] for _, run in rows)
    seconds = sum(run["seconds"] for _, run in rows)
    words = ", ".join(f"{n} {result}" for result, n in count.most_common())
    print(f"\n{len(rows)} faults in {seconds / 60:.1f} minutes: {words}")
    for fault, run in rows:
        if run["result"] not in NOTICED:
            why = fault.reason or run["by"] or "NOBODY NOTICED"
            print(f"\n{fault.name}: {run['result']}\n{_edit(fault)}\n     {why}")


def _is_well(fault, run):
    return run["result"] in NOTICED or (run["result"] == "green" and bool(fault.reason))


def _row(number, fault, run):
    by = run["by"].removeprefix("FAILED ").removeprefix("tests/")
    return f"{number:>4}  {run['seconds']:>6.1f} s  {run['result']:<8}  {fault.name}  {by[:90]}"


def _edit(fault):
    lines = [f"     - {line}" for line in fault.before.split("\n")]
    return "\n".join(lines + [f"     + {line}" for line in fault.after.split("\n")])


def _record(rows):
    """Of faults that were not run, what was recorded before of the same edit stays."""
    from benchmarks.shared import machine, record

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {"rows": []}
    found = {row["fault"]: {"date": before["date"]} | row for row in before["rows"]} | {
        fault.name: {"date": now, "fault": fault.name, "edit": _digest(fault)}
        | {"result": run["result"], "seconds": run["seconds"], "by": run["by"].split(" - ")[0]}
        for fault, run in rows
    }
    table = [(fault, found.get(fault.name, {})) for fault in faults.table()]
    kept = [row for fault, row in table if row.get("edit") == _digest(fault)]
    record.save(RECORD, {"date": now, "machine": machine.describe(), "rows": kept})


def _digest(fault):
    return hashlib.sha256(f"{fault.before}\0{fault.after}".encode()).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main())
