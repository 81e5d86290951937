"""How many kernels a step launches on a GPU, counted in what XLA makes for one."""

import json

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("rich", reason="the benchmarks need jaxrnn[bench]")

from benchmarks import kernels, launches  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402

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


def test_the_command_writes_a_row_for_each_program(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "missing", list)
    here = jax.sharding.NamedSharding(jax.make_mesh((1,), "x"), jax.sharding.PartitionSpec())
    monkeypatch.setattr(kernels, "target", lambda: here)
    monkeypatch.setattr(kernels, "compiled", lambda *case: HLO)
    arguments = ["--shapes", "small", "--dtypes", "bfloat16", "--out", str(tmp_path)]
    assert kernels.main(arguments) == 0
    content = json.loads((tmp_path / "kernels-h200.json").read_text())
    assert content["machine"]["versions"]["jax"] == jax.__version__
    cases = [(row["cell"], row["direction"], row["contender"]) for row in content["rows"]]
    assert len(cases) == len(set(cases)) == 2 * 2 * 3
    for row in content["rows"]:
        assert (row["a_step"], row["outside"]) == (28 / SHAPES["small"].T, 2)
        assert row["loops"] == [[4, 4], [12, 1]]
    assert capsys.readouterr().out.count("0.11 +  2") == 12  # the table


def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels.machine, "version", {"jaxlib": "1.2.3"}.get)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels.main(["--out", str(tmp_path)]) != 0
    shown = capsys.readouterr().out
    assert "jaxrnn[aot]" in shown
    assert "pip install jax-cuda13-plugin==1.2.3 nvidia-cuda-nvcc" in shown
    assert not list(tmp_path.iterdir())


# what XLA makes for an H200

MOST = {  # kernels a step: forward, value and grad
    ("lstm", "float32"): (2.375, 6.125),
    ("lstm", "bfloat16"): (2.5, 6.25),
    ("gru", "float32"): (2.375, 5.625),
    ("gru", "bfloat16"): (2.5, 5.75),
}
needs_compiler = pytest.mark.skipif(
    bool(kernels.missing()), reason=f"needs jaxrnn[aot]: {' '.join(kernels.missing())}"
)


@pytest.fixture(scope="module")
def h200():
    try:
        return kernels.target()
    except NotImplementedError:
        pytest.skip("JAX looked for a GPU: JAX_PLATFORMS=cpu has to be set before it starts")


@needs_compiler
@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "value_and_grad"])
@pytest.mark.parametrize(("cell", "dtype"), MOST)
def test_few_kernels_a_step(h200, cell, dtype, direction):
    shape, name = SHAPES["large"], kernels.DIRECTIONS[direction]
    text = kernels.compiled(kernels.ours, cell, shape, name, dtype, h200)
    found = launches.count(text)
    assert len(found.loops) == 1 + direction
    assert found.a_step(shape.T) <= MOST[cell, dtype][direction]


@needs_compiler
def test_steps_over_a_chunk_are_few(h200):
    shape = SHAPES["large"]._replace(T=255)
    text = kernels.compiled(kernels.ours, "lstm", shape, "value_and_grad", "float32", h200)
    found = launches.count(text)
    assert sorted(trips for trips, _ in found.loops) == [7, 7, 31, 31]
    assert found.a_step(shape.T) <= 1.1 * MOST["lstm", "float32"][1]


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
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=h200)

    operands = array(64, 16, 2048), array(512, 2048), array(16, 512)
    operands = (*operands, array(16, 512, dtype=jnp.float32))

    def count(function):
        return launches.count(jax.jit(function).lower(*operands).compile().as_text())

    assert count(lstm).loops == [(64, 5)]
    forward, backward = count(jax.value_and_grad(loss, (0, 1))).loops
    assert forward[1] >= 15
    assert backward == (64, 8)
