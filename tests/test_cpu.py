"""The kernel for CPUs: its functions, every instruction set, memory, many calls at once."""

import concurrent.futures
import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, CELLS, GATED, REFERENCE, TOLERANCE, example

import jaxrnn
from jaxrnn._src.ops import native
from jaxrnn._src.ops.recurrence import program

pytestmark = pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
SETS = native.library().instruction_sets
every_set = pytest.mark.parametrize("isa", SETS)
CPUINFO = pathlib.Path("/proc/cpuinfo")
FLAGS = CPUINFO.exists() and re.search(r"^flags.*: (.*)", CPUINFO.read_text(), re.MULTILINE)
FLAGS = set(FLAGS[1].split()) if FLAGS else set()
FUSED = [name for name, case in GATED.items() if "cpu" in case.faster]


def evaluate(function, *args, isa=""):
    """An elementwise function of arrays [K] of one type, by a program of the kernel."""
    avals = [jax.ShapeDtypeStruct((3,), a.dtype) for a in args]
    made = program.compiled(function, avals, native.library().operations)
    out = [jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)] * len(made.outputs)
    return jax.ffi.ffi_call("jaxrnn_evaluate", out)(
        *args,
        registers=made.registers,
        program=np.array(made.instructions, np.int32).reshape(-1),
        constants=np.array(made.constants, np.float64),
        outputs=np.array(made.outputs, np.int32),
        isa=isa,
    )


def every_float32():
    """All signs and exponents, and 64 numbers of each exponent; zero, infinity and NaN too."""
    bits = np.arange(0, 2**32, 2**17, dtype=np.uint64) + np.random.default_rng(0).integers(2**17)
    ends = np.array([0, np.inf, -np.inf, np.nan], np.float32)
    return np.append(bits.astype(np.uint32).view(np.float32), ends)


@every_set
@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("exp", np.exp),
        ("tanh", np.tanh),
        ("logistic", lambda x: np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-np.abs(x)))),
    ],
)
def test_functions_to_two_units_in_the_last_place(isa, name, exact):
    x = every_float32()
    x = np.where(np.isnan(x), np.float32(np.nan), x)  # no signalling ones: NumPy warns of them
    (y,) = evaluate(getattr(jax.lax, name), jnp.array(x), isa=isa)
    y = np.asarray(y)
    with np.errstate(all="ignore"):
        wanted = exact(x.astype(np.float64))
        nearest = wanted.astype(np.float32)
        unit = np.spacing(np.abs(nearest)).astype(np.float64)
        off = np.abs(y.astype(np.float64) - wanted) / unit
    nan, tiny = np.isnan(x), np.abs(wanted) < 2.0**-126  # what is subnormal may be zero
    assert np.isnan(y[nan]).all() and not np.isnan(y[~nan]).any()
    assert (np.abs(y[tiny & ~nan]) <= 2.0**-126).all()
    infinite = np.isinf(nearest)
    assert (y[infinite] == nearest[infinite]).all()
    assert off[~(nan | tiny | infinite)].max() <= 2
    order = np.argsort(x[~nan])
    x, y, nearest = x[~nan][order], y[~nan][order], nearest[~nan][order]
    assert (y[[0, -1]] == nearest[[0, -1]]).all(), "does not reach its limits"
    for side in (x < -20, x > 20):
        assert (y[side][1:] >= y[side][:-1]).all(), "falls where it should stay"


