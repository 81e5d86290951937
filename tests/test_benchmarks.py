"""The benchmarks: what they time is right, what they say follows, and nothing measured is lost."""

import argparse
import dataclasses
import importlib
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NEEDED = "the benchmarks need jaxrnn[bench]"
image = pytest.importorskip("matplotlib.image", reason=NEEDED)
pytest.importorskip("optax", reason=NEEDED)
pytest.importorskip("rich", reason=NEEDED)


from cases import NO_KERNEL, error  # noqa: E402

import jaxrnn  # noqa: E402
from benchmarks import (  # noqa: E402
    __main__,
    abilities,
    attention,
    cells,
    devices,
    exported,
    int8,
    linear,
    peers,
    programs,
    registers,
    residuals,
    rules,
    sequences,
    streams,
)
from benchmarks.sequences import chart, modes, options, rows, words  # noqa: E402
from benchmarks.shared import (  # noqa: E402
    by_hand,
    ceiling,
    collectives,
    held,
    machine,
    memory_rules,
    record,
    text,
    timing,
)
from benchmarks.shared.contenders import CONTENDERS, OURS  # noqa: E402
from benchmarks.shared.model import BYTES, Model  # noqa: E402
from benchmarks.shared.shapes import SHAPES, Shape  # noqa: E402
from jaxrnn._src.ops import native  # noqa: E402
from jaxrnn._src.ops.gpu import compiler  # noqa: E402

CELLS, LENGTHS = ("gru", "attention"), (8, 16)
STREAM = 8  # tokens decoded in a call
TINY = (
    "--cells",
    *CELLS,
    "--lengths",
    *map(str, LENGTHS),
    "--width",
    "8",
    "--layers",
    "1",
    "--repeats",
    "2",
)


def run(out, *arguments):
    """The exit status and the record of a run of the main job."""
    status = sequences.main([*TINY, "--out", str(out), *arguments])
    return status, json.loads((out / "sequences-cpu.json").read_text())


def kinds(content):
    return [(row["mode"], row["cell"], row["length"]) for row in content["rows"]]


# the main job, run


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modes, "STREAM", STREAM)
        with jax.numpy_dtype_promotion("standard"):  # Optax needs it
            return out, *run(out)


def test_every_mode_cell_and_length_has_a_row(complete):
    _, status, content = complete
    assert status == 0 and content["interrupted"] is False
    assert kinds(content) == [(m, c, t) for m in modes.MODES for t in LENGTHS for c in CELLS]
    for row in content["rows"]:
        tokens = STREAM if row["mode"] == "decode" else LENGTHS[-1]
        assert (row["tokens"], row["problem"]) == (tokens, None)
        assert row["batch"] == (1 if row["mode"] == "decode" else LENGTHS[-1] // row["length"])
        whole = "xla" if NO_KERNEL else "cpu"
        assert row["runs"] == ("step" if row["mode"] == "decode" else whole)
        assert len(row["samples"]) == 2 and min(row["samples"]) > 0
        assert row["quartiles"][0] <= row["median"] <= row["quartiles"][1]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["median"])
        assert row["compile_seconds"] > 0
        assert row["memory_bytes"] > 4 * row["parameters"] > 0


def test_the_record_says_where_it_comes_from(complete):
    _, _, content = complete
    about = content["machine"]
    assert about["cores"] >= 1 and about["platform"] == "cpu" and about["cpu"]
    assert about["versions"]["jax"] == jax.__version__
    sets = about["instruction_sets"]
    assert sets is None if NO_KERNEL else sets and sets == list(native.library().instruction_sets)
    assert set(about["versions"]) == {"jaxrnn", "jax", "jaxlib", "flax", "optax"}
    assert content["options"]["cells"] == list(CELLS)
    assert content["options"]["width"] == 8 and content["options"]["tokens"] == 16
    assert set(content["exponents"]) == set(modes.MODES)
    assert len(content["words"]) == 3  # who is fastest, in each mode


