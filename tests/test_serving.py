"""What is exported runs in a process that never imports jaxrnn, and says the same."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxrnn
from jaxrnn._src.ops import native

pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
PLATFORMS = ("cpu", "tpu", "cuda")
XS = np.random.default_rng(0).normal(size=(7, 3, 4)).astype("float32")
CELLS = {
    "lstm": jaxrnn.lstm(6, heads=2),
    "lru": jaxrnn.stack(jaxrnn.project(6), jaxrnn.lru(6)),
    "int8": jaxrnn.int8(jaxrnn.stack(jaxrnn.gru(6), jaxrnn.lstm(5))),
}
SERVER = """
import pathlib, sys
import numpy as np
from jax import export

directory = pathlib.Path(sys.argv[1])
xs = np.load(directory / "xs.npy")
for name in sys.argv[2:]:
    read = lambda what: export.deserialize(bytearray((directory / (name + what)).read_bytes()))
    unroll, step = read(".unroll"), read(".step")
    assert unroll.platforms == step.platforms == ("cpu", "tpu", "cuda")
    state, ys = unroll.call(xs[:2])
    stream = [*ys]
    for x in xs[2:]:
        state, y = step.call(state, x)
        stream.append(y)
    np.savez(directory / name, stream=stream, whole=unroll.call(xs)[1])
assert "jaxrnn" not in sys.modules
"""


def serve(*arguments):
    """Runs Python in a process of its own, with JAX's own defaults."""
    ran = subprocess.run(list(map(str, (sys.executable, *arguments))), capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


def begun(cell):
    return jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 4)


def exported(cell, params, steps, rows):
    """Programs of unroll and of step, with the weights inside."""
    state = jax.eval_shape(lambda params: cell.initial_state(params, (rows,)), params)
    shape = lambda *sizes: jax.ShapeDtypeStruct((*sizes, 4), jnp.float32)
    unroll, step = (
        export.export(jax.jit(function), platforms=PLATFORMS)
        for function in (
            lambda xs: jaxrnn.unroll(cell, params, xs),
            lambda state, x: cell.step(params, state, x),
        )
    )
    return unroll(shape(steps, rows)), step(state, shape(rows))


def test_a_process_without_jaxrnn_runs_them(tmp_path):
    np.save(tmp_path / "xs.npy", XS)
    params = {name: begun(cell) for name, cell in CELLS.items()}
    for name, cell in CELLS.items():
        unroll, step = exported(cell, params[name], *export.symbolic_shape("T, B"))
        (tmp_path / f"{name}.unroll").write_bytes(unroll.serialize())
        (tmp_path / f"{name}.step").write_bytes(step.serialize())
    serve("-c", SERVER, tmp_path, *CELLS)
    for name, cell in CELLS.items():
        came = np.load(tmp_path / f"{name}.npz")
        wanted = jax.jit(lambda p: jaxrnn.unroll(cell, p, XS)[1])(params[name])  # noqa: B023
        assert cases.error([came["stream"], came["whole"]], [wanted, wanted]) < 1e-5, name


@pytest.mark.parametrize("sizes", ((7, 3), None), ids=("fixed", "symbolic"))
def test_nothing_of_this_library_is_called(sizes):
    cell = CELLS["lstm"]
    params = begun(cell)
    for program in exported(cell, params, *(sizes or export.symbolic_shape("T, B"))):
        assert "custom_call @jaxrnn" not in program.mlir_module()


@pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
def test_the_kernel_for_cpus_is_not_kept():
    cell = CELLS["lstm"]
    params = begun(cell)
    unroll = jax.jit(lambda xs: jaxrnn.unroll(cell, params, xs, implementation="cpu"))
    with pytest.raises(ValueError, match="(?s)no compatibility guarantees.*jaxrnn_forward"):
        export.export(unroll, platforms=("cpu",))(jnp.array(XS))


KEPT = """
import pathlib, sys
import numpy as np
from jax import export

program = export.deserialize(bytearray(pathlib.Path(sys.argv[1], "program").read_bytes()))
given = dict(np.load(sys.argv[1] + "/given.npz"))
try:
    program.call(given)
except Exception as error:
    print(error)
import jaxrnn
jaxrnn.load_kernels()
np.savez(sys.argv[1] + "/came", *program.call(given))
"""


@pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
def test_a_program_that_keeps_the_kernel(tmp_path):
    """Of any number of steps and rows, gradients too; by name and version of what it calls."""
    cell = jaxrnn.stack(jaxrnn.lstm(6, heads=2), jaxrnn.gru(5, residuals="states"))
    given = {"xs": XS, "lengths": np.array([7, 0, 4], np.int32)}
    for layer, params in jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 4).items():
        given |= {f"{layer}.{name}": np.asarray(a) for name, a in params.items()}

    def run(given):
        xs, lengths = given["xs"], given["lengths"]
        params = {i: {k[2:]: a for k, a in given.items() if k[:2] == f"{i}."} for i in "01"}
        ys, pull = jax.vjp(lambda *a: jaxrnn.unroll(cell, *a, lengths=lengths)[1], params, xs)
        return ys, *jax.tree.leaves(pull(2 * ys))

    steps, rows = export.symbolic_shape("T, B")
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in given.items()}
    shapes["xs"] = jax.ShapeDtypeStruct((steps, rows, 4), "float32")
    shapes["lengths"] = jax.ShapeDtypeStruct((rows,), "int32")
    run = jax.jit(run)
    kept = jaxrnn.export_with_kernels(run, platforms=PLATFORMS)(shapes)
    plain = export.export(run, platforms=("cpu",))(shapes)
    assert "@jaxrnn" not in plain.mlir_module()
    (tmp_path / "program").write_bytes(kept.serialize())
    np.savez(tmp_path / "given", **given)
    said = serve("-c", KEPT, tmp_path)
    assert f"jaxrnn_forward_{jaxrnn.__version__}" in said
    came, wanted = np.load(tmp_path / "came.npz"), run(given)
    assert all(np.array_equal(came[f"arr_{i}"], a) for i, a in enumerate(wanted))


@pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
def test_other_kernels_are_kept_of_known_sizes():
    memories = jaxrnn.mlstm(4, heads=2), jaxrnn.delta_net(4, heads=2)
    cell = jaxrnn.stack(jaxrnn.attention(4, heads=2), *memories, jaxrnn.lru(4))
    run = jax.jit(functools.partial(jaxrnn.unroll, cell))
    given = begun(cell), jnp.array(XS)
    kept = jaxrnn.export_with_kernels(run, platforms=PLATFORMS)(*given)
    names = ("attend", "matrix_memory", "delta_rule", "linear_scan")
    assert all(f"jaxrnn_{name}_forward_" in kept.mlir_module() for name in names)
    assert cases.error(jax.jit(kept.call)(*given), run(*given)) == 0


def test_a_program_without_a_kernel_to_keep():
    with pytest.raises(ValueError, match="in which the C.. kernel runs nothing"):
        jaxrnn.export_with_kernels(jnp.sin, platforms=["cpu"])(jnp.ones(3))


def test_kernels_that_are_missing(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: native.Library("it was not built"))
    with pytest.raises(RuntimeError, match="the kernel for CPUs is missing: it was not built"):
        jaxrnn.load_kernels()


def test_int8_stays_int8_in_the_file():
    wide = begun(jaxrnn.gru(64))
    cell, params = jaxrnn.quantize(jaxrnn.gru(64), wide)
    small, large = (
        len(exported(c, p, 5, 2)[1].serialize())
        for c, p in ((cell, params), (jaxrnn.gru(64), wide))
    )
    saved = sum(a.nbytes for a in jax.tree.leaves(wide)) - sum(
        a.nbytes for a in jax.tree.leaves(params)
    )
    assert large - small > 0.9 * saved


@functools.cache
def example():
    """Loaded once: what it compiled stays."""
    spec = importlib.util.spec_from_file_location("export_model", EXAMPLES / "export_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("plain_jax")
@pytest.mark.parametrize("options", ((), ("--int8",)), ids=("float32", "int8"))
def test_the_example(options, tmp_path):
    pytest.importorskip("optax"), pytest.importorskip("rich")
    example().main(["--steps", "5", "--hidden", "16", "--out", str(tmp_path), *options])
    weights = dict(np.load(tmp_path / "weights.npz"))
    assert weights["0.r"].dtype == ("int8" if options else "float32")
    said = serve(EXAMPLES / "serve.py", tmp_path, "--bytes", "5")
    assert "'The following " in said and said.endswith("jaxrnn is not imported\n")
    assert float(said.split("differ by ")[1].split()[0]) < 1e-5
