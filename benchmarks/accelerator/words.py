"""What ``accelerator`` found, as tables and in words."""

from benchmarks.accelerator.linear import NAME
from benchmarks.shared.contenders import OURS, TITLES
from benchmarks.shared.words import against, listed, quotient

OTHERS = ("linen", "cudnn", "torch")  # the same layer; attention is another one
SCANS = ("associative", "scan")  # of linear_scan
HOST = 0.8  # of a call's time; a host that takes as long to hand it over may be what is timed


def tables(display, rows):
    """A table for each direction, of layers and of ``linear_scan``."""
    found = {}
    for row in rows:
        found.setdefault((row["cell"] == NAME, row["direction"]), []).append(row)
    for (_, direction), part in sorted(found.items(), key=lambda item: item[0][0]):
        yield _table(display, part, direction)


def _table(display, rows, direction):
    found = display.table(TITLES[direction])
    names = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    for name in ("cell", "shape", "type", "runs"):
        found.add_column(name)
    for name in ("µs a step", *names):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        step = "failed"
        if OURS in row["seconds"]:
            step = f"{row['seconds'][OURS] / row['shape']['T'] * 1e6:.3g}{'*' * host(row, OURS)}"
        ratios = [
            quotient(row["ratio"][name]) + "*" * host(row, name) if name in row["ratio"] else "-"
            for name in names
        ]
        found.add_row(
            row["cell"], row["shape"]["name"], row["dtype"], row["runs"] or "-", step, *ratios
        )
    return found


def host(row, name):
    """Whether the time may be that of handing calls over, not of running them."""
    return row["host_seconds"][name] > HOST * row["seconds"][name]


def sentences(checks, rows, not_run):
    """What came out, in words; ``not_run`` has the names of checks and rows left over."""
    passed = [row["passed"] for row in checks]
    yield (
        f"Checks: {passed.count(True)} right, {passed.count(False)} failed,"
        f" {passed.count(None)} of what an implementation cannot run,"
        f" {len(not_run['checks'])} not run."
    )
    for row in checks:
        if row["passed"] is False:
            yield f"Failed: {row['name']}: {_line(row['problem'])}."
    yield f"Rows: {len(rows)} timed, {len(not_run['rows'])} not run."
    yield from _ratios(rows, OTHERS, f"the best of {listed(OTHERS)}")
    yield from _ratios(rows, ("attention",), "attention")
    yield from _ratios(rows, SCANS, f"the faster of {listed(SCANS)}")
    for name in dict.fromkeys(name for row in rows for name in row["missing"]):
        reasons = [row["missing"][name] for row in rows if name in row["missing"]]
        yield f"{name} did not run in {len(reasons)} rows; in the first: {_line(reasons[0])}."
    late = [row["name"] for row in rows if OURS in row["seconds"] and host(row, OURS)]
    if late:
        yield f"The host may be what is timed, as it takes as long: {listed(late)}."


def _ratios(rows, names, group):
    """A sentence for each direction, type and cell."""
    found = {}
    for row in rows:
        ratios = [ratio[0] for name, ratio in row["ratio"].items() if name in names]
        if ratios:
            where = f"{row['cell']} {row['direction'].replace('_', ' ')}, {row['dtype']}"
            found.setdefault(where, {})[row["shape"]["name"]] = min(ratios)
    for where, ratios in found.items():
        yield f"{where}: {against(group, ratios)}"


def _line(text):
    """Its first line; some errors are pages long."""
    return text.splitlines()[0]