def test_the_chart_shows_every_cell(complete):
    out, _, _ = complete
    picture = image.imread(out / "sequences-cpu.png")[..., :3]
    assert min(picture.shape[:2]) > 500
    for i, _ in enumerate(CELLS):
        colour = [int(chart.COLOURS[i][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        near = np.abs(picture - colour).max(-1) < 0.02
        assert near.sum() > 500


@pytest.mark.parametrize("how", ["planned", "met"])
def test_a_row_out_of_memory_does_not_stop_the_rest(tmp_path, monkeypatch, capsys, how):
    module, name = (machine, "free_memory") if how == "planned" else (timing, "measure")
    usual, calls = getattr(module, name), []

    def first_fails(*args, **settings):
        calls.append(args)
        if len(calls) > 1:
            return usual(*args, **settings)
        if how == "planned":
            return 10
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr(module, name, first_fails)
    status, content = run(tmp_path, "--mode", "forward", "--lengths", "8")
    first, second = content["rows"]
    assert status == 0 and len(second["samples"]) == 2
    assert first["samples"] == [] and first["problem"].startswith("out of memory: ")
    assert content["words"][-1].startswith("Forward: gru at T=8: out of memory")
    assert "out of memory" in capsys.readouterr().out


def test_another_error_is_not_taken_for_memory(tmp_path, monkeypatch):
    def fails(*args, **settings):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(timing, "measure", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(tmp_path, "--mode", "forward", "--lengths", "8")


@pytest.mark.parametrize("rows_before", [0, 1])
def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys, rows_before):
    once, calls = timing.once, []

    def interrupted(call):
        calls.append(call)
        if len(calls) > 3 * rows_before + 1:  # a row: one call to warm up and two timed ones
            raise KeyboardInterrupt
        return once(call)

    monkeypatch.setattr(timing, "once", interrupted)
    status, content = run(tmp_path, "--mode", "forward", "--lengths", "8")
    assert status == 130 and content["interrupted"] is True
    assert kinds(content) == [("forward", "gru", 8)][:rows_before]
    assert (tmp_path / "sequences-cpu.png").exists() is bool(rows_before)
    said = [] if rows_before else ["Nothing was measured."]  # of one cell, the table says it all
    assert content["words"] == said and "".join(said) in capsys.readouterr().out


def test_an_implementation_that_cannot_run_is_told(tmp_path):
    arguments = ("--cells", "attention", "--mode", "forward", "--implementation", "gpu")
    status, content = run(tmp_path, *arguments)
    problems = [row["problem"] for row in content["rows"]]
    assert status == 0 and all("cannot run this on cpu" in p for p in problems)
    assert not (tmp_path / "sequences-cpu.png").exists()


# its options


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        (["--cells", "ltsm"], ["lstm", "gru", "elman", "attention", "transformer_block"]),
        (["--cells", "math:sqrt"], ["lstm", "module:name"]),
        (["--mode", "fly"], list(modes.MODES)),
        (["--dtype", "int8"], ["float32", "bfloat16", "float64"]),
        (["--implementation", "fast"], ["reference", "xla"]),
        (["--device", "abacus"], ["cpu", "gpu", "tpu"]),
        (["--lengths", "24", "256"], ["--tokens", "--batch"]),
        (["--lengths", "0"], ["1 or more"]),
        (["--width", "6", "--cells", "attention"], ["a divisor of hidden=6"]),
    ],
)
def test_an_unknown_name_lists_the_valid_ones(arguments, valid, capsys):
    with pytest.raises(SystemExit) as exit_:
        options.parse(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err.partition("error:")[2]
    assert all(name in error for name in valid)


def test_an_unknown_command_lists_the_valid_ones():
    with pytest.raises(SystemExit, match="(?s)'bnech'.*sequences.*peers.*aot.*quotes"):
        __main__.main(["bnech"])


def test_no_command_is_the_main_job(monkeypatch):
    monkeypatch.setattr(sequences, "main", lambda argv: argv)
    assert __main__.main([]) == []
    assert __main__.main(["--width", "8"]) == ["--width", "8"]
    assert __main__.main(["sequences", "--width", "8"]) == ["--width", "8"]


def test_every_length_has_equal_tokens_or_an_equal_batch():
    chosen = options.parse(["--lengths", "64", "16", "64"])
    assert chosen.lengths == [16, 64]
    assert [options.batch(chosen, t) for t in chosen.lengths] == [4, 1]
    chosen = options.parse(["--lengths", "64", "10", "--batch", "3"])
    assert [options.batch(chosen, t) for t in chosen.lengths] == [3, 3]


def test_attention_has_room_for_the_sequence():
    assert options.cell(jaxrnn.attention, 8, 5000, "train") == jaxrnn.attention(8, context=5000)
    assert options.cell(jaxrnn.attention, 8, 5000, "decode") == jaxrnn.attention(8, window=5000)
    assert options.cell(jaxrnn.gru, 8, 5000, "decode") == jaxrnn.gru(8)


WRITE = {"sequences": "sequences.options", "programs": "programs"}  # where the options are
WRITE |= {
    name: name
    for name in (
        "abilities",
        "attention",
        "peers",
        "linear",
        "rules",
        "cells",
        "accelerator",
        "plans",
        "exported",
        "int8",
        "aot",
        "mlstm",
        "residuals",
        "registers",
        "devices",
        "streams",
    )
}


@pytest.mark.parametrize("command", WRITE)
def test_a_run_leaves_the_recorded_results_alone(command, monkeypatch):
    """They are for `--record`: the docs quote them, and the tests hold the docs to them."""
    monkeypatch.delenv("OUT", raising=False)
    parse = importlib.import_module(f"benchmarks.{WRITE[command]}").parse
    given = ["kernel.so"] if command == "programs" else []
    assert parse(given).out == record.RUNS != record.RESULTS
    assert parse([*given, "--record"]).out == record.RESULTS
    assert parse([*given, "--out", "mine"]).out == pathlib.Path("mine")
    with pytest.raises(SystemExit):
        parse([*given, "--out", "mine", "--record"])
    monkeypatch.setenv("OUT", "elsewhere")
    anywhere = "elsewhere" if command in ("accelerator", "plans") else record.RUNS
    assert parse(given).out == pathlib.Path(anywhere)
    assert parse([*given, "--record"]).out == record.RESULTS


def test_every_command_that_writes_is_in_this_test():
    others = {"catalogue", "quotes"}  # which write docs/
    assert set(WRITE) | others == set(__main__.COMMANDS)


def test_git_ignores_where_runs_are_written():
    root = record.RUNS.parents[1]
    ignored = (root / ".gitignore").read_text().splitlines()
    assert f"{record.RUNS.relative_to(root)}/" in ignored


# what devices exchange

EXCHANGES = """\
%body.1 (arg.1: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %sum.1 = f32[2,8]{1,0} all-reduce(%a.1), to_apply=%add
}

ENTRY %main.1_spmd (a: f32[2,8]) -> f32[2,8] {
  %moved.1 = (c64[2,8]{1,0}, pred[3]{0}) collective-permute(%a, %b), source_target_pairs={{0,1}}
  %loop.1 = (s32[], f32[2,8]) while(%begin.1), condition=%end.1, body=%body.1
  %whole.1 = bf16[64,8]{1,0} all-gather-start(%a), dimensions={0}
  ROOT %whole.2 = bf16[64,8]{1,0} all-gather-done(%whole.1)
}
"""


def test_exchanges_are_counted():
    found = collectives.found(EXCHANGES)
    assert [(e.kind, e.bytes, e.looped) for e in found] == [
        ("all-reduce", 2 * 8 * 4, True),
        ("collective-permute", 2 * 8 * 8 + 3, False),
        ("all-gather", 64 * 8 * 2, False),
    ]
    counts = {"exchanges": 3, "bytes": 64 + 131 + 1024, "sums": 64, "long": 1, "looped": 1}
    assert devices.counted(EXCHANGES, {64}) == counts


def test_a_sequence_over_devices_is_gathered_by_no_cell():
    """What is recorded, and one cell now: of 344 steps a device has 43."""
    content = json.loads((record.RESULTS / "devices-cpu.json").read_text())
    for row in [*content["rows"], devices.measure("min_gru", T=344, B=2, H=8)]:
        for way in ("forward", "gradient"):
            assert row[way]["long"] == row[way]["looped"] == 0, row
        assert row["memory"]["8"] < row["memory"]["2"] / 2, row
    assert all(row["error"] < 1e-12 for row in content["rows"])


# what it times


@pytest.mark.parametrize("name", CELLS)
def test_decoding_goes_on_where_the_forward_pass_ended(name):
    window = {"window": 6} if name == "attention" else {}
    model = Model(getattr(jaxrnn, name)(8, **window), width=8, layers=2)
    params = model.weights()
    tokens = jnp.asarray(text.windows(7, 3)[0])
    state, _ = jax.jit(model.prefill)(params, None, tokens[:-1])
    _, token = jax.jit(model.decode)(params, state, tokens[-1])
    logits = jax.jit(model.forward)(params, tokens)
    assert token.tolist() == logits[-1].argmax(-1).tolist()


def test_training_lowers_the_loss_of_real_text():
    model = Model(jaxrnn.gru(16), width=16, layers=1, dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"):  # Optax needs it
        train = modes.train(model, length=32, batch=4)
    losses = [float(train.call()[1]) for _ in range(40)]
    assert losses[0] == pytest.approx(math.log(BYTES), rel=0.2)
    assert losses[-1] < losses[0] - 0.3


def test_the_model_computes_in_its_type(x64):
    tokens = text.windows(4, 2)[0]
    for dtype, trained in (("bfloat16", "float64"), ("float64", "float64")):
        model = Model(jaxrnn.lstm(8), width=8, layers=1, dtype=dtype)
        assert {p.dtype.name for p in jax.tree.leaves(jax.eval_shape(model.init))} == {trained}
        params = jax.eval_shape(model.weights)
        assert {p.dtype.name for p in jax.tree.leaves(params)} == {dtype}
        assert jax.eval_shape(model.forward, params, tokens).dtype == dtype


def test_windows_of_text_are_followed_by_their_targets():
    whole = bytes(text.english())
    assert whole.decode().count(" the ") > 1000
    inputs, targets = text.windows(50, 3)
    assert inputs.shape == targets.shape == (50, 3)
    assert (inputs[1:] == targets[:-1]).all()
    for column in range(3):
        window = bytes([*inputs[:, column], targets[-1, column]])
        assert window in whole
    assert len({tuple(inputs[:, column]) for column in range(3)}) == 3
    longer = text.windows(len(whole) + 5, 1)[0][:, 0]
    assert longer[-5:].tolist() == longer[:5].tolist()


def test_the_shapes_have_names_of_their_own():
    assert len(SHAPES) == 8 and all(name == shape.name for name, shape in SHAPES.items())
    assert SHAPES["long"][1:] == (8, 2048, 128, 256)


def test_free_memory_is_the_least_that_anybody_allows(monkeypatch):
    files = {
        "/proc/meminfo": ["MemTotal: 900 kB", "MemAvailable: 100 kB"],
        "/sys/fs/cgroup/memory.max": ["90000"],
        "/sys/fs/cgroup/memory.current": ["50000"],
        "/sys/fs/cgroup/memory.stat": ["anon 45000", "inactive_file 5000"],
    }
    monkeypatch.setattr(machine, "_lines", lambda path: files.get(path, []))
    cpu = jax.devices("cpu")[0]
    assert machine.free_memory(cpu) == 90000 - 50000 + 5000
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert machine.free_memory(cpu) == 100 * 1024
    files.clear()
    assert machine.free_memory(cpu) is None


# what it says


def synthetic(mode="forward", **times):
    """Rows of cells with the given seconds a token, by length."""
    return [
        rows.Row(mode, cell, length, batch=1, tokens=10, samples=[10 * seconds])
        for cell, by_length in times.items()
        for length, seconds in by_length.items()
    ]


def test_exponents_of_a_sequence_and_of_a_token():
    linear = {t: 3e-6 for t in (256, 1024, 4096)}
    squared = {t: 1e-9 * t for t in (256, 1024, 4096)}
    for mode, powers in (("forward", (1, 2)), ("train", (1, 2)), ("decode", (0, 1))):
        found = sequences.exponents(synthetic(mode, gru=linear, attention=squared))
        assert list(found[mode].values()) == pytest.approx(powers)
    assert sequences.exponents(synthetic(gru={256: 1.0})) == {"forward": {"gru": None}}


def test_words_tell_who_is_fastest_at_the_longest_length():
    measured = synthetic(
        "train",
        lstm={256: 2e-6, 1024: 2e-6, 4096: 2e-6},
        gru={256: 1e-6, 1024: 1e-6, 4096: 1e-6},
        attention={256: 0.5e-6, 1024: 2e-6, 4096: 12e-6},
    )
    assert words.sentences(measured) == [
        "Training at T=4,096: gru is fastest; lstm 2.00 and attention 12 times as long."
    ]


def test_words_of_little():
    assert words.sentences(synthetic(gru={256: 1e-6})) == []
    apart = synthetic(gru={256: 1e-6}, lstm={512: 1e-6})
    assert words.sentences(apart) == []
    lost = rows.Row("decode", "gru", 512, 1, problem="out of memory: all of it")
    assert words.sentences([lost]) == ["Decoding: gru at T=512: out of memory: all of it."]
    assert words.sentences([]) == ["Nothing was measured."]


def test_a_length_that_only_one_reached_makes_no_comparison():
    measured = synthetic(gru={256: 2e-6, 1024: 2e-6}, attention={256: 1e-6})
    assert words.sentences(measured) == [
        "Forward at T=256: attention is fastest; gru 2.00 times as long."
    ]


# one layer against other libraries


def run_peers(out, monkeypatch, *arguments):
    """The exit status and the record of a run of ``peers`` on one tiny layer."""
    monkeypatch.setitem(peers.SHAPES, "tiny", Shape("tiny", 2, 3, 4, 5))
    monkeypatch.setattr(ceiling, "PRODUCT", 64)
    given = ["--shapes", "tiny", "--seconds", "0", "--out", str(out), *arguments]
    return peers.main(given), json.loads((out / "peers-cpu.json").read_text())


@pytest.mark.usefixtures("plain_jax")
def test_every_peer_has_a_ratio_or_a_reason(tmp_path, monkeypatch, capsys):
    status, content = run_peers(tmp_path, monkeypatch, "--cells", "gru")
    assert status == 0 and content["interrupted"] is False
    cases = [(row["direction"], row["cell"]) for row in content["rows"]]
    assert cases == [(direction, "gru") for direction in peers.DIRECTIONS]
    for row in content["rows"]:
        ran = set(row["samples"])
        assert {OURS, "linen", "nnx"} <= ran and ran | set(row["missing"]) == set(CONTENDERS)
        assert set(row["seconds"]) == set(row["compile_seconds"]) == ran == {OURS, *row["ratio"]}
        least = 4 * 2 * 3 * (4 + 5)  # bytes of xs and ys
        assert row["memory_bytes"].pop("torch", None) is None
        assert set(row["memory_bytes"]) == ran - {"torch"}
        assert min(row["memory_bytes"].values()) >= least
        assert {len(samples) for samples in row["samples"].values()} == {3 * peers.PLACES}
        assert all(min(samples) > 0 for samples in row["samples"].values())
        for name, ratio in row["ratio"].items():
            assert ratio == list(timing.ratio(row["samples"][name], row["samples"][OURS]))
    assert content["words"] == peers.sentences(content["rows"])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(sentence in printed for sentence in content["words"])


@pytest.mark.skipif(NO_KERNEL is not None, reason=str(NO_KERNEL))
def test_exported_programs(tmp_path, monkeypatch):
    """With the kernel and without, of the same numbers; the words are those of the rows."""
    shape = Shape("small", 2, 5, 3, 4)
    monkeypatch.setitem(exported.SHAPES, "small", shape)
    kept = []
    monkeypatch.setattr(
        exported,
        "programs",
        lambda *given, of=exported.programs: kept.append(of(*given)) or kept[0],
    )
    given = ["--cells", "gru", "--shapes", "small", "--seconds", "0", "--out", str(tmp_path)]
    assert exported.main(given) == 0
    content = json.loads((tmp_path / "exported-cpu.json").read_text())
    [row], [calls] = content["rows"], kept
    plain, with_kernel = (row["ratio"][name][0] for name in exported.EXPORTS)
    assert f"takes {plain:.2f} times" in content["words"][0]
    assert content["words"][0].endswith(f"{with_kernel:.2f} times.")
    wanted = calls[exported.UNROLL]()
    for name in exported.EXPORTS:
        assert error(calls[name](), wanted) < 1e-6


@pytest.mark.usefixtures("plain_jax")
def test_the_linear_recurrence(tmp_path, monkeypatch):
    shape = linear.Shape(5, 2, 3)
    monkeypatch.setattr(linear, "SHAPES", (shape,))
    given = ["--kinds", "constant", "complex64", "--seconds", "0", "--out", str(tmp_path)]
    assert linear.main(given) == 0
    rows = json.loads((tmp_path / "linear-cpu.json").read_text())["rows"]
    # 30 numbers of each array, but for 3 constant factors, and the gradient of these.
    wanted = {("forward", "constant"): 63 * 4, ("backward", "constant"): 96 * 4}
    wanted |= {("forward", "complex64"): 90 * 8, ("backward", "complex64"): 150 * 8}
    assert {(row["direction"], row["kind"]): row["bytes"] for row in rows} == wanted
    others = {"xla", "scan", "associative", "copy", "negative"}
    assert all(set(row["ratio"]) == others for row in rows)
    for direction in linear.DIRECTIONS:
        given = [linear.call(n, "float32", shape, direction)[0]() for n in linear.CONTENDERS]
        for other in given[1:]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), given[0], other
            )


@pytest.mark.usefixtures("plain_jax")
def test_matrix_memories(tmp_path, monkeypatch):
    """Every form gives what the others do; a second run goes on with the rows that are missing."""
    monkeypatch.setattr(rules, "LENGTHS", (2, 4))
    sizes = "--batch", "1", "--heads", "2", "--width", "4", "--seconds", "0"
    given = [*sizes, "--rules", "delta_product", "--out", str(tmp_path), "--lengths"]
    assert rules.main([*given, "4", "--parts", "times"]) == 0
    assert rules.main([*given, "4", "--parts", "memory"]) == 0
    content = json.loads((tmp_path / "rules-cpu.json").read_text())
    kinds = [(row["part"], row["T"]) for row in content["rows"]]
    assert kinds == [("times", 4), ("memory", 4)]
    assert set(content["recorded"]) == {"times", "memory"}
    timed, planned = content["rows"]
    first = timed["samples"]
    assert timed["scan"] == list(timing.ratio(first["scan"], first["jaxrnn"]))
    per_write = [r / 2 for r in timing.ratio(first["chunks"], first["base chunks"])]
    assert timed["chunks"] == per_write
    assert timed["chosen"] == [r / 2 for r in timing.ratio(first["jaxrnn"], first["base jaxrnn"])]
    # At least q, k, v, b and ys of two writes a step, one of which is read.
    assert planned["memory"]["jaxrnn"]["forward"] >= 4 * 4 * 2 * 4 * (4 * 2 + 1)
    assert [said[:4] for said in content["words"]] == ["T=4:"]
    shorter = planned | {"T": 2}  # as many bytes for half of the steps
    said = rules.sentences([*content["rows"], shorter])
    assert len(said) == 5 and all("0.50 (delta_product) to 0.50" in each for each in said[1:])
    assert rules.main([*given, "4"]) == 0
    assert json.loads((tmp_path / "rules-cpu.json").read_text())["rows"] == content["rows"]
    for rule in ("rwkv6", "mlstm"):
        taken = memory_rules.arrays(rule, memory_rules.Size(6, 1, 2, 4))
        forms = jax.jit(lambda taken, rule=rule: [f(rule, taken) for f in rules.FORMS.values()])
        ys = np.array(forms(taken))
        assert ys.shape == (3, 6, 1, 2, 4)
        np.testing.assert_allclose(ys, np.broadcast_to(ys[:1], ys.shape), 1e-4, 1e-5)


@pytest.mark.usefixtures("plain_jax")
def test_a_step_of_a_stream(tmp_path, monkeypatch):
    """Two layers of a GRU of 3 units: 2 * (2 * 3 * 9 + 12) numbers are read."""
    monkeypatch.setattr(streams, "LAYERS", (2,))
    monkeypatch.setattr(streams, "SIZES", (3,))
    given = ["--cells", "gru", "--peers", "linen"]
    assert streams.main([*given, "--seconds", "0", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "streams-cpu.json").read_text())["rows"]
    assert row["bytes"] == 132 * 4 and set(row["samples"]) == {"jaxrnn", "empty", "read", "linen"}
    assert all(min(samples) > 0 for samples in row["samples"].values())
    own = [a - b for a, b in zip(row["samples"]["jaxrnn"], row["samples"]["empty"])]
    assert row["step"] == list(timing.summary(own))
    assert row["reads"] == list(timing.ratio(own, row["samples"]["read"]))


@pytest.mark.skipif(NO_KERNEL is not None, reason=str(NO_KERNEL))
def test_the_ceiling(monkeypatch):
    """Of each instruction set, and of products; held to one, those beyond it are left out."""
    monkeypatch.setattr(ceiling, "PRODUCT", 64)
    sets = native.library().instruction_sets
    most = ceiling.Ceiling("float32", ["torch"])
    most.sample(times=1)
    found = most.found()
    assert tuple(found["multiply_adds"]) == sets and {"xla"} <= set(found) - {"multiply_adds"}
    assert all(rate > 1e8 for rate in found["multiply_adds"].values())
    assert ceiling.multiply_adds("none", 4) == 0
    row = {"ceiling": {"multiply_adds": {"a": 50.0, "b": 200.0}}, "seconds": {OURS: 2.0}}
    assert ceiling.part(row, 100.0, OURS) == "0.25" and ceiling.part(row, 1.0, "torch") == "-"
    monkeypatch.setenv(native.ISA, sets[-1])
    assert list(ceiling.Ceiling("bfloat16", []).rates) == [sets[-1]]


def test_all_are_held_to_an_instruction_set():
    environment = {"XLA_FLAGS": "--xla_a"}
    rest = held.hold_to(["peers", "--isa", "avx2", "--seconds", "1"], environment)
    assert rest == ["peers", "--seconds", "1"]
    assert environment["XLA_FLAGS"] == "--xla_a --xla_cpu_max_isa=AVX2"
    assert environment[native.ISA] == "avx2"
    assert held.names(environment) == ["avx2"] and held.names({native.ISA: "avx512"}) == []
    for wrong in (["--isa"], ["--isa", "sse"]):
        with pytest.raises(SystemExit, match="--isa: got .*, want one of avx2"):
            held.hold_to(wrong, {})


@pytest.mark.usefixtures("plain_jax")
def test_attention_layers(tmp_path, monkeypatch):
    """Every contender has a ratio or a reason; what all of them give is of the same sizes."""
    shape = attention.Shape(2, 5, 8, 2)
    monkeypatch.setattr(attention, "SHAPES", (shape,))
    monkeypatch.setattr(ceiling, "PRODUCT", 64)
    assert attention.main(["--seconds", "0", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "attention-cpu.json").read_text())
    assert [row["direction"] for row in content["rows"]] == list(attention.DIRECTIONS)
    for row in content["rows"]:
        assert {"multiply_adds", "xla"} <= set(row["ceiling"])
        assert set(row["samples"]) | set(row["missing"]) == set(attention.CONTENDERS)
        for name in row["samples"]:
            given = attention.CONTENDERS[name](shape, row["direction"], "float32")()
            sizes = [math.prod(a.shape) for a in jax.tree.leaves(given) if a.shape]
            whole = 2 * 5 * 8  # of xs, and of ys
            assert sum(sizes) == (whole if row["direction"] == "forward" else whole + 4 * 8 * 8)
    assert content["words"] == attention.sentences(content["rows"])


@pytest.mark.usefixtures("plain_jax")
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != OURS])
def test_contenders_do_the_same_work(name):
    """Outputs of the shape asked for, gradients of the inputs and of as many weights as ours."""
    shape, sizes = Shape("tiny", 2, 3, 7, 5), {}
    more = {"keras": "gru_reset_before", "torch": "multiplicative_lstm"}.get(name)
    cells = (*peers.USUAL, more) if more else peers.USUAL
    for cell in ("lstm_projection", "layer_norm_lstm") if name == "scan" else cells:
        for contender in (OURS, name):
            try:
                place, *_ = CONTENDERS[contender](cell, shape, "forward", "float32")
                back, *_ = CONTENDERS[contender](cell, shape, "value_and_grad", "float32")
            except ImportError as error:
                pytest.skip(f"{error}")
            ys, gradients = place()(), jax.tree.leaves(back()())
            assert sorted(ys.shape) == [2, 3, 5]
            shapes = [tuple(g.shape) for g in gradients]
            assert sum(sorted(s) == [2, 3, 7] for s in shapes) == 1
            sizes[contender] = sum(math.prod(s) for s in shapes if len(s) in (1, 2, 3))
        # weights of the same products; libraries differ in how many biases they have
        assert abs(sizes[name] - sizes[OURS]) <= 4 * shape.H


