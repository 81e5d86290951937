"""The linear recurrence: every implementation is the loop of its definition."""

import contextlib
import ctypes
import functools
import types
from typing import Any, NamedTuple

import cases
import emulated as emulated_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated import emulated
from instead import instead
from interpreted import interpreted, interpreted_as_jax
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from transforms import equations, ran, six

import jaxrnn
from jaxrnn._src.core import dispatch
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops import linear_scan
from jaxrnn._src.ops.gpu import compiler, library
from jaxrnn._src.ops.linear_scan import gpu, problem, xla
from jaxrnn._src.ops.linear_scan.tpu import layout

REFERENCE = dispatch.REFERENCE
KERNEL = () if cases.NO_KERNEL else ("cpu",)
FASTER = ("xla", "chunks", *KERNEL, "tpu", "gpu")  # "chunks" is what "xla" does on a GPU
pytestmark = pytest.mark.usefixtures("x64", "chunks")
every_kind = pytest.mark.parametrize("constant", (False, True), ids=("each", "constant"))
each_kind = pytest.mark.parametrize(  # of the kernel for GPUs one: g++ compiles all that it runs
    ("implementation", "constant"),
    [(i, c) for i in FASTER for c in (False, True) if c or i != "gpu"],
)


@pytest.fixture
def chunks(monkeypatch):
    gpu = Target("cuda")
    module = types.SimpleNamespace(
        unsupported=xla.unsupported,
        forward=lambda *given: xla.forward(*given[:-1], gpu),
        backward=lambda *given: xla.backward(*given[:-1], gpu),
    )
    monkeypatch.setitem(linear_scan.IMPLEMENTATIONS, "chunks", module)


@contextlib.contextmanager
def small_blocks():
    """The kernel for TPUs, interpreted: several chunks and tiles in small arrays."""
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "STEPS", 16)
        patch.setattr(layout, "TILE", 1024)
        yield


@contextlib.contextmanager
def few_threads():
    """The kernel for GPUs, emulated: several tiles of time in few steps, several blocks."""
    with emulated(), instead((gpu, "THREADS", 32), (gpu, "WORDS", 1)):
        yield


def inside(implementation):
    """What it needs to run here."""
    needed = {"tpu": small_blocks, "gpu": few_threads}
    return needed.get(implementation, contextlib.nullcontext)()


ALL = (0, 1, 2)  # a, b and h0


class Given(NamedTuple):
    """The arrays of a call, and those that results are multiplied with."""

    a: Any
    b: Any
    h0: Any
    mask: Any
    starts: Any
    weights: Any


def given(steps=21, batch=(3,), size=4, *, constant=False, dtype="float64", flags=True):
    """Random arrays: rows with holes, several episodes, one of padding alone."""
    rng = np.random.default_rng(0)

    def random(*shape):
        a = rng.normal(size=shape)
        return jnp.array(a + 1j * rng.normal(size=shape) if np.dtype(dtype).kind == "c" else a)

    shape = (steps, *batch, size)
    a = random(*(shape[-1:] if constant else shape)) / 2
    mask, starts = rng.random(shape[:-1]) < 0.7, rng.random(shape[:-1]) < 0.2
    if batch and batch[0]:
        mask[:, 0] = False
    total = promoted(np.dtype(dtype), np.dtype("float32"))
    arrays = a.astype(dtype), random(*shape).astype(dtype), random(*shape[1:]).astype(total)
    flags = (jnp.array(mask), jnp.array(starts)) if flags else (None, None)
    weights = random(*shape[1:]).astype(total), random(*shape).astype(dtype)
    return Given(*arrays, *flags, weights)


def truth(g, reverse=False):
    """The definition in NumPy, step by step: ``(state, hs)``."""
    return results(g, reverse)[0]