OF_ONE = {
    "abs": jnp.abs,
    "sign": jnp.sign,
    "exp2": jnp.exp2,
    "log": lambda x: jnp.log(x * x),
    "log1p": lambda x: jnp.log1p(x * x),
    "expm1": jnp.expm1,
    "sqrt": lambda x: jnp.sqrt(x * x + 1),
    "rsqrt": lambda x: jax.lax.rsqrt(x * x + 1),
    "cbrt": jnp.cbrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": lambda x: jnp.asin(x / 4),
    "acos": lambda x: jnp.acos(x / 4),
    "atan": jnp.atan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "asinh": jnp.asinh,
    "acosh": lambda x: jnp.acosh(2 + x * x),
    "atanh": lambda x: jnp.atanh(x / 4),
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "cube": lambda x: x**3,
    "inverse": lambda x: (1 + x * x) ** -2,
    "square": jnp.square,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "mish": jax.nn.mish,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "log2": lambda x: jnp.log2(x * x),
    "finite": lambda x: x * jnp.isfinite(x).astype(x.dtype),
    "same": lambda x: x,
}
OF_TWO = {
    "pow": lambda x, y: (1 + x * x) ** y,
    "atan2": jnp.atan2,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "sums": lambda x, y: (x * y + y) - (2 - x * x * y) + (y * y - x),
    "compare": lambda x, y: jnp.where((x < y) & (x > -1) | ~(y <= 0), x, 0.5 * y),
    "others": lambda x, y: jnp.where((x >= y) ^ (x != 1) ^ (y == 1), -x, y),
}
OPERATIONS = [(1, name) for name in OF_ONE] + [(2, name) for name in OF_TWO]


@pytest.mark.parametrize(("count", "name"), OPERATIONS)
def test_every_operation(x64, plain_jax, count, name):
    """A program gives what XLA gives, of the function and of its derivative, in both types."""
    function = (OF_ONE, OF_TWO)[count - 1][name]
    rng = np.random.default_rng(0)

    def both(g, *args):
        value, pull = jax.vjp(function, *args)
        return value, *pull(g)

    arrays = rng.normal(size=(1 + count, 1003))
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        args = [jnp.array(a, dtype) for a in arrays]
        wanted, came = jax.jit(both)(*args), evaluate(both, *args)
        assert np.isfinite(came).all() and cases.error(came, list(wanted)) < tolerance


def test_every_operation_is_tried():
    """Each name in native/cpu/operations.h is in some program above."""
    tried, names = {"exp", "tanh", "logistic"}, native.library().operations
    for count, name in OPERATIONS:
        rows = [jax.ShapeDtypeStruct((3,), jnp.float32)] * count
        made = program.compiled((OF_ONE, OF_TWO)[count - 1][name], rows, names)
        tried |= {names[number] for number, *_ in made.instructions}
    assert tried == set(names)


def test_a_program_shares_and_joins():
    """Common parts once, products joined to sums, registers used again, no result in an input."""

    def function(x, y):
        return jnp.tanh(x) * y + x, jnp.tanh(x) * 3.0, x

    rows = [jax.ShapeDtypeStruct((3,), jnp.float32)] * 2
    made = program.compiled(function, rows, native.library().operations)
    names = [native.library().operations[number] for number, *_ in made.instructions]
    assert sorted(names) == ["copy", "fma", "mul", "tanh"]
    assert made.registers == 2 + 1 + 3 and made.constants == (3.0,)
    assert min(made.outputs) >= 3


@jax.custom_jvp
def rounded(x):
    return jnp.round(x)


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


def rounded_update(state, x, r):
    return (jnp.tanh(rounded(x[0] + r[0])),)


def test_an_unknown_operation_is_named():
    cell = jaxrnn.gated(rounded_update, gates=1)(4)
    params = cell.init(jax.random.key(0), 3)
    xs = jnp.ones((5, 2, 3))
    (choice,) = jaxrnn.explain(cell, params, xs).choices
    assert choice.runs == "xla" and "round" in choice.others["cpu"]
    with pytest.raises(ValueError, match="cannot run this on cpu: .*: round"):
        jaxrnn.unroll(cell, params, xs, implementation="cpu")
    with pytest.raises(ValueError, match="cannot run this on cpu: .*: round"):
        jax.jit(lambda: jaxrnn.unroll(cell, params, xs, implementation="cpu"))()


def results(e, implementation, **given):
    """Outputs and gradients, compiled anew."""
    return jax.jit(lambda *moving: of(e.cell, moving, implementation, **given))(*e[1:4])


def of(cell, moving, implementation, **given):
    run = lambda *moving: jaxrnn.unroll(cell, *moving, implementation=implementation, **given)
    out, pull = jax.vjp(run, *moving)
    return out, pull(cases.cotangents(out))