@pytest.mark.usefixtures("plain_jax")
@pytest.mark.parametrize("name", by_hand.LAYERS)
def test_layers_by_hand_give_what_the_cells_give(name):
    shape, cell = Shape("tiny", 2, 3, 7, 5), peers.CELLS[name](5)
    normal = lambda a: jnp.asarray(np.random.default_rng(a.size).normal(size=a.shape), a.dtype)
    params = jax.tree.map(normal, cell.init(jax.random.key(0), shape.I))
    given = params | {"rz": params["r"][:, :2], "rn": params["r"][:, 2:]}
    if name == "multiplicative_lstm":
        given["w"] = jnp.concatenate([params["w"], params["wm"][:, None]], 1)
        given["b"] = jnp.concatenate([params["b"], jnp.zeros((1, shape.H))])
    own = {k: given[k].reshape(size) for k, size in by_hand.shapes(name, shape.I, shape.H).items()}
    xs = normal(jnp.zeros((shape.T, shape.B, shape.I)))
    apply, _ = by_hand.scan(name, shape, xs.dtype)
    wanted = jaxrnn.unroll(cell, params, xs)[1]
    assert error(apply(own, xs), wanted) < 1e-5


@pytest.mark.usefixtures("plain_jax")
def test_an_interrupt_keeps_the_rows_of_peers(tmp_path, monkeypatch):
    interleaved, calls = timing.interleaved, []

    def interrupted(*args, **settings):
        calls.append(args)
        if len(calls) > peers.PLACES:
            raise KeyboardInterrupt
        return interleaved(*args, **settings)

    monkeypatch.setattr(timing, "interleaved", interrupted)
    status, content = run_peers(tmp_path, monkeypatch, "--peers", "linen")
    assert status == 130 and content["interrupted"] is True
    assert [row["cell"] for row in content["rows"]] == ["lstm"]
    path = tmp_path / "peers-cpu.json"
    assert peers._stopped(path, content, 2) == content["rows"]
    assert peers._stopped(path, content, 1) == []
    for what, other in (("options", {"seconds": 1.0}), ("machine", {"versions": {"jax": "0"}})):
        assert peers._stopped(path, content | {what: content[what] | other}, 2) == []