def results(g, reverse=False):
    """``truth``, and the gradients of a, b and h0: its transpose, step by step."""
    a, b, h = (np.asarray(x) for x in (g.a, g.b, g.h0))
    constant, a = a.ndim < b.ndim, np.broadcast_to(a, b.shape)
    flags = np.ones(b.shape[:-1], bool), np.zeros(b.shape[:-1], bool)
    mask, starts = (f if x is None else np.asarray(x) for f, x in zip(flags, (g.mask, g.starts)))
    order = range(len(b))[::-1] if reverse else range(len(b))
    hs, before, d_a, d_b = (np.zeros_like(b) for _ in range(4))
    cut, crossed = np.zeros_like(mask), np.zeros(b.shape[1:-1], bool)
    for t in order:
        cut[t], real = starts[t], mask[t][..., None]
        if reverse:  # a cut that was crossed acts at the next real step
            cut[t] = crossed & mask[t]
            crossed = (crossed & ~mask[t]) | starts[t]
        h = before[t] = np.where(cut[t][..., None], 0, h)
        h = np.where(real, a[t] * h + b[t], h)
        hs[t] = np.where(real, h, 0)
    d, d_hs = (np.asarray(x) for x in g.weights)
    for t in order[::-1]:
        real = mask[t][..., None]
        d_b[t] = np.where(real, d + d_hs[t], 0)
        d_a[t] = np.where(real, d_b[t] * before[t], 0)
        d = np.where(cut[t][..., None], 0, np.where(real, a[t] * d_b[t], d))
    return (h, hs), (d_a.sum(tuple(range(d_a.ndim - 1))) if constant else d_a, d_b, d)


@functools.cache
def _both(implementation, reverse):
    @jax.jit
    def both(a, b, h0, mask, starts, weights):
        def scan(a, b, h0):
            return jaxrnn.linear_scan(
                a, b, h0, mask=mask, starts=starts, reverse=reverse, implementation=implementation
            )

        out, pull = jax.vjp(scan, a, b, h0)
        return out, pull(weights)

    return both


def run(g, implementation, reverse=False):
    """``(state, hs)``, and the gradients of a, b and h0."""
    with inside(implementation):
        return _both(implementation, reverse)(*g)


def wide(g):
    """The same numbers in the widest type."""

    def cast(x):
        return x if x.dtype == bool else x.astype(promoted(x.dtype, np.dtype("float64")))

    return jax.tree.map(cast, g)


def error(came, wanted):
    """As ``cases.error``, of complex numbers too."""

    def real(x):
        x = np.asarray(x)
        return np.stack([x.real, x.imag]).astype(float)

    return cases.error(jax.tree.map(real, came), jax.tree.map(real, wanted))


# The definition.


either = pytest.mark.parametrize(
    ("dtype", "reverse"), (("float64", False), ("complex128", True))
)  # the programs of `test_definition` serve where only values differ


@either
@every_kind
def test_truth(dtype, reverse, constant):
    """NumPy's gradients are differences along a direction, one array at a time."""
    g = given(constant=constant, dtype=dtype)
    for name, gradient in zip(("a", "b", "h0"), results(g, reverse)[1]):
        value = np.asarray(getattr(g, name))
        direction = np.random.default_rng(1).normal(size=value.shape)
        ends = [truth(g._replace(**{name: value + d * direction}), reverse) for d in (1e-6, -1e-6)]
        slope = sum((w * (x - y)).sum() / 2e-6 for w, x, y in zip(g.weights, *ends))
        came = (gradient * direction).sum()
        assert abs(came - slope) < 1e-7 * max(1, abs(slope)), name


@pytest.mark.parametrize("implementation", (REFERENCE, *FASTER))
@either
@every_kind
def test_definition(implementation, dtype, reverse, constant):
    g = given(constant=constant, dtype=dtype)
    assert error(run(g, implementation, reverse), results(g, reverse)) < 1e-12


@each_kind
@pytest.mark.parametrize(
    ("flag", "reverse"), (("neither", True), ("mask", False), ("starts", True))
)
def test_options(implementation, constant, flag, reverse):
    """The paths without masks and starts are others than those with both."""
    g = given(constant=constant)
    g = g._replace(**{name: None for name in ("mask", "starts") if name != flag})
    assert error(run(g, implementation, reverse), results(g, reverse)) < 1e-12