@functools.cache
def several(name):
    """A cell in three shapes, a type of xs each: ``run(implementation)``, one program for all.

    Every shape meets every type in some cell.
    """
    shapes = BASE, cases.Shape(3, (13,), 5, 100), cases.Shape(4, (1,), 2, 33)
    types = np.roll(("float32", "bfloat16", "float16"), FUSED.index(name)).tolist()
    rng, given, cells = np.random.default_rng(0), [], []
    for (steps, batch, inputs, hidden), dtype in zip(shapes, types, strict=True):
        hidden = -(-hidden // GATED[name].heads) * GATED[name].heads
        cell = GATED[name].make(hidden)
        params = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))  # noqa: B023
        state = jax.eval_shape(lambda p: cell.initial_state(p, batch), params)  # noqa: B023
        xs = jax.ShapeDtypeStruct((steps, *batch, inputs), dtype)
        draw = lambda a, scale=0.5: (scale * rng.normal(size=a.shape)).astype(a.dtype)
        params = jax.tree.map(lambda p: draw(p, 0.5 / hidden**0.5), params)  # noqa: B023
        flags = rng.random((2, steps, *batch)) < [[[0.7]], [[0.3]]]
        moving = params, *jax.tree.map(draw, (xs, state))
        given.append((moving, dict(zip(("mask", "starts"), flags))))
        cells.append(cell)

    def run(implementation):
        def all_of_them(given):
            pairs = zip(cells, given, strict=True)
            return [of(cell, moving, implementation, **flags) for cell, (moving, flags) in pairs]

        return jax.jit(all_of_them)(given)

    return types, run, run(REFERENCE)


@every_set
@pytest.mark.parametrize("name", FUSED)
def test_every_instruction_set(monkeypatch, isa, name):
    """Each with every cell, shape and type."""
    monkeypatch.setenv(native.ISA, isa)
    types, run, wanted = several(name)
    for dtype, ours, theirs in zip(types, run("cpu"), wanted, strict=True):
        for came, true, most in zip(ours, theirs, TOLERANCE[dtype], strict=True):
            assert cases.error(came, true) < most


def added_update(state, x, r):
    return (x[0] + r[0],)


@every_set
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_narrow_types_are_rounded_as_numpy_rounds(monkeypatch, isa, dtype):
    """Every number there is, times some: to the nearest, to subnormals and to infinity."""
    monkeypatch.setenv(native.ISA, isa)
    factors = np.array([1, 0.3, 1e-3, -3e4], np.float32)
    cell = jaxrnn.gated(added_update, gates=1)(4)
    params = {"w": factors.reshape(1, 1, 4), "r": np.zeros((4, 1, 4), np.float32)}
    params["b"] = np.zeros((1, 4), np.float32)
    xs = np.arange(1 << 16, dtype=np.uint16).view(jnp.dtype(dtype)).reshape(1, -1, 1)
    run = jax.jit(lambda *args: jaxrnn.unroll(cell, *args, implementation="cpu")[1])
    came = np.asarray(run(params, xs)).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = xs.astype(np.float32) * factors
        wanted = exact.astype(xs.dtype).astype(np.float32)
    # What is subnormal in float32 is zero.
    normal = ~((np.abs(exact) < 2.0**-126) | (np.abs(xs.astype(np.float32)) < 2.0**-126))
    assert normal.mean() > 0.9
    np.testing.assert_array_equal(came[normal], wanted[normal])


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump reads the machine code")
def test_a_number_meets_a_vector_by_one_broadcast():
    """No number is added to zero before it is put into all lanes: see ``broadcast``."""
    if "avx2" not in SETS:
        pytest.skip("the names of its instructions are those of AVX")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(native.file())]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [line.split("\t")[-1] for line in text.splitlines() if "\t" in line]
    added = [re.match(r"vadds[sd] .*%xmm(\d+)$", line) for line in code]
    spread = [
        line
        for i, add in enumerate(added)
        for line in code[i + 1 : i + 9]
        if add and re.match(rf"(vbroadcasts[sd]|vmovddup) +%xmm{add[1]},", line)
    ]
    assert len(code) > 10_000 and not spread


