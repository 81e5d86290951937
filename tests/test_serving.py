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
    steps, rows = export.symbolic_shape("T, B")
    with pytest.raises(ValueError, match="implementation='cpu' cannot run .*: a size is symbolic"):
        export.export(unroll)(jax.ShapeDtypeStruct((steps, rows, 4), "float32"))


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