SHAPES = (
    (0, (2,), 3),
    (1, (2,), 3),
    (5, (0,), 3),
    (5, (2,), 0),
    (9, (), 5),
    (6, (2, 1, 3), 7),
    (18, (5,), 260),
    (35, (19,), 3),
)
SHAPES = dict.fromkeys(("xla", "chunks"), (*SHAPES, (5, (1,), 1), (150, (), 1))) | {
    "cpu": (*SHAPES, (600, (), 1), (17, (9,), 500)),  # sums of sums; several tasks
    "tpu": (*SHAPES, (19, (), 1)),  # interpreted, a step takes its time
    "gpu": ((1, (2,), 3), (35, (19,), 20)),  # narrow blocks and wide ones, each with a rest
}


@pytest.mark.parametrize(
    ("implementation", "shape"), [(i, s) for i in FASTER for s in SHAPES[i]], ids=str
)
def test_shapes(implementation, shape):
    g = given(*shape)
    (state, hs), gradients = run(g, implementation)
    assert hs.shape == g.b.shape and state.shape == g.h0.shape
    assert error(((state, hs), gradients), results(g)) < 1e-12


TYPES = (
    (("float32", "float32"), "float32", 2e-6),
    (("bfloat16", "bfloat16"), "float32", 2e-2),
    (("float32", "bfloat16"), "float32", 1e-2),
    (("bfloat16", "float32"), "float32", 1e-2),
    (("complex64", "complex64"), "complex64", 2e-6),
    (("float16", "float16"), "float32", 2e-3),  # from here on TPUs have none
    (("float32", "float64"), "float64", 1e-6),
)
WITH_TYPES = {"xla": slice(7), **dict.fromkeys(KERNEL, slice(7)), "tpu": slice(5)}
WITH_TYPES["gpu"] = slice(2, 6, 3)


@pytest.mark.parametrize(
    ("implementation", "types", "total", "tolerance"),
    [
        (implementation, *types)
        for implementation, some in WITH_TYPES.items()
        for types in TYPES[some]
    ],
)
def test_types(implementation, types, total, tolerance):
    g = given(dtype=max(types, key=lambda t: np.dtype(t).itemsize))
    g = g._replace(a=g.a.astype(types[0]), b=g.b.astype(types[1]), h0=g.h0.astype(total))
    g = g._replace(weights=(g.weights[0].astype(total), g.weights[1].astype(types[1])))
    (state, hs), gradients = run(g, implementation)
    assert (state.dtype, hs.dtype) == (total, types[1])
    assert [d.dtype for d in gradients] == [*types, total]
    assert error(((state, hs), gradients), results(wide(g))) < tolerance
    assert jax.eval_shape(lambda: jaxrnn.linear_scan(g.a, g.b))[0].dtype == total


@each_kind
def test_what_is_wanted_alone(implementation, constant):
    """Of the state or of hs alone, and the gradient of one array."""
    g = given(constant=constant)
    wanted = (0, ALL), (1, (0,)), (1, (1,)), (1, (2,))

    def scan(*moving):
        return jaxrnn.linear_scan(*moving, mask=g.mask, implementation=implementation)

    def one(which, arguments):
        loss = lambda *moving: (scan(*moving)[which] * g.weights[which]).sum()
        return jax.grad(loss, arguments)

    with inside(implementation):
        came = jax.jit(lambda *moving: [one(*which)(*moving) for which in wanted])(*g[:3])
    for (which, arguments), gradients in zip(wanted, came):
        weights = tuple(w if i == which else 0 * w for i, w in enumerate(g.weights))
        _, whole = results(g._replace(starts=None, weights=weights))
        assert error(gradients, tuple(whole[i] for i in arguments)) < 1e-12


# What must not matter.


@pytest.mark.parametrize("implementation", (REFERENCE, *FASTER))
@either
def test_nothing_in_padding_changes_a_bit(implementation, dtype, reverse):
    g = given(dtype=dtype)
    # Not even beside a state that is NaN by right.
    mask = g.mask.at[9:12, 2].set(jnp.array([False, True, False]))
    starts = g.starts.at[8:13, 2].set(False)
    g = g._replace(b=g.b.at[10, 2].set(jnp.nan), mask=mask, starts=starts)

    def filled(value):
        a, b, d_hs = (jnp.where(g.mask[..., None], x, value) for x in (g.a, g.b, g.weights[1]))
        return run(g._replace(a=a, b=b, weights=(g.weights[0], d_hs)), implementation, reverse)

    wanted = filled(0)
    for value in (jnp.nan, jnp.inf, 1e30):
        for came, want in zip(jax.tree.leaves(filled(value)), jax.tree.leaves(wanted)):
            np.testing.assert_array_equal(came, want)
    hs, gradients = wanted[0][1], wanted[1]
    for padded in (hs, *gradients[:2]):
        assert (padded[~g.mask] == 0).all()