def test_rows_that_cells_keep(tmp_path):
    """Those of other cells, and of other shapes of the same cell, from the same machine."""
    about, path = machine.describe(), tmp_path / "cells-cpu.json"
    made = [{"cell": c, "shape": {"name": s}} for c in ("gru", "lstm") for s in ("small", "tiny")]
    path.write_text(json.dumps({"machine": about, "rows": made}))
    chosen = argparse.Namespace(cells=["gru"], shapes=["tiny"])
    assert cells.others(path, about, chosen) == [made[0], *made[2:]]
    assert cells.others(path, about | {"cpu": "another"}, chosen) == []
    assert cells.others(tmp_path / "none.json", about, chosen) == []


def test_words_against_each_group_of_peers():
    def row(shape, **ratios):
        ratio = {name: [r, r, r] for name, r in ratios.items()}
        sizes = {"name": shape, "B": 1, "H": 1}
        return {"direction": "forward", "cell": "gru", "shape": sizes, "ratio": ratio}

    assert peers.sentences([row("a", linen=2.0, nnx=4.0, torch=0.5), row("b", linen=8.0)]) == [
        "gru forward: 2.00 times as fast as the best of all (geometric mean; 0.50 to 8.00), slower"
        " by more than 5% at a 0.50.",
        "gru forward: 4.00 times as fast as the faster of linen and nnx (geometric mean;"
        " 2.00 to 8.00), nowhere slower by more than 5%.",
        "gru forward: 0.50 times as fast as torch (geometric mean; 0.50 to 0.50), slower by more"
        " than 5% at a 0.50.",
    ]
    assert peers.sentences([]) == []


