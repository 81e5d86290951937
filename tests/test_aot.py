"""What is read of programs compiled for a GPU or TPU: launches, cycles, bytes."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("rich", reason="the benchmarks need jaxrnn[bench]")

from benchmarks import aot, mlstm
from benchmarks.aot import gpu as aot_gpu
from benchmarks.aot import launches, schedule, traffic
from benchmarks.aot import linear as aot_linear
from benchmarks.aot import memories as aot_memories
from benchmarks.aot import tpu as aot_tpu
from benchmarks.shared import contenders, machine, memory_rules
from benchmarks.shared.shapes import SHAPES  # noqa: E402
from jaxrnn._src.ops.gpu import library  # noqa: E402

HLO = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[32,8]{1,0})->f32[32,8]{1,0}}

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=6 end_column=65}

%fused (param_0.1: f32[32,8], param_1: f32[32,8]) -> f32[32,8] {
  %param_0.1 = f32[32,8]{1,0} parameter(0)
  %param_1 = f32[32,8]{1,0} parameter(1)
  %add.1 = f32[32,8]{1,0} add(%param_0.1, %param_1)
  ROOT %tanh.1 = f32[32,8]{1,0} tanh(%add.1)
}

%inner_body (arg.2: (s32[], f32[32,8])) -> (s32[], f32[32,8]) {
  %arg.2 = (s32[], f32[32,8]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%arg.2), index=0
  %x.2 = f32[32,8]{1,0} get-tuple-element(%arg.2), index=1
  ROOT %tuple.2 = (s32[], f32[32,8]{1,0}) tuple(%i.2, %x.2)
  %copy.2 = f32[32,8]{1,0} copy(%x.2)
}

%body (arg.1: (s32[], f32[32,8], /*index=2*/f32[4,32,8])) -> (s32[], f32[32,8], f32[4,32,8]) {
  %arg.1 = (s32[], f32[32,8]{1,0}, /*index=2*/f32[4,32,8]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %h.1 = f32[32,8]{1,0} get-tuple-element(%arg.1), index=1
  %ys.1 = f32[4,32,8]{2,1,0} get-tuple-element(%arg.1), index=2
  %one.1 = s32[] constant(1)
  %gemm.1 = (f32[32,8]{1,0}, s8[64]{0}) custom-call(%h.1, %h.1), custom_call_target="__cublas$gemm"
  %product.1 = f32[32,8]{1,0} get-tuple-element(%gemm.1), index=0
  %flat.1 = f32[256]{0} bitcast(%product.1)
  %new.1 = (f32[32,8]{1,0}, f32[32,8]{1,0}) fusion(%h.1, %product.1), kind=kLoop, calls=%fused
  %new_h.1 = f32[32,8]{1,0} get-tuple-element(%new.1), index=0
  %write.1 = ((f32[4,32,8]{2,1,0}, s32[], f32[32,8]{1,0}), f32[4,32,8]{2,1,0}, u32[]) \
fusion-start(%ys.1, %i.1, %new_h.1), kind=kLoop, calls=%fused
  %next.1 = s32[] add(%i.1, %one.1)
  %inner.1 = (s32[], f32[32,8]{1,0}) while(%arg.2), condition=%cond, body=%inner_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %written.1 = f32[4,32,8]{2,1,0} fusion-done(%write.1)
  ROOT %out.1 = (s32[], f32[32,8]{1,0}, f32[4,32,8]{2,1,0}) tuple(%next.1, %new_h.1, %written.1)
}

%cond (arg.3: (s32[], f32[32,8])) -> pred[] {
  %arg.3 = (s32[], f32[32,8]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%arg.3), index=0
  %n.3 = s32[] constant(4)
  ROOT %less.3 = pred[] compare(%i.3, %n.3), direction=LT
}

%called (p.4: f32[32,8]) -> f32[32,8] {
  %p.4 = f32[32,8]{1,0} parameter(0)
  ROOT %r.4 = f32[32,8]{0,1:T(8,128)} copy(%p.4)
}

ENTRY %main (x: f32[32,8]) -> f32[32,8] {
  %x = f32[32,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %c = f32[32,8]{1,0} call(%x), to_apply=%called
  %f = f32[32,8]{1,0} fusion(%c, %x), kind=kLoop, calls=%fused
  %start = (s32[], f32[32,8]{1,0}, f32[4,32,8]{2,1,0}) tuple(%zero, %f, %f)
  %loop = (s32[], f32[32,8]{1,0}, f32[4,32,8]{2,1,0}) while(%start), condition=%cond, \
body=%body, backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"0"}}
  ROOT %result = f32[32,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_launches_are_counted():
    found = launches.count(HLO)
    # outside: the copy that is called, one fusion. A step: the product, the fusion, what it
    # writes down, the counter; and a loop of one copy three times.
    assert found == launches.Launches(2, [(4, 4), (12, 1)])
    assert found.a_step(4) == 7


def test_what_depends_on_data_is_not_counted():
    with pytest.raises(ValueError, match="number of iterations"):
        launches.count(HLO.replace('"known_trip_count":{"n":"4"},', ""))
    with pytest.raises(ValueError, match="branches"):
        launches.count(HLO.replace("call(%x), to_apply=%called", "conditional(%x)"))


# A forward of 16 rows, chunks of 128 steps, inputs of 32 steps a product. LB begins a loop; one
# bundle of the chunk's was moved into the loop of steps, and one is empty.
BUNDLES = """\
= control target key start
     0   :  { %s1 = inlined_call_operand.hbm [shape: bf16[384,16,128]] }
   0x1 LB: > { %s2 = sadd.s32 1, %s3 }
   0x2   :  {}
   0x3 LB: >> { %v1 = vld [vmem:[%s1] sm:$0xff] }
   0x4   : >> { %4 = vmatmul.bf16 %v1 }
   0x5 PF: >> { %5 = sbr.rel (%p1) target = $region2 }
   0x6 LB: >> { %v2 = vld [vmem:[%s1] sm:$0xff] }
   0x7   : > { %s7 = sadd.s32 1, %s2 }
   0x8   : >> { %8 = vmatmul.bf16 %v2 }
   0x9   : > { %9 = sbr.rel (%p2) target = $region1 }
   0xa   :  { %10 = vsyncpa [#allocation5], 1 }
"""
TPU = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[]}

%body (arg: (s32[], bf16[16,128], bf16[384,16,128])) -> (s32[], bf16[16,128], bf16[384,16,128]) {
  %arg = (s32[]{:T(128)}, bf16[16,128]{1,0:S(1)}, bf16[384,16,128]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %h = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg), index=1
  %ys = bf16[384,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %r = bf16[128,128]{1,0:T(8,128)(2,1)} constant({...})
  %new = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} fusion(%h, %r), kind=kOutput, calls=%fused, \
backend_config={"window_config":{"iteration_bounds":["4","2"]}}
  %put = bf16[384,16,128]{2,1,0:T(8,128)(2,1)} fusion(%ys, %i, %new), kind=kLoop, calls=%fused
  ROOT %out = (s32[], bf16[16,128], bf16[384,16,128]) tuple(%i, %new, %put)
}

ENTRY %main (x: bf16[384,16,128]) -> bf16[384,16,128] {
  %x = bf16[384,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[1,512]{1,0:T(1,128)S(1)} constant({...})
  %recur_forward_16x128x32.1 = (f32[16,128]{1,0:T(8,128)}, bf16[384,16,128]{2,1,0}) \
custom-call(%x, %w), custom_call_target="tpu_custom_call"
  %start = (s32[], bf16[16,128], bf16[384,16,128]) tuple(%x, %x, %x)
  %loop = (s32[], bf16[16,128], bf16[384,16,128]) while(%start), condition=%cond, body=%body
  ROOT %result = bf16[384,16,128]{2,1,0} get-tuple-element(%loop), index=2
}
"""

# For TPUs XLA does not say how often a loop runs; its condition does.
CONDITION = """
%{} (p: (s32[])) -> pred[] {{
  %p = (s32[]{{:T(128)}}) parameter(0)
  %end = s32[]{{:T(128)}} constant({})
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%i, %end), direction=LT
}}
"""


def test_a_schedule_is_read():
    found = schedule.program(BUNDLES.splitlines())
    steps, inputs = schedule.Loop(2, []), schedule.Loop(3, [])
    assert found == schedule.Loop(2, [schedule.Loop(4, [inputs, steps])])


def test_the_cycles_and_bytes_of_a_step(tmp_path):
    (tmp_path / "123-recur_forward_16x128x32.1-01-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "124-put-01-final_bundles.txt").write_text("   0   :  { %s1 = a }\n" * 7)
    looped = "   0   :  { %s1 = a }\n  0x1 LB: > { %s2 = b }\n"
    (tmp_path / "125-new.refs_0_-01-final_bundles.txt").write_text(looped)
    (tmp_path / "125-new-00-schedule-analysis_final_bundles.txt").write_text("none\n")
    kernels = schedule.programs(tmp_path)
    assert set(kernels) == {"recur_forward_16x128x32.1", "put", "new"}
    # A chunk of 128 steps: 4 bundles, and 4 products of 3; two tiles of 16 rows.
    came = aot_tpu._ours(TPU, kernels, "forward", 32)
    assert came.cycles == 2 * ((4 + 4 * 3) / 128 + 2)
    assert came.bytes == 16 * 128 * 4 / 384 + 2 * 16 * 128 * 2  # x and ys; the bias is in VMEM
    # XLA's loop: `put` 7, `new` 1 and a loop of 4 x 2. The weights whole, ys by the step.
    (came,) = schedule.loops(TPU, kernels, 384)
    assert came == schedule.Step(7 + 1 + 8, 128 * 128 * 2 + 2 * 16 * 128 * 2)
    # All of it: the kernel, each of its loops once, and 384 times XLA's.
    text = TPU + CONDITION.format("cond", 384)
    assert schedule.whole(text, kernels) == 2 + 4 + 384 * (7 + 1 + 8)


def test_of_instructions_that_are_alike_one_is_listed():
    inside = """%inside.{0} (p.{0}: f32[8]) -> f32[8] {{
  %p.{0} = f32[8]{{0}} parameter(0)
  ROOT %n.{0} = f32[8]{{0}} {1}(%p.{0}), metadata={{op_name="{0}"}}
}}
"""
    entry = """ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %x = f32[8]{0} fusion(%a), kind=kLoop, calls=%inside.1
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%inside.2
  %z = f32[8]{0} fusion(%y), kind=kLoop, calls=%inside.3
}
"""
    operations = enumerate(("negate", "negate", "sine"), 1)
    text = "\n".join([*(inside.format(*each) for each in operations), entry])
    assert schedule.whole(text, {"x": schedule.Loop(7, [])}) == 7 + 7


# 4,096 bytes in an array [64, 16], 64 in a row of it. %each: in the loop, one row of x is read and
# one of ys written in place; %ends: in VMEM, and so not counted, is what comes of two halves.
MOVES = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[]}

%each (p.1: f32[64,16], p.2: f32[64,16], p.3: s32[]) -> (f32[64,16], f32[1,16]) {
  %p.1 = f32[64,16]{1,0} parameter(0)
  %p.2 = f32[64,16]{1,0} parameter(1)
  %p.3 = s32[] parameter(2)
  %row.1 = f32[1,16]{1,0:S(1)} dynamic-slice(%p.2, %p.3, %p.3), dynamic_slice_sizes={1,16}
  %put.1 = f32[64,16]{1,0} dynamic-update-slice(%p.1, %row.1, %p.3, %p.3)
  ROOT %both.1 = (f32[64,16]{1,0}, f32[1,16]{1,0:S(1)}) tuple(%put.1, %row.1)
}

%body (arg.1: (s32[], f32[64,16], f32[64,16])) -> (s32[], f32[64,16], f32[64,16]) {
  %arg.1 = (s32[], f32[64,16]{1,0}, f32[64,16]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %x.1 = f32[64,16]{1,0} get-tuple-element(%arg.1), index=1
  %ys.1 = f32[64,16]{1,0} get-tuple-element(%arg.1), index=2
  %new.1 = (f32[64,16]{1,0}, f32[1,16]{1,0:S(1)}) fusion(%ys.1, %x.1, %i.1), calls=%each
  %put.2 = f32[64,16]{1,0} get-tuple-element(%new.1), index=0
  ROOT %out.1 = (s32[], f32[64,16]{1,0}, f32[64,16]{1,0}) tuple(%i.1, %x.1, %put.2)
}

%ends (p.4: f32[64,16]) -> f32[16,16] {
  %p.4 = f32[64,16]{1,0} parameter(0)
  %view.1 = f32[4,16,16]{2,1,0} bitcast(%p.4)
  %one.1 = f32[1,16,16]{2,1,0} slice(%view.1), slice={[0:1], [0:16], [0:16]}
  %two.1 = f32[1,16,16]{2,1,0} slice(%view.1), slice={[3:4], [0:16], [0:16]}
  ROOT %sum.1 = f32[16,16]{1,0:S(1)} add(%one.1, %two.1)
}

ENTRY %main (x: f32[64,16]) -> f32[64,16] {
  %x = f32[64,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %room = f32[64,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %begin = (s32[], f32[64,16]{1,0}, f32[64,16]{1,0}) tuple(%zero, %x, %room)
  %loop = (s32[], f32[64,16]{1,0}, f32[64,16]{1,0}) while(%begin), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"64"}}
  %ys = f32[64,16]{1,0} get-tuple-element(%loop), index=2
  %few = f32[16,16]{1,0:S(1)} fusion(%ys), kind=kLoop, calls=%ends
  %start = (f32[16,16]{1,0}, f32[16,16]{1,0:S(1)}, u32[]) copy-start(%few)
  %kept = f32[16,16]{1,0} copy-done(%start)
  %real = f32[64,16]{1,0} custom-call(%ys), custom_call_target="X64SplitLow"
  ROOT %twice = f32[64,16]{1,0} custom-call(%real, %real, %kept), custom_call_target="twice"
}
"""


def test_bytes_are_counted():
    whole, row = 64 * 16 * 4, 16 * 4
    loop, ends, copy, split = 64 * 2 * row, whole / 2, whole / 4, 2 * whole
    assert traffic.count(MOVES) == loop + ends + copy + split + (2 + 1 / 4) * whole
    unknown = MOVES.replace('"known_trip_count":{"n":"64"}', "")
    assert traffic.count(unknown + CONDITION.format("c", 64)) == traffic.count(MOVES)
    for condition in ("", CONDITION.format("c", 64).replace("LT", "NE")):
        with pytest.raises(ValueError, match="number of iterations"):
            traffic.count(unknown + condition)


def test_the_cycles_of_a_linear_recurrence():
    """Chunks of 80 steps, the last one cut short, two tiles of 512 lanes; 8 steps at a time."""
    text = """ENTRY %main () -> f32[] {
  ROOT %linear_forward_8x512x80x8.1 = (f32[8,1024]) custom-call(%a), backend_config=\
{"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"77"}]}"""
    case = aot_linear.Case("v6e", "float32", 8, 1024)
    steps, rest = schedule.Loop(24, []), schedule.Loop(9, [])

    def found(*loops):
        kernels = {"linear_forward_8x512x80x8.1": schedule.Loop(5, [schedule.Loop(100, loops)])}
        return aot_linear.kernel(text, kernels, "forward", case)

    assert found(steps, rest) == {"cycles": 2 * (100 * 52 / 4096 + 3), "vmem": 77}
    with pytest.raises(ValueError, match="other loops"):
        found(steps, rest, rest)


def test_the_least_bytes_of_a_linear_recurrence():
    whole = 4096 * 8 * 512 * 8
    case = aot_linear.Case("v6e", "complex64", 8, 512)
    assert [aot_linear.least(case, way) for way in aot_linear.WAYS] == [3 * whole, 5 * whole]
    case = case._replace(constant=True)
    factors = 512 * 8
    least = [2 * whole + factors, 3 * whole + 2 * factors]
    assert [aot_linear.least(case, way) for way in aot_linear.WAYS] == least


def test_the_least_bytes_of_a_memory():
    vector, number = 2048 * 8 * 8 * 128 * 4, 2048 * 8 * 8 * 4
    least = {rule: aot_memories.least(rule, "forward") for rule in ("mamba2", "delta_product")}
    # q, k, v, a decay and ys; of two writes a step q, k, v and b, as a is -k, and ys once.
    assert least == {"mamba2": 4 * vector + number, "delta_product": 9 * vector}
    assert aot_memories.least("mamba2", "backward") == 7 * vector + 2 * number


def test_the_cycles_of_a_memory_over_linear_attention():
    """For each write, and of the chunks alone."""
    both = lambda forward, backward: {
        "forward": {"cycles": forward},
        "backward": {"cycles": backward},
    }
    case = {"chip": "v6e", "contender": "jaxrnn"}
    base = case | {"rule": "linear_attention"} | both(10, 20)
    row = case | {"rule": "delta_product"} | both(40, 60)
    others = base | {"contender": "scan"} | both(1, 1), base | {"chip": "v5e"} | both(2, 2)
    assert memory_rules.over_base(row, [*others, base, row]) == [2, 1.5]
    assert memory_rules.over_base(row, [row]) == []


TPU_ROW = {
    "chip": "v6e",
    "cell": "lstm",
    "H": 512,
    "B": 16,
    "heads": 1,
    "contender": "tpu",
    "forward": {"cycles": 100.0, "bytes": 10.0, "cycles_of_bytes": 5.0, "microseconds": 0.1},
    "backward": {"cycles": 200.0, "bytes": 20.0, "cycles_of_bytes": 9.0, "microseconds": 0.2},
    "compile_seconds": 1.0,
    "vmem": 1,
    "temporary_bytes": 1,
}


WAY = {"bytes": 10.0, "times_least": 1.0, "temporary_bytes": 1, "cycles": 5.0, "vmem": 1 << 20}
LINEAR_ROW = {
    "operation": "linear_scan",
    "chip": "v6e",
    "dtype": "float32",
    "B": 8,
    "D": 1024,
    "constant": False,
    "T": 4096,
    "contender": "tpu",
    "forward": WAY,
    "backward": WAY,
    "compile_seconds": 1.0,
}
MEMORY_ROW = {
    "operation": "matrix_memory",
    "chip": "v6e",
    "rule": "gla",
    "contender": "jaxrnn",
    "forward": WAY | {"microseconds": 1.0},
    "backward": WAY | {"microseconds": 1.0},
    "compile_seconds": 1.0,
}


@pytest.fixture
def without_compilers(monkeypatch):
    """The command, with the row it is to find in place of every compilation."""
    monkeypatch.setattr(aot, "missing", lambda chips, kinds: [])
    monkeypatch.setattr(aot_tpu, "prepare", lambda: None)
    monkeypatch.setattr(aot_gpu, "prepare", lambda: None)
    monkeypatch.setattr(aot_gpu, "layer", lambda build, case: (HLO, 1.0))
    row, linear = json.loads(json.dumps((TPU_ROW, LINEAR_ROW)))

    def measuring(row):
        return lambda case, name, folder: row | case._asdict() | {"contender": name}

    gathers = {"chip": "v5e", "how": "jit", "kernel": False, "gathers": 0}
    monkeypatch.setattr(aot_tpu, "measure", measuring(row))
    monkeypatch.setattr(aot_linear, "measure", measuring(linear))
    monkeypatch.setattr(aot_memories, "measure", measuring(MEMORY_ROW))
    monkeypatch.setattr(aot_tpu, "sharded", lambda: [gathers])
    return row, linear, gathers


def test_the_command_writes_a_row_for_each_program(without_compilers, tmp_path, capsys):
    assert aot.main(["--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "aot.json").read_text())
    assert content["machine"]["versions"]["jax"] == jax.__version__ and not content["failed"]
    for kind, least in (("tpu", 60), ("gpu", 48), ("linear", 20), ("memories", 29)):
        keys = [aot._key(row) for row in content[kind]]
        assert len(keys) == len(set(keys)) >= least
    names = {row["contender"] for row in content["tpu"] if row["H"] == 512 and row["B"] == 64}
    assert names == set(aot_tpu.CONTENDERS)
    assert {row["chip"] for row in content["tpu"]} == set(aot_tpu.CHIPS)
    assert {row["chip"] for row in content["linear"]} == set(aot.CHIPS)
    assert {row["contender"] for row in content["linear"]} == set(aot_linear.CONTENDERS)
    for row in content["gpu"]:
        steps = int(row["shape"].split("T=")[1].split()[0])
        assert (row["a_step"], row["outside"]) == (28 / steps, 2)
        assert row["loops"] == [[4, 4], [12, 1]]
    aside = (row for row in content["memories"] if row["contender"] == "scan")
    assert {row["chip"] for row in aside} == {"v6e"}
    shown = capsys.readouterr().out
    assert "scan takes 1.00 times the kernel's least time" in shown
    assert "1.00 / 1.00" in shown and "MiB" in shown
    # Some kinds again: the other rows stay, and when they were made.
    assert aot.main(["--kinds", "memories", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "aot.json").read_text())
    assert set(again.pop("apart")) == {"memories"} and again == content


def test_a_run_goes_on_where_another_was_stopped(without_compilers, tmp_path, monkeypatch):
    whole, given = aot_memories.measure, ["--kinds", "memories", "--out", str(tmp_path)]
    calls = []

    def stopped(case, name, folder):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((case, name))
        return whole(case, name, folder)

    monkeypatch.setattr(aot_memories, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        aot.main(given)
    assert not (tmp_path / "aot.json").exists()
    with pytest.raises(SystemExit, match="remove it or take another"):
        aot.main([*given, "--most", "1"])
    with monkeypatch.context() as edited, pytest.raises(SystemExit, match="remove it or take"):
        edited.setattr(aot, "_sources", lambda: "of another commit")
        aot.main(given)
    counted = lambda *case: calls.append(case[:2]) or whole(*case)
    monkeypatch.setattr(aot_memories, "measure", counted)
    assert aot.main(given) == 0
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text())["memories"]
    assert len(rows) == len(calls) == len(set(calls))
    assert [(row["chip"], row["rule"], row["contender"]) for row in rows] == [
        (case.chip, case.rule, name) for case, name in calls
    ]


def test_what_is_worse_fails(without_compilers, tmp_path, capsys, monkeypatch):
    row, linear, gathers = without_compilers
    arguments = ["--out", str(tmp_path), "--chips", "v5e", "v6e"]
    kept = {"tpu": [TPU_ROW | {"B": batch} for batch in (16, 64)], "linear": [LINEAR_ROW]}
    (tmp_path / "aot.json").write_text(json.dumps(kept))
    row["backward"]["cycles"] = 219.0  # less than a tenth
    assert aot.main(arguments) == 0
    row["backward"]["cycles"], gathers["gathers"] = 221.0, 2
    linear["forward"]["bytes"] = 11.5
    assert aot.main(arguments) == 1
    failed = json.loads((tmp_path / "aot-failed.json").read_text())["failed"]
    assert failed == [
        "v5e jit: 2 gathers of the batch",
        "v6e lstm 512 16 1 tpu: cycles, backward 200 -> 221",
        "v6e lstm 512 64 1 tpu: cycles, backward 200 -> 221",
        "v6e linear_scan 8 1024 float32 False tpu: bytes, forward 10 -> 11.5",
    ]
    assert json.loads((tmp_path / "aot.json").read_text()) == kept, "the good figures are gone"

    def overflow(case, contender, folder):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.\nmore")

    monkeypatch.setattr(aot_tpu, "measure", overflow)
    assert aot.main([*arguments, "--most", "1"]) == 1
    assert "Ran out of memory in memory space vmem." in capsys.readouterr().out


def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aot.machine, "version", {"jaxlib": "1.2.3"}.get)
    monkeypatch.setattr(aot_gpu.shutil, "which", lambda name: None)
    assert aot.main(["--out", str(tmp_path)]) != 0
    shown = capsys.readouterr().out
    assert "jaxrnn[aot]" in shown
    assert "pip install libtpu jax-cuda13-plugin==1.2.3 nvidia-cuda-nvcc" in shown
    assert not list(tmp_path.iterdir())


def test_a_matrix_memory_is_counted(tmp_path, monkeypatch, capsys):
    """By hand, what is read and written at least: q k v, the gates, and C and m twice."""
    devices = jax.sharding.Mesh(jax.devices("cpu")[:1], ("batch",))
    monkeypatch.setattr(aot_gpu, "devices", lambda count: devices)
    monkeypatch.setattr(aot_gpu, "missing", lambda: [])
    monkeypatch.setattr(mlstm.compiler, "library", lambda: "some NVRTC")
    monkeypatch.setattr(mlstm.compiler, "version", lambda: (13, 5))
    monkeypatch.setattr(aot_gpu, "prepare", lambda: None)
    case, ways = mlstm.Case("exp", "bfloat16", 130, 2, 3, 4), mlstm.WAYS
    monkeypatch.setattr(mlstm, "CASES", (case,))
    monkeypatch.setattr(mlstm, "WAYS", ways[:1])  # the other takes seconds to compile
    monkeypatch.setattr(mlstm.registers, "CHIPS", {})
    assert mlstm.main(["--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "mlstm.json").read_text())["rows"]
    heads = 2 * 3
    factors, state, gates = 2 * 130 * heads * (4 + 4 + 5), 4 * heads * (4 * 5 + 1), 4 * 130 * heads
    ys, ms = 4 * 130 * heads * 5, gates
    assert row["least"] == factors + 2 * gates + 2 * state + ys + ms
    assert row["bytes"] > row["least"] and row["kernels"] > 3  # chunks
    assert row["milliseconds"]["kernels"] == row["kernels"] * 2e-3
    assert f"{row['kernels']:,} kernels" in capsys.readouterr().out
    both = mlstm.least(*mlstm.program(case, ways[1]))
    assert both == 2 * (factors + 2 * gates + state) + state + ys + ms


# what XLA makes for eight TPUs


@pytest.mark.skipif(machine.version("libtpu") is None, reason="needs libtpu")
def test_a_batch_over_eight_tpus_stays_there():
    """The kernel runs under plain jit as it does in a shard_map, and nothing is gathered."""
    aot_tpu.prepare()
    for row in aot_tpu.sharded():
        assert row["kernel"] and not row["gathers"], row


# what XLA makes for an H200

MOST = {  # kernels a step: forward, value and grad
    ("lstm", "float32"): (2.375, 6.125),
    ("lstm", "bfloat16"): (2.5, 6.25),
    ("gru", "float32"): (2.375, 5.625),
    ("gru", "bfloat16"): (2.5, 5.75),
}
needs_compiler = pytest.mark.skipif(
    bool(aot_gpu.missing()), reason=f"needs jaxrnn[aot]: {' '.join(aot_gpu.missing())}"
)


@pytest.fixture(scope="module")
def h200():
    try:
        return aot_gpu.devices(1)
    except NotImplementedError:
        pytest.skip("JAX looked for a GPU: JAX_PLATFORMS=cpu has to be set before it starts")


@needs_compiler
@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "value_and_grad"])
@pytest.mark.parametrize(("cell", "dtype"), MOST)
def test_few_kernels_a_step(h200, cell, dtype, direction):
    shape, name = SHAPES["large"], contenders.DIRECTIONS[direction]
    text, _ = aot_gpu.layer(aot_gpu.loop, aot_gpu.Case(cell, dtype, shape, name), h200)
    found = launches.count(text)
    assert len(found.loops) == 1 + direction
    assert found.a_step(shape.T) <= MOST[cell, dtype][direction]


@needs_compiler
@pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_kernel_for_gpus_is_what_runs(h200, cell):
    """One call for all steps, forward and backward, and no loop."""
    case = aot_gpu.Case(cell, "bfloat16", SHAPES["large"], "value_and_grad")
    text, _ = aot_gpu.layer(contenders.ours, case, h200)
    assert text.count('custom_call_target="jaxrnn_gpu"') == 2
    assert not launches.count(text).loops


@needs_compiler
def test_steps_over_a_chunk_are_few(h200):
    shape = SHAPES["large"]._replace(T=255)
    case = aot_gpu.Case("lstm", "float32", shape, "value_and_grad")
    text, _ = aot_gpu.layer(aot_gpu.loop, case, h200)
    found = launches.count(text)
    assert sorted(trips for trips, _ in found.loops) == [7, 7, 31, 31]
    assert found.a_step(shape.T) <= 1.1 * MOST["lstm", "float32"][1]


@needs_compiler
def test_a_linear_recurrence_moves_little(h200):
    """The whole sequence in a few kernels and about twice the least bytes."""
    row = aot_linear.measure(aot_linear.Case("h200", "float32", 8, 1024), "jaxrnn", None)
    ways = [row[way] for way in aot_linear.WAYS]
    assert ways[0]["kernels"] <= 6 and ways[1]["kernels"] <= 7
    assert max(way["times_least"] for way in ways) < 2.3


@needs_compiler
def test_the_definition_gives_the_known_count_of_a_plain_scan(h200):
    """5 a step forward: product, gates, h and c written down, the counter; 8 in the backward."""

    def lstm(xg, r, h, c):
        def step(state, x):
            h, c = state
            x = x.astype(jnp.float32) + jnp.dot(h, r, preferred_element_type=jnp.float32)
            i, f, g, o = jnp.split(x, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(r.dtype)
            return (h, c), (h, c)

        return jax.lax.scan(step, (h, c), xg)[1]

    def loss(*operands):
        return lstm(*operands)[0].astype(jnp.float32).sum()

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(h200, PartitionSpec()))

    operands = array(64, 16, 2048), array(512, 2048), array(16, 512)
    operands = (*operands, array(16, 512, dtype=jnp.float32))

    def count(function):
        return launches.count(jax.jit(function).lower(*operands).compile().as_text())

    assert count(lstm).loops == [(64, 5)]
    forward, backward = count(jax.value_and_grad(loss, (0, 1))).loops
    assert forward[1] >= 15
    assert backward == (64, 8)