@pytest.mark.parametrize("implementation", (*KERNEL, "tpu", "gpu"))
@either
def test_padding_alone_changes_no_bit(implementation, dtype, reverse):
    """Of a kernel's state and its gradient; XLA's chunks multiply, and lose a zero's sign."""
    g = given(dtype=dtype)
    numbers = jnp.array([np.inf, -0.0, np.nan, 1.5], dtype)
    h0, d_final = (jnp.broadcast_to(n, g.h0.shape) for n in (numbers, -numbers))
    none = jnp.zeros_like(g.mask)
    g = g._replace(h0=h0, mask=none, starts=none, weights=(d_final, g.weights[1]))
    (state, _), (*_, d_h0) = run(g, implementation, reverse)
    assert np.asarray(state).tobytes() == np.asarray(h0).tobytes()
    assert np.asarray(d_h0).tobytes() == np.asarray(d_final).tobytes()


@pytest.mark.parametrize("implementation", (REFERENCE, *FASTER))
@either
def test_an_episode_does_not_see_another(implementation, dtype, reverse):
    """Nor a NaN in it."""
    g, middle = given(dtype=dtype), slice(6, 17)
    starts = jnp.zeros_like(g.starts).at[jnp.array([6, 17])].set(True)
    b = g.b.at[3].set(jnp.nan).at[19].set(jnp.nan)
    g = g._replace(b=b, mask=jnp.ones_like(g.mask), starts=starts)
    (_, hs), (d_a, d_b, _) = run(g, implementation, reverse)
    weights = 0 * g.h0, g.weights[1][middle]
    (_, want), (want_a, want_b, _) = results(
        Given(g.a[middle], g.b[middle], 0 * g.h0, None, None, weights), reverse
    )
    assert error((hs[middle], d_a[middle], d_b[middle]), (want, want_a, want_b)) < 1e-12


@pytest.mark.parametrize("implementation", ("xla", "chunks", "gpu"))
def test_zero_times_what_overflowed(implementation):
    """Products of factors overflow where the states, zero so far, do not."""
    a, b = jnp.full((300, 1), 1e25, jnp.float32), jnp.zeros((300, 1), jnp.float32)
    g = Given(a, b.at[-2:].set(1.0), b[0], None, None, (b[0], b.at[:1].set(1.0)))
    assert error(run(g, implementation), results(g)) < 1e-6


# Transforms.


def loss(g, implementation=None):
    """A number made of hs and the final state, as a function of (a, b, h0)."""

    def value(a, b, h0):
        state, hs = jaxrnn.linear_scan(
            a, b, h0, mask=g.mask, starts=g.starts, implementation=implementation
        )
        return (jnp.sin(hs) * g.weights[1]).sum() + (jnp.cos(state) * g.weights[0]).sum()

    return value


SIX = six(weights=(0, None, None), data=(None, 1, 0))
# Where kernels differ.
MAPPED = ("remat", "vmap of grad, weights", "grad of both vmaps")
CHOSEN = {"tpu": MAPPED, "gpu": MAPPED[1:]}


@each_kind
def test_transforms(implementation, constant):
    """Those in which the operation's own functions can fail; all others in `test_operation`."""
    g = given(18, (2,), 2, constant=constant)
    names = CHOSEN.get(implementation, SIX)
    with interpreted_as_jax() if implementation == "tpu" else inside(implementation):
        found = ran({name: SIX[name](loss(g, implementation)) for name in names}, *g[:3])
    for name, (came, names) in found.items():
        wanted = _plain(constant)[name]
        assert error(came, wanted) < 1e-11, name
        assert "linear_scan_backward" in names, f"{name}: the operation did not run"
        # Reverse mode runs nothing of the reference's derivative.
        assert "linear_scan_tangent" not in names, name