def of_sequences(kept):
    names = [field.name for field in dataclasses.fields(rows.Row)]
    return words.sentences([rows.Row(**{n: row[n] for n in names}) for row in kept])


WORDS = {
    "sequences": of_sequences,
    "int8": lambda kept: list(map(int8.sentence, kept)),
    "residuals": lambda kept: list(map(residuals.sentence, kept)),
}
WORDS |= {
    module.__name__.rpartition(".")[2]: module.sentences
    for module in (abilities, attention, cells, exported, peers, programs, rules)
}


@pytest.mark.parametrize("benchmark", WORDS)
def test_the_words_that_are_kept_follow_from_their_rows(benchmark):
    found = list(record.RESULTS.glob(f"{benchmark}-*.json"))
    for path in found:
        kept = json.loads(path.read_text())
        said = WORDS[benchmark](kept["rows"])
        assert kept["words"] == said and said
    assert found


# what is stored for a gradient


def test_memory_and_time_of_what_is_stored(tmp_path):
    tiny = ["--length", "64", "--batch", "2", "--hidden", "8", "--rounds", "2"]
    assert residuals.main([*tiny, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "residuals-cpu.json").read_text())
    memory = {row["name"]: row["memory"] for row in content["rows"]}
    assert 0 < memory["chunks"] < memory["states"] < memory["gates"] < memory["scan"]
    assert all(len(row["samples"]) == 2 for row in content["rows"])
    assert content["words"] == list(map(residuals.sentence, content["rows"]))


