"""Every cell of the library is in the tests' table, in docs/cells.md and in the benchmark."""

import functools
import json
import re

import cases
import pytest

pytest.importorskip("rich", reason="the benchmarks need jaxrnn[bench]")
pytest.importorskip("matplotlib", reason="the benchmarks need jaxrnn[bench]")

import jaxrnn  # noqa: E402
from benchmarks import catalogue  # noqa: E402
from benchmarks import cells as benchmark  # noqa: E402
from benchmarks.catalogue import latex  # noqa: E402
from benchmarks.shared import zoo  # noqa: E402
from benchmarks.shared.shapes import SHAPES, Shape  # noqa: E402


def constructors(cell):
    """What made a cell, and the cells that it was made of."""
    yield cell.made.constructor
    for value in (*cell.made.args, *dict(cell.made.kwargs).values()):
        if isinstance(value, jaxrnn.Cell):
            yield from constructors(value)


@functools.cache
def makers():
    """What made the cells of the tests' table."""
    rows = [case.make(2 * case.heads) for case in cases.CELLS.values()]
    return [make for cell in rows for make in constructors(cell)]


@pytest.mark.parametrize("name", zoo.names())
def test_every_cell_obeys_the_laws(name):
    assert getattr(jaxrnn, name) in makers(), "no row in the tests' table"


@pytest.mark.parametrize("name", zoo.names())
def test_every_cell_says_what_it_is(name):
    _, paper, equations = catalogue.said(name)
    assert re.search(r"\d{4}", paper) and equations


EQUATIONS = {
    "h = f * h + W_n x": r"h &= f \odot h + W_n \, x",
    "c = W * x  z = W x'": "c &= W \\ast x \\\\\nz &= W \\, x^\\top",
    "a = 2^(-5 - n) sqrt(D)": r"a &= 2^{-5 - n} \, \sqrt{D}",
    "m = max(|n q|, dt)": r"m &= \max(\lvert n \, q \rvert, \Delta t)",
    "x~ = D_t / log_step": r"\tilde{x} &= D_t / \text{log\_step}",
    "y = W_out x, of n heads": r"y &= W_{\mathrm{out}} \, x,\text{ of } n\text{ heads }",
    'c = sigmoid(b)  with an_option "f"': r'c &= \sigma(b) \qquad \text{ with an\_option "f" }',
    "y_t = sum_j w[j] x_{t - 1}": r"y_t &= \sum_j w[j] \, x_{t - 1}",
}


@pytest.mark.parametrize("line", EQUATIONS)
def test_equations_in_latex(line):
    assert latex.block([line]) == f"\\begin{{split}}\n{EQUATIONS[line]}\n\\end{{split}}"


def test_an_unknown_function_is_no_word():
    with pytest.raises(ValueError, match="swish: want a function that "):
        latex.equation("h = swish(W x)")


@pytest.mark.usefixtures("plain_jax")
@pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
def test_the_page_is_what_the_code_says():
    written = catalogue.PAGE.read_text(encoding="utf-8")
    assert written == catalogue.page(), "run `python -m benchmarks catalogue`"
    assert set(catalogue.PEERS) <= set(zoo.names())


@pytest.mark.usefixtures("plain_jax")
def test_the_benchmark_of_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "tiny", Shape("tiny", 2, 3, 8, 8))
    given = ["--cells", "lstm", "attention", "gru", "--shapes", "tiny", "--seconds", "0"]
    assert benchmark.main([*given, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "cells-cpu.json").read_text())
    rows = content["rows"]
    assert [(r["cell"], r["direction"]) for r in rows] == [
        (cell, direction)
        for cell in ("attention", "gru", "lstm")
        for direction in benchmark.DIRECTIONS
    ]
    assert all(min(row["samples"]["cell"]) > 0 for row in rows)
    assert {row["runs"] for row in rows if row["cell"] == "gru"} <= {"cpu", "xla"}
    assert (tmp_path / "cells-cpu.png").stat().st_size > 10_000
    printed = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(sentence.split()) in printed for sentence in content["words"])
    about = content["machine"]
    again = benchmark.parse(["--cells", "gru", "--shapes", "tiny"])
    kept = benchmark.others(tmp_path / "cells-cpu.json", about, again)
    assert [row["cell"] for row in kept] == ["attention", "attention", "lstm", "lstm"]
    assert benchmark.others(tmp_path / "cells-cpu.json", about | {"cores": 0}, again) == []