@functools.cache
def _plain(constant):
    g = given(18, (2,), 2, constant=constant)
    found = ran({name: apply(loss(g, REFERENCE)) for name, apply in SIX.items()}, *g[:3])
    return {name: out for name, (out, _) in found.items()}


def test_vmap_over_data_is_one_batch():
    g = given(4, (), 2, flags=False)
    two = [jnp.stack([x, x]) for x in g[:3]]
    program = jax.make_jaxpr(jax.vmap(jaxrnn.linear_scan))(*two)
    (found,) = [e for e in equations(program.jaxpr) if e.primitive.name == "linear_scan"]
    assert found.params["maps"] == ()
    program = jax.make_jaxpr(jax.vmap(jaxrnn.linear_scan, (None, 0)))(g.a[0], two[1])
    (found,) = [e for e in equations(program.jaxpr) if e.primitive.name == "linear_scan"]
    assert found.params["maps"] == () and found.invars[1].aval.shape == (2,)


# Where it runs.


@every_kind
@pytest.mark.parametrize("symbolic", (False, True))
def test_one_module_for_all_platforms(symbolic, constant):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    g = jax.tree.map(
        lambda x: x if x.dtype == bool else x.astype(jnp.float32), given(24, constant=constant)
    )

    def run(a, b, h0, mask, starts):
        def scan(*moving):
            return jaxrnn.linear_scan(*moving, mask=mask, starts=starts)

        out, pull = jax.vjp(scan, a, b, h0)
        return out, pull(out)

    shapes = g[:5]
    if symbolic:
        steps, rows = export.symbolic_shape("T, B")
        sizes = {24: steps, 3: rows}
        shapes = [jax.ShapeDtypeStruct([sizes.get(n, n) for n in x.shape], x.dtype) for x in g[:5]]
    platforms = ("cpu", "tpu", "cuda")
    exported = export.export(jax.jit(run), platforms=platforms)(*shapes)
    again = export.deserialize(exported.serialize())
    assert error(again.call(*g[:5]), run(*g[:5])) < 1e-5
    assert ("tpu_custom_call" in exported.mlir_module()) is not symbolic
    loops = {
        p: "stablehlo.while" in export.export(jax.jit(run), platforms=[p])(*shapes).mlir_module()
        for p in platforms
    }
    assert loops == {"cpu": True, "tpu": symbolic, "cuda": symbolic}


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "complex64"))
@every_kind
def test_the_kernel_is_lowered_for_a_tpu(dtype, constant):
    """By Pallas, which refuses what a TPU has not; nothing of this needs one."""
    for batch, size in (((), 100), ((3,), 1024), ((40,), 700)):
        g = given(37, batch, size, constant=constant, dtype=dtype)

        def both(a, b, h0, mask, starts, weights):
            return jax.vjp(
                lambda *moving: jaxrnn.linear_scan(*moving, mask=mask, starts=starts), a, b, h0
            )[1](weights)

        with jax.enable_x64(False):
            text = jax.jit(both).trace(*g).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") == 2


def test_what_the_kernel_cannot_run():
    def why(g, **target):
        operands = problem.completed(*g[:5], False)
        return linear_scan.tpu.unsupported(
            linear_scan.Problem(False, None), operands, Target(**{"platform": "tpu"} | target)
        )

    g = given(dtype="float32")
    assert why(g) is None and why(given(dtype="complex64")) is None
    assert "for TPUs, not for cpu" in why(g, platform="cpu")
    assert "jax.shard_map" in why(g, devices=4)
    assert "float64" in why(given()) and "float16" in why(given(dtype="float16"))
    assert why(given(batch=(0,), dtype="float32")) is None  # no row: nothing it could not


def test_what_the_kernel_for_gpus_cannot_run():
    def why(g, implementation="gpu", **target):
        operands = problem.completed(*g[:5], False)
        return gpu.unsupported(
            linear_scan.Problem(False, implementation), operands, Target(**ON_A_GPU | target)
        )

    g = given()
    assert "for NVIDIA GPUs, not for tpu" in why(g, platform="tpu")
    with instead((library, "missing", lambda: None), (compiler, "capabilities", lambda: (90,))):
        assert why(g) is None and why(given(dtype="complex64", constant=True)) is None
        assert "no GPU of compute capability 9.0 has run it" in why(g, None)
        assert "inside of jax.shard_map it runs" in why(g, devices=4)
        assert "over other mesh axes" in why(g, devices=4, mixed=True)
        assert "no row" in why(given(batch=(0,))) and "no row" in why(given(size=0))
        assert "no abacus is here" in why(g, chip="abacus")