# what int8 weights cost


@pytest.mark.usefixtures("plain_jax")
def test_the_cost_of_int8_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(int8, "CELLS", ("gru",))
    monkeypatch.setattr(int8, "SEEDS", range(2))
    tiny = ["--hidden", "16", "--length", "8", "--batch", "2", "--steps", "3"]
    assert int8.main([*tiny, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "int8-cpu.json").read_text())
    (row,) = content["rows"]
    assert all(1e-4 < error < 0.1 for error in row["samples"]["error"])
    wide, small = row["samples"]["bits"].values()
    assert len(wide) == 2 and all(7 < bits < 9 for bits in wide)
    assert all(0 < abs(a - b) < 0.05 for a, b in zip(wide, small))
    assert row["bytes"][0] > 2 * row["bytes"][1]  # 4, but for scales, biases
    assert content["words"] == [int8.sentence(row)]
    assert content["words"][0] in " ".join(capsys.readouterr().out.split())


def test_words_of_int8():
    samples = {"error": [0.01, 0.03], "bits": {"float32": [2.0, 2.1], "int8": [2.01, 2.1]}}
    row = {"cell": "gru", "samples": samples, "bytes": [4000, 1000]}
    assert int8.sentence(row) == (
        "gru: fresh, outputs change by 2.00%; trained, 2.050 bits per byte become 2.055 (+0.0000"
        " to +0.0100 at 2 seeds), 4,000 bytes of weights 1,000."
    )