@every_set
def test_float64_on_every_instruction_set(x64, monkeypatch, isa):
    monkeypatch.setenv(native.ISA, isa)
    e = example(CELLS["lstm"], cases.Shape(3, (13,), 5, 100))
    assert cases.error(results(e, "cpu"), results(e, REFERENCE)) < 1e-12


def test_an_instruction_set_this_machine_has_not(monkeypatch):
    monkeypatch.setenv(native.ISA, "z80")
    e = example(CELLS["lstm"], BASE, dtype=jnp.float32)
    (choice,) = jaxrnn.explain(e.cell, e.params, e.xs).choices
    assert choice.runs == "xla" and "z80" in choice.others["cpu"]


@pytest.mark.skipif(not FLAGS, reason="Linux on x86-64 says what its processor has")
def test_the_sets_are_those_of_the_processor():
    """Whatever compiler built the library: zig's runtime knows of no processor."""
    avx512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"} <= FLAGS
    avx2 = {"avx2", "fma"} <= FLAGS
    assert [*SETS] == ["avx512"] * avx512 + ["avx2"] * avx2 + ["baseline"]


def test_without_the_library(monkeypatch):
    """As after an installation without a compiler."""
    monkeypatch.setattr(native, "library", lambda: native.Library("it was not built: no compiler"))
    e = example(CELLS["lstm"], BASE, dtype=jnp.float32)
    (choice,) = jaxrnn.explain(e.cell, e.params, e.xs).choices
    assert choice.runs == "xla" and choice.others["cpu"] == "it was not built: no compiler"
    with pytest.raises(ValueError, match="no compiler"):
        jax.jit(lambda: jaxrnn.unroll(e.cell, e.params, e.xs, implementation="cpu"))()


def test_a_missing_library_is_told_once(monkeypatch, tmp_path, caplog):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", none)
    load = functools.cache(native.library.__wrapped__)
    monkeypatch.setattr(native, "file", lambda: None)
    assert load().missing == load().missing != ""
    monkeypatch.setattr(native, "file", lambda: tmp_path / "absent.so")
    assert "absent.so" in native.library.__wrapped__().missing
    missing, absent = caplog.messages
    assert native.why_none() in missing and "absent.so" in absent


@pytest.mark.skipif(sys.platform != "linux", reason="another library, by Linux's name")
def test_a_library_of_another_version(monkeypatch):
    """It is not run: what it lacks is the reason."""
    monkeypatch.setattr(native, "file", lambda: pathlib.Path("libc.so.6"))
    missing = native.library.__wrapped__().missing
    assert missing == "libc.so.6 was built for another jaxrnn: it has no jaxrnn_forward"


class Installed:
    """What ``importlib.metadata.distribution`` gives of an installed jaxrnn with some files."""

    def __init__(self, root, *files, version=jaxrnn.__version__):
        self.root, self.version = root, version
        self.files = [importlib.metadata.PackagePath(name) for name in files]
        for file in self.files:
            file.dist = self

    def locate_file(self, path):
        return self.root / path


