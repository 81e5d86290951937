"""The tasks of the map of abilities have the answers that their definitions give."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

pytest.importorskip("rich", reason="the benchmarks need jaxrnn[bench]")
pytest.importorskip("matplotlib", reason="the benchmarks need jaxrnn[bench]")

from benchmarks import abilities  # noqa: E402
from benchmarks.abilities import expressions, tasks, training  # noqa: E402

ROWS = 20


@functools.cache
def drawn(which, length):
    """Some sequences: symbols [B, T] or numbers [B, T, 2], answers, and where they are asked."""
    task = tasks.TASKS[which]()
    make = jax.jit(jax.vmap(functools.partial(task.make, length=length)))
    xs, wanted, asked = map(np.asarray, make(jax.random.split(jax.random.key(1), ROWS)))
    assert xs.shape == (ROWS, length, task.inputs) and asked.any(1).all()
    if task.numbers:
        return xs, wanted, asked
    assert (xs.sum(-1) == 1).all() and wanted.max() < task.outputs
    return xs.argmax(-1), wanted, asked


def test_parity():
    bits, wanted, asked = drawn("parity", 9)
    assert (wanted == np.cumsum(bits, 1) % 2).all() and asked.all()


@pytest.mark.parametrize(
    ("which", "count", "order"), [("s3", 3, 6), ("a5", 5, 60), ("s5", 5, 120)]
)
def test_word_problems(which, count, order):
    """By matrices of permutations, whose products are theirs; the even ones' determinant is 1."""
    symbols, wanted, _ = drawn(which, 12)
    elements = np.eye(count, dtype=int)[list(itertools.permutations(range(count)))]
    if which == "a5":
        elements = elements[np.linalg.det(elements) > 0]
    table, generators = tasks.permutations(count, which == "a5")
    assert len(elements) == order and table.shape == (order, order)
    assert (elements[table] == elements[:, None] @ elements).all()
    reached = {0}
    for _ in range(order):
        reached |= {int(table[a, b]) for a in reached for b in generators}
    assert len(reached) == order and symbols.max() == len(generators) - 1
    for row, answers in zip(symbols, wanted):
        product = np.eye(count, dtype=int)
        for symbol, answer in zip(row, answers):
            product = product @ elements[generators[symbol]]
            assert (product == elements[answer]).all()


@pytest.mark.parametrize(
    ("which", "length"), [("modular", 21), ("brackets", 21), ("brackets", 24)]
)
def test_expressions(which, length):
    """Python says what they are."""
    symbols, wanted, asked = drawn(which, length)
    brackets = 0
    for row, answers, places in zip(symbols, wanted, asked):
        text = "".join(expressions.SYMBOLS[s] for s in row)
        brackets += text.count("(")
        assert places[len(text.rstrip()) - 1]
        for end in np.flatnonzero(places):
            assert eval(text[: end + 1]) % expressions.MODULUS == answers[end], text
    assert (brackets > ROWS / 2) == (which == "brackets")


def test_recall():
    symbols, wanted, asked = drawn("mqar", 31)
    for row, answers, places in zip(symbols, wanted, asked):
        pairs = dict(zip(row[0:20:2], row[1:20:2]))
        assert len(pairs) == places.sum() == 10
        assert [pairs[s] - tasks.KEYS for s in row[places]] == list(answers[places])


def test_copying_and_induction():
    for row, answers, places in zip(*drawn("copying", 40)):
        assert places.sum() == 8 and list(row[row < tasks.DATA]) == list(answers[places])
        assert (row[places] == tasks.DATA + 1).all()
    for row, answers, places in zip(*drawn("induction", 12)):
        first, last = np.flatnonzero(row == tasks.DATA)
        assert last == 11 and list(np.flatnonzero(places)) == [11]
        assert answers[11] == row[first + 1] and first + 1 < last


def test_adding():
    for row, answers, places in zip(*drawn("adding", 12)):
        marked = row[:, 1] == 1
        assert marked.sum() == 2 and marked[:6].sum() == 1
        assert answers[places] == pytest.approx(row[marked, 0].sum())


def test_longest():
    assert training.longest({"20": 0.95, "40": 0.89, "80": 1.0}) == 20
    assert training.longest({"20": 0.5, "40": 1.0}) == 0


def test_what_is_right(monkeypatch):
    """Of a model that is always right but on its last answer, where it is never."""
    task = tasks.TASKS["parity"]()
    of_last = training.share.__wrapped__

    class Net:
        pass

    def unroll(net, params, xs):
        answers = np.cumsum(xs.argmax(-1), 0) % 2
        answers[-1] = 1 - answers[-1]
        return (), np.eye(2)[answers]

    monkeypatch.setattr(training.jaxrnn, "unroll", lambda n, p, xs: unroll(n, p, np.asarray(xs)))
    assert of_last(Net, task, {}, 8) == 0
    assert of_last(Net, task._replace(last=False), {}, 8) == 7 / 8


@pytest.mark.usefixtures("plain_jax")
def test_what_is_varied_is_trained_at_several_lengths(monkeypatch):
    """As many steps as it says, each of one length."""
    monkeypatch.setattr(training, "BATCH", 2)
    monkeypatch.setattr(training, "SHORT", 10)
    monkeypatch.setattr(training, "CHUNK", 10)
    seen, batch = [], training._batch

    def watched(task, key, rows, length):
        seen.append(length)
        return batch(task, key, rows, length)

    monkeypatch.setattr(training, "_batch", watched)
    for task, lengths in (("adding", [2, 4, 6, 8, 10]), ("parity", [10])):
        seen.clear()
        of, net, rule, some = training._programs("elman", task, 4, 10, 1e-3)
        params = net.init(jax.random.key(0), of.inputs)
        losses = some(params, rule.init(params), jax.random.key(1))[2]
        assert seen == lengths and losses.size == training.CHUNK


@pytest.mark.usefixtures("plain_jax")
def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "LENGTHS", (4, 6))
    monkeypatch.setattr(training, "SHORT", 4)
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "CHUNK", 2)
    monkeypatch.setattr(training.jax, "clear_caches", lambda: None)  # other tests' programs stay
    common = ["--hidden", "8", "--steps", "2", "--out", str(tmp_path), "--seeds", "1"]
    read = lambda: json.loads((tmp_path / "abilities-cpu.json").read_text())
    assert abilities.main(["--tasks", "parity", "--cells", "elman", *common]) == 0
    first = read()["rows"]
    assert abilities.main(["--tasks", "parity", "--cells", "elman", "gru", *common]) == 0
    rows = read()["rows"]
    assert rows[0] == first[0] and [row["cell"] for row in rows] == ["elman", "gru"]
    assert rows[0]["state"] == 8 and rows[0]["parameters"] == 2 * 64 + 8 and rows[0]["flops"] > 128
    assert (tmp_path / "abilities-cpu.png").stat().st_size > 1000
    assert "1 of 2 rows are there already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="take another --out"):
        abilities.main(["--tasks", "parity", "--cells", "elman", *common, "--rate", "1"])


def test_what_is_said():
    rows = [
        {"task": "parity", "cell": cell, "longest": n}
        for cell, n in (("lstm", 320), ("gru", 320), ("lru", 0), ("mlstm", 20), ("mlstm", 40))
    ]
    assert abilities.sentences(rows) == [
        "parity: to 320 steps gru and lstm; to 20 steps mlstm; not at all lru."
    ]