# timing and writing


@pytest.mark.skipif(NO_KERNEL is not None, reason=str(NO_KERNEL))
def test_programs_are_timed_beside_code_by_hand(tmp_path, capsys):
    """Here beside themselves: each in a process with a library of its own."""
    argv = [str(native.file()), "--shapes", "stream", "--rounds", "2", "--out", str(tmp_path)]
    assert programs.main(argv) == 0
    kept = json.loads((tmp_path / "programs-cpu.json").read_text())
    assert [row["direction"] for row in kept["rows"]] == ["forward", "value_and_grad"]
    assert all(len(s) == 2 for row in kept["rows"] for s in row["samples"].values())
    said = " ".join(capsys.readouterr().out.split())
    assert all(sentence in said for sentence in kept["words"])


def test_words_of_programs():
    def row(shape, ratio):
        shape = {"name": shape}
        return {"direction": "value_and_grad", "shape": shape, "ratio": [ratio, ratio, ratio]}

    assert programs.sentences([row("a", 1.0), row("b", 4.0)]) == [
        "lstm value and grad: with programs 2.00 times the time of the same by hand"
        " (geometric mean; 1.00 at a and 4.00 at b)."
    ]


def test_programs_need_the_other_library(tmp_path):
    with pytest.raises(SystemExit, match="library: there is none at .*absent.so; `make programs`"):
        programs.main([str(tmp_path / "absent.so")])