def test_memory_moves_each_array_once():
    """Counted: what is read and written of arrays with a time axis is as much as they have."""
    g = given(35, (3,), 20, dtype="float32", flags=False)
    libraries = []

    access, build = "return at<Type>(array, time(k)", emulated_kernels.compiled
    text = gpu.source._file().replace(
        access, f"moved += sizeof(Parts<typename Type::Bits>); {access}"
    )
    text = f'extern "C" long moved = 0;\n{text}'

    def kept(text):
        libraries.append(build(text))
        return libraries[-1]

    with instead((gpu.source, "_file", lambda: text), (emulated_kernels, "compiled", kept)):
        found = run(g, "gpu")
    assert error(found, results(g)) < 2e-6
    forward, backward = (ctypes.c_long.in_dll(lib, "moved").value for lib in libraries)
    assert (forward, backward) == (3 * g.b.nbytes, 5 * g.b.nbytes - g.h0.nbytes)


def test_blocks_for_every_multiprocessor():
    """As wide as that allows, and never narrower than what memory moves."""
    wide = {rows: gpu.tile(1024 * rows, 4, 4, 2, 132).columns for rows in (1, 2, 4, 8)}
    assert wide == {1: 8, 2: 8, 4: 16, 8: 32}
    assert gpu.tile(1024, 4, 2, 2, 132).columns == 16
    steps = {words: gpu.tile(1024, 8, 8, words, 132).steps for words in (1, 2, 3, 4, 12, 40)}
    assert steps == {1: 16, 2: 16, 3: 8, 4: 8, 12: 2, 40: 2}


def test_what_runs_is_recorded():
    g = given(dtype="float32", constant=True)
    for platform, runs in (("tpu", "tpu"), ("cpu", *KERNEL, "xla")[:2]):
        with dispatch.recording(Target(platform)) as choices:
            jax.eval_shape(lambda *given: jaxrnn.linear_scan(*given), g.a, g.b)
        (found,) = choices
        assert found.runs == runs
        assert found.operation == "linear_scan T=21 B=(3,) D=4 constant float32"


ON_A_GPU = {"platform": "cuda", "chip": "NVIDIA H200"}
DEVICES = 8


@pytest.mark.skipif(not KERNEL, reason=str(cases.NO_KERNEL))
def test_what_the_kernel_for_cpus_cannot_run():
    def why(g, **target):
        operands = problem.completed(*g[:5], False)
        return linear_scan.cpu.unsupported(
            linear_scan.Problem(False, None), operands, Target(**{"platform": "cpu"} | target)
        )

    assert why(given()) is None and why(given(dtype="complex64", constant=True)) is None
    assert "for CPUs, not for tpu" in why(given(), platform="tpu")


@pytest.mark.parametrize(
    "implementation, kind",
    (
        ("xla", AxisType.Auto),
        ("xla", AxisType.Explicit),
        ("chunks", AxisType.Auto),
        *((kernel, AxisType.Explicit) for kernel in KERNEL),
    ),
)
def test_jit_on_a_mesh(implementation, kind):
    """Sharded rows or channels stay where they are; only a constant's gradient meets."""
    if jax.device_count() < DEVICES:
        pytest.skip(f"{jax.device_count()} devices, wants {DEVICES}")
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(kind,))

    def on(*axes):
        return NamedSharding(mesh, P(*axes))

    def places(sharded, constant):
        row, channel = ("x", None) if sharded == "rows" else (None, "x")
        each, state, flag = on(None, row, channel), on(row, channel), on(None, row)
        a = on(channel) if constant else each
        return Given(a, each, state, flag, flag, (state, each))

    each, constant = (given(19, (16,), 16, constant=c) for c in (False, True))
    gs = [each, constant, each, constant]
    where = [places(s, c) for s in ("rows", "channels") for c in (False, True)]
    with jax.set_mesh(mesh):
        placed = jax.device_put(gs, where)
        both = jax.jit(lambda gs: [_both(implementation, False)(*g) for g in gs])
        compiled = both.lower(placed).compile()
        came = compiled(placed)
    for g, place, out in zip(gs, where, came, strict=True):
        assert error(out, results(g)) < 1e-12
        for array in (out[0][1], out[1][1]):
            assert array.sharding.is_equivalent_to(place.b, 3)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    # The gradient of a constant is a sum over rows, which are apart in one of the four.
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == 1