OPS = "jaxrnn/_src/ops"
CALLERS = [f"{OPS}/{caller}" for caller in native.CALLERS["cpu.so"]]
LIBRARY = f"{OPS}/lib/cpu.so"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The sources in a place without a library; where jaxrnn is installed, with its callers."""
    sources = pathlib.Path(jaxrnn.__file__).parents[1]
    clone, installed = tmp_path / "clone", tmp_path / "installed"
    for root in (clone, installed):
        for caller in CALLERS:
            (root / caller).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources / caller, root / caller)
    monkeypatch.delenv(native.FILE, raising=False)
    monkeypatch.setattr(sys.modules[native.__package__], "__path__", [str(clone / OPS)])
    return installed


def test_sources_without_a_library_take_the_installed_one(clone, monkeypatch):
    """As in the root of a clone, after pip install."""
    found = Installed(clone, LIBRARY, *CALLERS)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    assert native.file() == clone / LIBRARY
    beside = clone.parent / "clone" / LIBRARY
    beside.parent.mkdir()
    beside.touch()
    assert native.file() == beside


def test_every_caller_of_a_library_is_known():
    """An installed library is taken only if all of them are as it was built for."""
    ops = pathlib.Path(jaxrnn.__file__).parent / "_src" / "ops"
    calls = re.compile(r"\b(jax\.ffi\.ffi_call|native\.call)\(")
    calling = (path for path in ops.rglob("*.py") if calls.search(path.read_text()))
    known = [caller for callers in native.CALLERS.values() for caller in callers]
    # What a call says.
    writing = {"step_loop/parts.py", "delta_rule/cpu.py", "matrix_memory/cpu.py"}
    assert {str(path.relative_to(ops)) for path in calling} | writing == set(known)


def test_why_there_is_no_library(clone, monkeypatch):
    """Not installed; installed without a compiler; of another version; of other sources."""

    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def check(distribution, why):
        monkeypatch.setattr(importlib.metadata, "distribution", distribution)
        assert native.file() is None and re.search(why, native.why_none())

    check(none, "jaxrnn is not installed, only imported from .*clone")
    check(lambda name: Installed(clone, *CALLERS), "it was not built")
    other = Installed(clone, LIBRARY, *CALLERS, version="0.0.9")
    check(lambda name: other, f"built for jaxrnn 0.0.9, not for {jaxrnn.__version__}")
    for caller in CALLERS:
        as_it_was = (clone / caller).read_text()
        (clone / caller).write_text(as_it_was + "# changed\n")
        found = Installed(clone, LIBRARY, *CALLERS)
        check(lambda name, found=found: found, "built for other sources than those in")
        (clone / caller).write_text(as_it_was)


@pytest.mark.parametrize("name", ("lstm", "gru"))
@pytest.mark.parametrize("hidden", (16, 100, 128))
def test_a_row_has_the_same_bits_in_any_batch(name, hidden):
    e = example(CELLS[name], cases.Shape(5, (67,), 9, hidden), dtype=jnp.float32)
    run = jax.jit(
        lambda xs, state: jaxrnn.unroll(e.cell, e.params, xs, state, implementation="cpu")
    )
    whole = jax.tree.leaves(run(e.xs, e.state))
    for _ in range(3):
        assert all(map(np.array_equal, jax.tree.leaves(run(e.xs, e.state)), whole))
    for rows in (slice(3, 4), slice(10, 12), slice(60, 67)):
        *state, ys = jax.tree.leaves(run(e.xs[:, rows], tuple(s[rows] for s in e.state)))
        assert np.array_equal(ys, whole[-1][:, rows])
        assert all(np.array_equal(a, b[rows]) for a, b in zip(state, whole[:-1], strict=True))


def calls(function, *args):
    """The kernel's calls in a compiled program."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return [text.count(f'custom_call_target="jaxrnn_{name}"') for name in ("forward", "backward")]


@pytest.mark.parametrize("name", ("lstm", "gru", "mgu", "peephole", "lstm_heads", "gru_states"))
def test_the_kernel_is_what_runs(name):
    """By default, on this platform, forward and backward; one call whatever is mapped."""
    e = example(CELLS[name], BASE, dtype=jnp.float32)
    unroll = lambda params, xs: jaxrnn.unroll(e.cell, params, xs)[1]
    loss = lambda params, xs: (unroll(params, xs) ** 2).sum()
    grad = jax.grad(loss, (0, 1))
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), e.params)
    rows = jnp.moveaxis(e.xs, 1, 0)
    assert calls(unroll, e.params, e.xs) == [1, 0]
    assert calls(grad, e.params, e.xs) == [1, 1]
    assert calls(jax.vmap(grad, (None, 0)), e.params, rows) == [1, 1]
    assert calls(jax.vmap(grad, (0, None)), several, e.xs) == [1, 1]
    assert calls(jax.grad(lambda p, x: jax.vmap(loss, (0, None))(p, x).sum()), several, e.xs) == [
        1,
        1,
    ]
    assert calls(jax.checkpoint(grad), e.params, e.xs)[1] == 1


def test_a_forward_alone_keeps_no_gates():
    cell = jaxrnn.lstm(64)
    params = cell.init(jax.random.key(0), 8)
    xs = jnp.ones((300, 4, 8))
    run = jax.jit(lambda p, x: jaxrnn.unroll(cell, p, x, implementation="cpu")[1])
    memory = run.lower(params, xs).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 300 * 4 * 4 * 64 * 4 / 8