def test_interleaved_runs_each_twice_a_round_after_every_other():
    ran = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    samples = timing.interleaved(calls, rounds=60)
    assert {name: len(s) for name, s in samples.items()} == dict.fromkeys("abc", 60)
    assert ran[::2] == ran[1::2]  # the first of two is to warm up
    rounds = ["".join(ran[i : i + 6 : 2]) for i in range(0, len(ran), 6)]
    assert len(rounds) == 60
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert {r[i : i + 2] for r in rounds for i in range(2)} == {"ab", "ac", "ba", "bc", "ca", "cb"}


def test_the_number_of_calls_follows_the_time():
    assert timing.repeats(0.1, seconds=1.05) == 10
    assert timing.repeats(100, seconds=1, least=3) == 3
    assert timing.repeats(1e-6, seconds=1, most=50) == 50
    ran = []
    assert len(timing.measure(lambda: ran.append(1), rounds=5)) == 5 and len(ran) == 6


def test_summaries_and_paired_ratios():
    assert timing.summary([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert timing.summary([7.0]) == (7.0, 7.0, 7.0)
    assert timing.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 3.0]) == (2.0, 2.0, 2.0)


def test_a_record_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "record.json"
    record.save(path, {"samples": [1.5, 2e-6], "note": "[3,  4]"})
    with pytest.raises(ValueError):
        record.save(path, {"samples": [math.nan]})
    assert json.loads(path.read_text()) == {"samples": [1.5, 2e-6], "note": "[3,  4]"}
    assert "[ 1.5, 2e-06 ]" in path.read_text()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(compiler.library() is None, reason="NVRTC is not installed")
def test_registers_go_on_where_a_run_stopped(tmp_path, monkeypatch):
    """What one run compiled, the next one does not."""
    compiled = []

    def instead(text, architecture):
        compiled.append(architecture)
        return registers_compiled(text, architecture)

    registers_compiled = registers.compiled
    monkeypatch.setattr(registers, "compiled", instead)
    monkeypatch.setattr(registers, "disassembler", lambda: None)
    monkeypatch.setattr(registers, "WIDTHS", (16, 4096))
    run = ["--architectures", "sm_90", "--out", str(tmp_path), "--most"]
    assert registers.main([*run, "1"]) == 0
    assert compiled == ["sm_90"] * 2
    assert registers.main([*run, "4"]) == 0  # three batches of the one width, one of the other
    content = json.loads((tmp_path / "registers.json").read_text())
    found = [(row["H"], row["B"], row["plan"] is not None) for row in content["rows"][::2]]
    assert found == [(16, 1, True), (16, 16, True), (16, 64, True), (4096, 1, False)]
    assert len(compiled) == 2 + 2  # B=16 and B=64 have one plan, and so one source
    assert {row["direction"] for row in content["rows"]} == {"forward", "backward"}


LISTING = """\
.L_x_0:
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0020*/                   STL [R1], R2 ;
        /*0030*/                   STG.E.STRONG.GPU desc[UR8][R50.64], RZ ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/                   FADD R1, R2, R3 ;
        /*0060*/               @P1 STG.E.STRONG.GPU desc[UR8][R52.64+0x80], R51 ;
        /*0070*/              @!P3 BRA `(.L_x_0) ;
        /*0080*/                   LDL R2, [R1] ;
"""


def test_a_step_in_instructions():
    """From the second barrier of the loop to a word that is not the flag."""
    assert registers.loop(registers.lines(LISTING)) == (6, 1, 1)