@pytest.mark.parametrize("implementation", ("xla", "chunks", *KERNEL))
@pytest.mark.parametrize("check", (True, False))
def test_shard_map(implementation, check):
    if jax.device_count() < DEVICES:
        pytest.skip(f"{jax.device_count()} devices, wants {DEVICES}")
    g = given(19, (16,), 2)
    rows = P(None, "x")

    def both(a, b, mask, starts, weight):
        def scan(a, b):
            return jaxrnn.linear_scan(
                a, b, mask=mask, starts=starts, implementation=implementation
            )[1]

        hs, pull = jax.vjp(scan, a, b)
        return hs, pull(weight)

    mapped = jax.shard_map(
        both,
        mesh=Mesh(np.array(jax.devices()[:DEVICES]), ("x",)),
        in_specs=rows,
        out_specs=rows,
        check_vma=check,
    )
    arrays = g.a, g.b, g.mask, g.starts, g.weights[1]
    assert error(jax.jit(mapped)(*arrays), both(*arrays)) < 1e-12


# What a caller can get wrong.

A, FLAGS = np.ones((5, 2, 3), np.float32), np.ones((5, 2), bool)
V, T = ValueError, TypeError
BAD = {  # the arguments, the error, and what its text has
    "b list": (dict(b=[[1.0]]), T, "b: ", "got list", "an array [T, ...batch, D]"),
    "b rank": (dict(b=A[0, 0]), V, "b: ", "shape (3,)", "[T, ...batch, D], two axes"),
    "b int": (dict(b=A.astype(int)), T, "b: ", "got int", "a floating or complex type"),
    "a number": (dict(a=0.5), T, "a: ", "got float", "an array [T, ...batch, D] or [D]"),
    "a shape": (dict(a=A[:, 0]), V, "a: ", "(5, 3)", "(5, 2, 3), or [D] = (3,)"),
    "a bool": (dict(a=FLAGS), T, "a: ", "got bool", "a floating or complex type"),
    "a complex": (dict(a=A + 0j), T, "a: ", "got complex64 with b of float32", "both"),
    "b complex": (dict(b=A + 0j), T, "a: ", "got float32 with b of complex64", "both"),
    "h0 shape": (dict(h0=A), V, "h0: ", "(5, 2, 3)", "[...batch, D] = (2, 3)"),
    "h0 wide": (dict(h0=A[0].astype(float)), T, "h0: ", "got float64", "float32, the arithmetic"),
    "h0 complex": (dict(h0=A[0] + 0j), T, "h0: ", "got complex64", "float32"),
    "h0 list": (dict(h0=[0.0]), T, "h0: ", "got list", "an array [...batch, D]"),
    "mask shape": (dict(mask=FLAGS.T), V, "mask: ", "(2, 5)", "[T, ...batch] = (5, 2)"),
    "mask float": (dict(mask=A[..., 0]), T, "mask: ", "got float32", "want bool"),
    "starts": (dict(starts=True), T, "starts: ", "got bool", "a bool array (5, 2)"),
    "reverse": (dict(reverse=1), T, "reverse: ", "got 1", "True or False"),
    "implementation": (dict(implementation="abc"), V, "implementation: ", "'abc'", "'reference'"),
    "implementation elsewhere": (
        dict(implementation="tpu"),
        V,
        "implementation='tpu'",
        "on cpu",
        "it is for TPUs",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    changed, kind, *parts = BAD[case]
    arguments = dict(a=A, b=A) | changed
    with pytest.raises(kind) as raised:
        jaxrnn.linear_scan(arguments.pop("a"), arguments.pop("b"), **arguments)
    assert all(part in str(raised.value) for part in parts), raised.value
