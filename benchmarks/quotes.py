"""Puts what the kept results say into README.md and docs/, where a page marks it.

Between ``<!-- the words of NAME -->`` and ``<!-- -->`` stand the words of ``results/NAME.json``;
every other name of ``SAYS`` stands for a table of it. So the pages say what a command said of the
result that is kept, and nothing is copied by hand.
"""

import argparse
import json
import re
import textwrap
from collections import Counter

from benchmarks.shared import memory_rules, record, timing, words

ROOT = record.RESULTS.parents[1]
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    DOCS / "index.md",
    DOCS / "benchmarks.md",
    DOCS / "cpu-kernel.md",
    DOCS / "tasks.md",
    DOCS / "gpu-kernel.md",
    DOCS / "gpu-memories.md",
    DOCS / "gpu-predictions.md",
    DOCS / "guides" / "long-sequences.md",
    DOCS / "guides" / "many-devices.md",
    DOCS / "guides" / "serving.md",
)
MARKED = re.compile(r"(<!-- the (\w+) of ([\w-]+) -->\n)[^<]*(<!-- -->)")
MODES = {"forward": "Forward", "train": "Training", "decode": "Decoding"}
LEADS = {  # a column, and who of them was the fastest at each shape
    "Flax": ("linen", "nnx"),
    "Keras, Equinox": ("keras", "equinox"),
    "PyTorch": ("torch",),
}
RATIOS = {"linen": "Flax Linen", "torch": "PyTorch", "cudnn": "`jax.experimental.rnn`"}
LAYER = "h1024-b16"  # that the ratios are of
CONTENDERS = {"jaxrnn": "jaxrnn", "scan": "scan of the step", "linen": "Flax Linen"}
FIRST = ("elman", "gru", "lstm", "min_gru", "lru", "mlstm", "attention", "transformer_block")
LOOPS = {"tpu": "the kernel", "xla": "XLA's loop, ours", "scan": "scan of the step"}

# Microseconds of a step on an H100, LSTM, H=768, B=16, T=1024: forward, and with its gradient.
PUBLISHED = (("cuDNN", "float16", 1.96, 5.07), ("FlashRNN", "bfloat16", 4.76, 13.3))
GATES = {"lstm": 4, "gru": 3}
FLOPS = {"bfloat16": 600e12, "float16": 600e12, "tf32": 300e12}  # of XLA's matmuls: supposed

SCANS = {
    "v6e": {"tpu": "the kernel", "xla": "XLA, ours", "associative": "associative_scan"},
    "h200": {"jaxrnn": "jaxrnn", "associative": "associative_scan", "scan": "scan"},
}
BEFORE = "The results that are kept are from before there were these rows."


def main(argv=None):
    """Runs the job; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quotes",
        description="Puts what the results say into README.md and docs/.",
    )
    parser.parse_args(argv)
    for page in PAGES:
        page.write_text(quoted(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"written: {page}")
    return 0


def quoted(page):
    """The text of the page with each result's words between their marks."""
    return MARKED.sub(lambda mark: f"{mark[1]}{_said(mark[2], mark[3])}\n{mark[4]}", page)