def gradient_memory(residuals, steps):
    cell = jaxrnn.lstm(64, residuals=residuals)
    params = cell.init(jax.random.key(0), 8)
    run = jax.jit(jax.grad(lambda p, x: jaxrnn.unroll(cell, p, x, implementation="cpu")[1].sum()))
    xs = jax.ShapeDtypeStruct((steps, 4, 8), jnp.float32)
    return run.lower(params, xs).compile().memory_analysis().temp_size_in_bytes


def test_what_is_kept_for_a_gradient():
    """Gates, states, or a state every sqrt(T) steps; ys and its gradient are there in any case."""
    steps, row = 4096, 4 * 64 * 4  # bytes of a state
    gates, states, chunks = (gradient_memory(r, steps) for r in ("gates", "states", "chunks"))
    assert gates - states > 3.9 * steps * row
    assert chunks < 3 * steps * row < states
    assert gradient_memory("chunks", 4 * steps) - chunks < 2.1 * (3 * steps * row)


def test_many_calls_at_once():
    """More callers than threads, each with a task for all threads: nobody waits for ever."""
    cell = jaxrnn.lstm(128)
    params = cell.init(jax.random.key(0), 16)
    xs = jax.random.normal(jax.random.key(1), (60, 3, 16))
    grad = jax.jit(
        jax.value_and_grad(lambda p, x: (jaxrnn.unroll(cell, p, x)[1] ** 2).sum(), (0, 1))
    )
    wanted = grad(params, xs)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(lambda: jax.block_until_ready(grad(params, xs))) for _ in range(64)]
        came = [future.result(timeout=120) for future in futures]
    for one in came:
        assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(wanted)))


UNEQUAL = """
import jax, jaxrnn, os
cell = jaxrnn.gru(32)
params = cell.init(jax.random.key(0), 1)
for more in (1, 3, 5):
    xs = jax.random.normal(jax.random.key(1), (100, 12 * os.cpu_count() + more, 1))
    loss = lambda p, which: (jaxrnn.unroll(cell, p, xs, implementation=which)[1] ** 2).sum()
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    wanted = gradient(params, "reference")["r"]
    for _ in range(50):  # it takes threads that meet
        error = abs(gradient(params, "cpu")["r"] - wanted).max() / abs(wanted).max()
        assert error < 1e-4, (more, error)
"""


def test_slices_of_unequal_size():
    """The last slice of a batch has fewer rows than the others, and more steps in a chunk.

    In a process of its own, which has a thread for each core: here there is one for each device.
    """
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", UNEQUAL], env=own, check=True, timeout=300)


@pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices")
def test_on_every_device_at_once():
    """Each of eight devices of this machine calls the kernel, inside a scan and a vmap."""
    cell = jaxrnn.gru(128)
    params = cell.init(jax.random.key(0), 16)
    xs = jax.random.normal(jax.random.key(1), (8, 3, 20, 2, 16))

    def one(xs):
        run = jax.vmap(lambda x: jaxrnn.unroll(cell, params, x)[1].sum())
        return jax.lax.scan(lambda total, _: (total + run(xs).sum(), None), 0.0, None, length=3)[0]

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("d",))
    parts = jax.sharding.PartitionSpec("d")
    every = jax.shard_map(
        lambda x: one(x[0])[None], mesh=mesh, in_specs=parts, out_specs=parts, check_vma=False
    )
    came = jax.jit(every)(xs)
    wanted = jnp.stack([one(x) for x in xs])
    assert cases.error(came, wanted) < 1e-5


def test_more_than_the_kernel_was_made_for():
    def wide_update(state, x, r):
        return (jnp.tanh(sum(a + b for a, b in zip(x, r))),)

    cell = jaxrnn.gated(wide_update, gates=17)(4)
    params = cell.init(jax.random.key(0), 3)
    (choice,) = jaxrnn.explain(cell, params, jnp.ones((5, 2, 3))).choices
    assert "17 gates" in choice.others["cpu"]