def _said(what, name):
    result = json.loads((record.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return SAYS[what](result)


def _words(result):
    wrap = textwrap.TextWrapper(
        width=99, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )
    return "\n".join(map(wrap.fill, result["words"]))


def _tokens(result):
    """Microseconds a token, a row for each mode and length, and the power of T they grow with."""
    cases, cells = {}, dict.fromkeys(row["cell"] for row in result["rows"])
    for row in result["rows"]:
        case = f"{MODES[row['mode']]}, T={row['length']:,}"
        found = cases.setdefault(case, dict.fromkeys(cells, ""))
        if row["samples"]:
            time = 1e6 * row["median"] / row["tokens"]
            found[row["cell"]] = f"{time:.3g}" if time < 1000 else f"{time:,.0f}"
    for mode, powers in result["exponents"].items():
        what = "a token" if mode == "decode" else "a sequence"
        cases[f"{MODES[mode]}: the time of {what} grows as"] = {
            cell: "" if powers.get(cell) is None else f"T^{powers[cell]:.2f}" for cell in cells
        }
    return _table(["µs a token", *cells], cases, cells)


def _leads(result):
    """Others' times over ours: geometric mean over the shapes, least and most."""
    ratios = {}
    for row in result["rows"]:
        found = ratios.setdefault(_case(row), {column: [] for column in LEADS})
        for column, peers in LEADS.items():
            ratio = words.best(row, peers)
            found[column] += [] if ratio is None else [ratio]
    cases = {
        case: {
            column: "{:.2f} ({:.2f} to {:.2f})".format(*words.spread(several)) if several else ""
            for column, several in found.items()
        }
        for case, found in ratios.items()
    }
    columns = dict.fromkeys(LEADS)
    return _table(["float32", *columns], cases, columns)


def _loops(result):
    """The fastest of the others' times over ours, forward / with its gradient, by shape."""
    cases = {}
    shapes = dict.fromkeys(row["shape"]["name"] for row in result["rows"])
    for row in result["rows"]:
        found = cases.setdefault(f"`{row['cell']}`", dict.fromkeys(shapes, ""))
        ratio, before = words.best(row), found[row["shape"]["name"]]
        found[row["shape"]["name"]] = f"{before} / {ratio:.2f}" if before else f"{ratio:.2f}"
    return _table(["", *shapes], cases, shapes)


def _ratios(result):
    """Others' times over ours, of one layer, forward and back."""
    cases = {}
    for row in result["rows"]:
        if row["shape"]["name"] == LAYER and row["direction"] == "value_and_grad":
            ratios = {name: row["ratio"].get(name) for name in RATIOS}
            cases[f"{_case(row)}, {row['dtype']}"] = {
                name: f"{ratio[0]:.2f}" if ratio else "" for name, ratio in ratios.items()
            }
    return _table(["", *RATIOS.values()], cases, RATIOS)


def _case(row):
    return f"{row['cell'].upper()} {row['direction'].replace('_', ' ')}"


def _costs(result):
    """Times of the first page's cells over the LSTM's, forward / value and grad, by shape."""
    cases, columns = {}, {}
    for row in result["rows"]:
        shape = row["shape"]
        sizes = " ".join(f"{letter}={shape[letter]}" for letter in "BTIH")
        columns[shape["name"]] = f"{shape['name']} ({sizes})"
        if row["cell"] in FIRST:
            said = cases.setdefault(f"`{row['cell']}`", {}).setdefault(shape["name"], [])
            said.append(f"{row['ratio'][0]:.2f}")
    cases = {
        case: {shape: " / ".join(ratios) for shape, ratios in found.items()}
        for case, found in sorted(cases.items(), key=lambda c: FIRST.index(c[0].strip("`")))
    }
    return _table(["times `lstm`", *columns.values()], cases, columns)


def _cycles(result):
    """Least cycles of a step on a v6e, forward / backward, a column for each contender."""
    cases = {}
    for row in result["tpu"]:
        heads = f", {row['heads']} heads" if row["heads"] > 1 else ""
        case = f"{row['cell'].upper()} H={row['H']} B={row['B']}{heads}"
        cycles = [f"{row[way]['cycles']:,.0f}" for way in ("forward", "backward")]
        if row["chip"] == "v6e":
            cases.setdefault(case, {})[row["contender"]] = " / ".join(cycles)
    whole = {case: found for case, found in cases.items() if len(found) == len(LOOPS)}
    return _table(["v6e, bfloat16", *LOOPS.values()], whole, LOOPS)


def _kernels(result):
    """Kernels a step of the small layer in float32, a column for each contender."""
    cases = {}
    for row in result["gpu"]:
        if row["dtype"] == "float32" and row["shape"].startswith("small "):
            shape, case = row["shape"], f"{row['cell'].upper()} {row['direction']}"
            counts = cases.setdefault(case.replace("_", " "), {})
            counts[row["contender"]] = f"{row['a_step']:.3g}"
    return _table([f"float32, {shape}", *CONTENDERS.values()], cases, CONTENDERS)


def _scans(result):
    """Bytes of ``linear_scan`` as a multiple of the least, and of a GPU the kernels in all."""
    rows = result.get("linear")
    if not rows:
        return BEFORE
    tables = []
    for chip, columns in SCANS.items():
        cases = {}
        for row in rows:
            if row["chip"] == chip:
                factors = ", constant factors" if row["constant"] else ""
                case = f"{row['dtype']} B={row['B']} D={row['D']}{factors}"
                ways = row["forward"], row["backward"]
                said = " / ".join(f"{way['times_least']:.2f}" for way in ways)
                if "kernels" in ways[0]:
                    kernels = " / ".join(f"{way['kernels']:,}" for way in ways)
                    said += f"; {kernels} kernels"
                cases.setdefault(case, dict.fromkeys(columns, ""))[row["contender"]] = said
        tables.append(_table([f"{chip}, T={rows[0]['T']:,}", *columns.values()], cases, columns))
    return "\n\n".join(tables)


def _memory(result):
    """Memory and time of a gradient, by what it stores."""
    columns = {"memory": "MiB", "time": "CPU seconds", "ratio": "over the default's"}
    cases = {}
    for row in result["rows"]:
        seconds, *_ = timing.summary(row["samples"])
        ratio, low, high = row["ratio"]
        name = "a scan of the step" if row["name"] == "scan" else f'`residuals="{row["name"]}"`'
        cases[name] = {
            "memory": f"{row['memory'] / 2**20:.0f}",
            "time": f"{seconds:.2f}",
            "ratio": f"{ratio:.2f} ({low:.2f} to {high:.2f})",
        }
    return _table(["", *columns.values()], cases, columns)


def _lengths(result):
    """The longest length of each cell and task, each seed's, beside what a cell costs."""
    tasks = dict.fromkeys(row["task"] for row in result["rows"])
    costs = {"parameters": "parameters", "state": "state", "flops": "FLOP a step"}
    cases = {}
    for row in result["rows"]:
        found = cases.setdefault(row["cell"], dict.fromkeys([*tasks, *costs], ""))
        found[row["task"]] += f"{', ' if found[row['task']] else ''}{row['longest'] or '-'}"
        found |= {cost: f"{row[cost]:,.0f}" for cost in costs}
    return _table(["", *tasks, *costs.values()], cases, [*tasks, *costs])


def _steps(result):
    """Microseconds a step that a plan's formula predicts for the first chip, of all its layers."""
    cases, columns = {}, {}
    first = result["rows"][0]["architecture"]
    for row in (row for row in result["rows"] if row["architecture"] == first):
        found = cases.setdefault(f"{row['cell'].upper()} H={row['H']} B={row['B']}", {})
        figure = f"{row['microseconds']:.2f}" if row["plan"] else "declined"
        found.setdefault(row["product"], []).append(figure)
        columns.setdefault(row["product"], row["product"])
    shown = {
        case: {name: " / ".join(_once(found.get(name, []))) for name in columns}
        for case, found in cases.items()
    }
    return _table(["forward / backward", *columns], shown, columns)


def _beside(result):
    """Of H100 layers that others have timed: microseconds a step of theirs, and predicted ours."""
    first, predicted, cases = result["rows"][0]["architecture"], {}, {}
    for row in result["rows"]:
        chip, _, clusters = row["architecture"].partition(" ")
        layer = tuple(row[name] for name in ("cell", "H", "B", "product", "direction"))
        if chip == first and row["plan"]:
            predicted.setdefault(layer, {})[clusters] = row["microseconds"]
    columns = {"theirs": "µs a step", "": "jaxrnn, predicted", "clusters": "in clusters"}
    for peer, cell, H, B, product, both, theirs in sorted(_on_h100(), key=lambda row: row[1:-1]):
        ways = ("forward", "backward") if both else ("forward",)
        parts = [predicted[cell, H, B, product, way] for way in ways]
        # Beside the kernel: the inputs' matmul; and, backward, those for xs, w and r.
        outside = (4 if both else 1) * 2 * B * H * H * GATES[cell] / FLOPS[product] * 1e6
        cases[f"{cell.upper()} H={H} B={B} {product} {' and '.join(ways)}, {peer}"] = {
            "theirs": f"{theirs:.2f}",
            "": f"{sum(part[''] for part in parts) + outside:.2f}",
            "clusters": f"{sum(min(part.values()) for part in parts) + outside:.2f}"
            if any("clusters" in part for part in parts)
            else "",
        }
    return _table(["H100", *columns.values()], cases, columns)


def _on_h100():
    """What others take: as they published it, and as it was measured here."""
    for peer, product, *times in PUBLISHED:
        for both, theirs in enumerate(times):
            yield f"{peer}, published", "lstm", 768, 16, product, both, theirs
    path = record.RESULTS / "accelerator-nvidia-h100-80gb-hbm3.json"
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        shape, both = row["shape"], row["direction"] != "forward"
        if row["cell"] in GATES and shape["B"] == 16 and "torch" in row["seconds"]:
            product = "tf32" if row["dtype"] == "float32" else row["dtype"]
            theirs = 1e6 * row["seconds"]["torch"] / shape["T"]
            yield "PyTorch", row["cell"], shape["H"], 16, product, both, theirs


def _clusters(result):
    """Of the first chip's layers in clusters: predicted microseconds a step, and instructions.

    The microseconds without clusters stand before the arrow.
    """
    first, without, cases = result["rows"][0]["architecture"], {}, {}
    columns = {"steps": "µs a step", "registers": "registers", "spilled": "bytes spilled"}
    columns |= {"a_step": "instructions a step", "to_publish": "to the first word"}
    for row in result["rows"]:
        if row["architecture"] == first:
            without[_kernel(row)] = row.get("microseconds")
        elif row["architecture"] == f"{first} clusters":
            before = without.get(_kernel(row))
            cases[_kernel(row)] = {
                "steps": f"{before:.2f} → {row['microseconds']:.2f}",
                "registers": str(row["registers"]),
                "spilled": str(max(row["spilled"])),
                "a_step": f"{row['loop']['a_step']:,}",
                "to_publish": str(row["loop"]["to_publish"]),
            }
    return _table(["", *columns.values()], cases, columns)


def _once(some):
    return ["declined"] if "declined" in some else some


def _registers(result):
    """Of each chip, how many kernels there are, and what spills."""
    cases = {}
    columns = ("kernels", "declined", "registers", "spill", "in the loop")
    for row in result["rows"]:
        cases.setdefault(row["architecture"], []).append(row)
    shown = {}
    for name, rows in cases.items():
        there = [row for row in rows if row["plan"]]
        spilling = [row for row in there if max(row["spilled"]) > 16]
        inside = [row for row in spilling if _spilled(row)]
        worst = max(inside, key=_spilled, default=None)
        most = f"; at most {_spilled(worst):.1%} of a step: {_kernel(worst)}" if worst else ""
        types = Counter(row["product"] for row in there)
        shown[name] = {
            "kernels": ", ".join(f"{count} {product}" for product, count in types.items()),
            "declined": str(len(rows) - len(there)),
            "registers": str(max((row["registers"] for row in there), default=0)),
            "spill": str(len(spilling)),
            "in the loop": f"{len(inside)}{most}",
        }
    return _table(["chip", *columns], shown, columns)


def _spills(result):
    """The kernels that spill more than 16 bytes in a step: how many, and the cost, by chip."""
    cases, chips = {}, {}
    order = list(dict.fromkeys(row["product"] for row in result["rows"]))
    for row in sorted(result["rows"], key=lambda row: order.index(row["product"])):
        if row["plan"] and max(row["spilled"]) > 16 and row["loop"]["spilled_in_loop"]:
            cost = f"{max(row['spilled'])} ({_spilled(row):.1%})"
            cases.setdefault(_kernel(row), {})[row["architecture"]] = cost
    for row in result["rows"]:
        chips.setdefault(row["architecture"])
    shown = {case: dict.fromkeys(chips, "") | found for case, found in cases.items()}
    return _table(["bytes (of a step's instructions)", *chips], shown, chips)


def _chunks(result):
    """Of each matrix memory, what XLA's chunks move and launch, and the time that it predicts."""
    columns = {
        "bytes": "MB moved",
        "least": "the least MB",
        "kernels": "kernels",
        "launching": "ms, 2 µs a kernel",
        "moving": "ms, bytes moved",
        "ideal": "ms, the least",
    }
    cases = {}
    for row in result["rows"]:
        predicted = row["milliseconds"]
        case = (
            f"{row['gate']}, {row['dtype']}, B={row['B']} N={row['N']} D={row['D']}, {row['way']}"
        )
        cases[case] = {
            "bytes": f"{row['bytes'] / 1e6:,.0f}",
            "least": f"{row['least'] / 1e6:,.0f}",
            "kernels": f"{row['kernels']:,}",
            "launching": f"{predicted['kernels']:.1f}",
            "moving": f"{predicted['bytes']:.2f}",
            "ideal": f"{predicted['least']:.2f}",
        }
    return _table([f"T={result['rows'][0]['T']:,}", *columns.values()], cases, columns)


def _products(result):
    """Of our kernels for a matrix memory, the registers on each chip, and what spills."""
    cases, chips, names = {}, {}, {}
    for row in result["kernels"]:
        case = f"{row['gate']}, {row['dtype']}, D={row['D']}"
        spilled = f" ({max(row['spilled'])})" if any(row["spilled"]) else ""
        if max(row["spilled"]) > 16:
            part = row["spilled_in_loop"] / row["a_tile"]
            spilled = f" ({max(row['spilled'])}: {part:.1%} of a tile)"
        found = cases.setdefault(case, {}).setdefault(row["architecture"], {})
        found[row["kernel"]] = f"{row['registers']}{spilled}"
        chips.setdefault(row["architecture"])
        names.setdefault(row["kernel"])
    shown = {
        case: {chip: " / ".join(found.get(chip, {}).values()) for chip in chips}
        for case, found in cases.items()
    }
    return _table([" / ".join(names), *chips], shown, chips)


def _exchanges(result):
    """Of each cell, what devices exchange, forward and with the gradient, and their memory."""
    few, many = sorted(map(int, result["rows"][0]["memory"]))
    columns = {
        "exchanges": "exchanges",
        "states": "bytes of states",
        "sums": "bytes of sums",
        "long": "gathers or sums over time",
        "memory": f"KiB a device, {few} and {many} devices",
        "error": "error",
    }
    cases = {}
    for row in result["rows"]:
        ways = {}
        for way in (row["forward"], row["gradient"]):
            for name, count in (way | {"states": way["bytes"] - way["sums"]}).items():
                ways.setdefault(name, []).append(f"{count:,}")
        memory = [row["memory"][str(count)] / 1024 for count in (few, many)]
        cases[f"`{row['cell']}`"] = {
            **{name: " / ".join(counts) for name, counts in ways.items()},
            "memory": " and ".join(f"{kib:,.0f}" for kib in memory),
            "error": f"{row['error']:.0e}",
        }
    return _table(["forward / gradient", *columns.values()], cases, columns)


def _copies(result):
    """Of the linear recurrence: its time by that of a copy, and others' times by its own."""
    peers = {"xla": "XLA, ours", "associative": "associative_scan", "scan": "scan"}
    columns = {"bytes": "MiB", "time": "µs", "copy": "by a copy's", "negative": "by -x", **peers}
    cases = {}
    for row in result["rows"]:
        sizes = " ".join(f"{letter}={size:,}" for letter, size in row["shape"].items())
        ratios = {name: ratio[0] for name, ratio in row["ratio"].items()}
        cases[f"{row['direction']}, {row['kind']}, {sizes}"] = {
            "bytes": f"{row['bytes'] / 2**20:,.1f}",
            "time": f"{1e6 * row['seconds']['jaxrnn']:,.0f}",
            **{name: f"{ratios[name]:.2f}" for name in ("copy", "negative")},
            **{name: f"{1 / ratios[name]:.2f}" for name in peers},
        }
    return _table(["", *columns.values()], cases, columns)


def _readings(result):
    """Of a step of a stream: its time beyond an empty call, in readings of the weights too."""
    peers = {"linen": "Flax Linen", "torch": "PyTorch"}
    columns = {"bytes": "MiB", "call": "µs a call", "step": "beyond an empty call"}
    columns |= {"reads": "in readings", **peers}
    cases = {}
    for row in result["rows"]:
        layers = "" if row["layers"] == 1 else f"{row['layers']} layers, "
        cases[f"{row['cell'].upper()}, {layers}H={row['H']}"] = {
            "bytes": f"{row['bytes'] / 2**20:.2f}",
            "call": f"{1e6 * row['seconds']['jaxrnn']:.1f}",
            "step": f"{1e6 * row['step'][0]:.1f}",
            "reads": f"{row['reads'][0]:.2f}",
            **{name: f"{row['ratio'][name][0]:.2f}" for name in peers},
        }
    return _table(["", *columns.values()], cases, columns)


def _rules(result):
    """Of each rule of a memory, least cycles of a step, and those over linear attention's."""
    rows = result.get("memories")
    if not rows:
        return BEFORE
    columns = {"v5e": "v5e", "v6e": "v6e"} | {
        "over": "v6e, over the first",
        "scan": "v6e, scan of the step",
    }
    size, cases = " ".join(f"{letter}={rows[0][letter]}" for letter in "TBND"), {}
    for row in rows:
        found = cases.setdefault(f"`{row['rule']}`", dict.fromkeys(columns, ""))
        cycles = " / ".join(f"{row[way]['cycles']:,.0f}" for way in ("forward", "backward"))
        found["scan" if row["contender"] == "scan" else row["chip"]] = cycles
        if (row["chip"], row["contender"]) == ("v6e", "jaxrnn"):
            found["over"] = " / ".join(
                f"{ratio:.1f}" for ratio in memory_rules.over_base(row, rows)
            )
    made = {name for found in cases.values() for name in found if found[name]}
    columns = {name: head for name, head in columns.items() if name in made}
    return _table([f"float32, {size}", *columns.values()], cases, columns)


def _sizes(result):
    """Of each rule of a memory, MiB by length, forward / gradient, and those of a scan."""
    rows = [row for row in result["rows"] if row["part"] == "memory"]
    cases, longest = {}, max(row["T"] for row in rows)
    columns = {row["T"]: f"T={row['T']:,}" for row in rows} | {"scan": f"scan, T={longest:,}"}
    mebibytes = lambda found: " / ".join(  # noqa: E731
        f"{found[way] / 2**20:,.0f}" for way in ("forward", "gradient")
    )
    for row in rows:
        case = cases.setdefault(f"`{row['rule']}`", {})
        case[row["T"]] = mebibytes(row["memory"]["jaxrnn"])
        if row["T"] == longest:
            case["scan"] = mebibytes(row["memory"]["scan"])
    return _table(["MiB, forward / gradient", *columns.values()], cases, columns)


def _spilled(row):
    """The part of a step's instructions that spill."""
    return row["loop"]["spilled_in_loop"] / row["loop"]["a_step"]


def _kernel(row):
    return f"{row['cell'].upper()} H={row['H']} B={row['B']} {row['product']} {row['direction']}"


def _table(head, cases, columns):
    lines = [head, ["---"] * len(head)]
    lines += [[case, *(found[name] for name in columns)] for case, found in cases.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


SAYS = {
    "words": _words,
    "tokens": _tokens,
    "leads": _leads,
    "loops": _loops,
    "ratios": _ratios,
    "costs": _costs,
    "cycles": _cycles,
    "kernels": _kernels,
    "scans": _scans,
    "memory": _memory,
    "lengths": _lengths,
    "steps": _steps,
    "registers": _registers,
    "exchanges": _exchanges,
    "clusters": _clusters,
    "beside": _beside,
    "copies": _copies,
    "readings": _readings,
    "spills": _spills,
    "chunks": _chunks,
    "products": _products,
    "rules": _rules,
    "sizes": _sizes,
}
