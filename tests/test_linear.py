"""The linear recurrence: every implementation is the loop of its definition."""

import contextlib
import functools
import types
from typing import Any, NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import interpreted, interpreted_as_jax
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_transforms import equations, names_in, ran

import jaxrnn
from jaxrnn import choice, linear
from jaxrnn.dtypes import promoted
from jaxrnn.linear import problem, xla
from jaxrnn.linear.tpu import layout
from jaxrnn.target import Target

REFERENCE = choice.REFERENCE
FASTER = ("xla", "chunks", "tpu")  # "chunks" is what "xla" does on a GPU
pytestmark = pytest.mark.usefixtures("x64", "chunks")
every_implementation = pytest.mark.parametrize("implementation", FASTER)
every_direction = pytest.mark.parametrize("reverse", (False, True))
every_kind = pytest.mark.parametrize("constant", (False, True), ids=("each", "constant"))


@pytest.fixture
def chunks(monkeypatch):
    gpu = Target("cuda")
    module = types.SimpleNamespace(
        unsupported=xla.unsupported,
        forward=lambda *given: xla.forward(*given[:-1], gpu),
        backward=lambda *given: xla.backward(*given[:-1], gpu),
    )
    monkeypatch.setitem(linear.IMPLEMENTATIONS, "chunks", module)


@contextlib.contextmanager
def small_blocks():
    """The kernel for TPUs, interpreted: several chunks and tiles in small arrays."""
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "STEPS", 16)
        patch.setattr(layout, "TILE", 1024)
        yield


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
    """The definition in NumPy, step by step."""
    a, b, h = (np.asarray(x) for x in (g.a, g.b, g.h0))
    a = np.broadcast_to(a, b.shape)
    flags = np.ones(b.shape[:-1], bool), np.zeros(b.shape[:-1], bool)
    mask, starts = (f if x is None else np.asarray(x) for f, x in zip(flags, (g.mask, g.starts)))
    hs, crossed = np.zeros_like(b), np.zeros(b.shape[1:-1], bool)
    for t in reversed(range(len(b))) if reverse else range(len(b)):
        back, real = starts[t], mask[t][..., None]
        if reverse:  # a cut that was crossed acts at the next real step
            back = crossed & mask[t]
            crossed = (crossed & ~mask[t]) | starts[t]
        h = np.where(back[..., None], 0, h)
        h = np.where(real, a[t] * h + b[t], h)
        hs[t] = np.where(real, h, 0)
    return h, hs


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
    with small_blocks() if implementation == "tpu" else contextlib.nullcontext():
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


@pytest.mark.parametrize("implementation", (REFERENCE, *FASTER))
@pytest.mark.parametrize(("dtype", "reverse"), (("float64", False), ("complex128", True)))
@every_kind
def test_definition(implementation, dtype, reverse, constant):
    """Results to rounding; gradients by differences along a direction, one array at a time."""
    g = given(constant=constant, dtype=dtype)
    came, gradients = run(g, implementation, reverse)
    assert error(came, truth(g, reverse)) < 1e-12
    for name, gradient in zip(("a", "b", "h0"), gradients):
        value = np.asarray(getattr(g, name))
        direction = np.random.default_rng(1).normal(size=value.shape)
        ends = [truth(g._replace(**{name: value + d * direction}), reverse) for d in (1e-6, -1e-6)]
        slope = sum((w * (x - y)).sum() / 2e-6 for w, x, y in zip(g.weights, *ends))
        came = (np.asarray(gradient) * direction).sum()
        assert abs(came - slope) < 1e-7 * max(1, abs(slope)), name


@every_implementation
@every_kind
@pytest.mark.parametrize(
    ("flag", "reverse"), (("neither", True), ("mask", False), ("starts", True))
)
def test_options(implementation, constant, flag, reverse):
    """The paths without masks and starts are others than those with both."""
    g = given(constant=constant)
    g = g._replace(**{name: None for name in ("mask", "starts") if name != flag})
    assert error(run(g, implementation, reverse), run(g, REFERENCE, reverse)) < 1e-12


@every_implementation
@pytest.mark.parametrize(
    "shape",
    [
        (0, (2,), 3), (1, (2,), 3), (5, (0,), 3), (5, (2,), 0), (5, (1,), 1), (9, (), 5),
        (150, (), 1), (6, (2, 1, 3), 7), (18, (5,), 260), (35, (19,), 3),
    ],
    ids=str,
)  # fmt: skip
def test_shapes(implementation, shape):
    g = given(*shape)
    (state, hs), gradients = run(g, implementation)
    assert hs.shape == g.b.shape and state.shape == g.h0.shape
    assert error(((state, hs), gradients), run(g, REFERENCE)) < 1e-12


@pytest.mark.parametrize("implementation", ("xla", "tpu"))
@pytest.mark.parametrize(
    ("types", "total", "tolerance"),
    [
        (("float32", "float32"), "float32", 2e-6),
        (("bfloat16", "bfloat16"), "float32", 2e-2),
        (("float16", "float16"), "float32", 2e-3),
        (("float32", "bfloat16"), "float32", 1e-2),
        (("bfloat16", "float32"), "float32", 1e-2),
        (("float32", "float64"), "float64", 1e-6),
        (("complex64", "complex64"), "complex64", 2e-6),
    ],
)
def test_types(implementation, types, total, tolerance):
    g = given(dtype=max(types, key=lambda t: np.dtype(t).itemsize))
    g = g._replace(a=g.a.astype(types[0]), b=g.b.astype(types[1]), h0=g.h0.astype(total))
    g = g._replace(weights=(g.weights[0].astype(total), g.weights[1].astype(types[1])))
    (state, hs), gradients = run(g, implementation)
    assert (state.dtype, hs.dtype) == (total, types[1])
    assert [d.dtype for d in gradients] == [*types, total]
    assert error(((state, hs), gradients), run(wide(g), REFERENCE)) < tolerance
    assert jax.eval_shape(lambda: jaxrnn.linear_scan(g.a, g.b))[0].dtype == total


@every_implementation
@every_kind
def test_what_is_wanted_alone(implementation, constant):
    """Of the state or of hs alone, and the gradient of one array."""
    g = given(constant=constant)

    def gradients(implementation):
        def scan(*moving):
            return jaxrnn.linear_scan(*moving, mask=g.mask, implementation=implementation)

        def one(which, argument):
            loss = lambda *moving: (scan(*moving)[which] * g.weights[which]).sum()
            return jax.grad(loss, argument)

        wanted = (0, ALL), (1, 0), (1, 1), (1, 2)
        return jax.jit(lambda *moving: [one(*which)(*moving) for which in wanted])(*g[:3])

    with small_blocks():
        came = gradients(implementation)
    assert error(came, gradients(REFERENCE)) < 1e-12


# What must not matter.


@pytest.mark.parametrize("implementation", (REFERENCE, *FASTER))
@pytest.mark.parametrize(("dtype", "reverse"), (("float32", False), ("complex64", True)))
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


@pytest.mark.parametrize("implementation", (REFERENCE, *FASTER))
@every_direction
def test_an_episode_does_not_see_another(implementation, reverse):
    """Nor a NaN in it."""
    g = given(40, (), 2)
    starts, middle = jnp.zeros(40, bool).at[jnp.array([12, 27])].set(True), slice(12, 27)
    b = g.b.at[3].set(jnp.nan).at[33].set(jnp.nan)
    g = g._replace(b=b, mask=None, starts=starts)
    (_, hs), (d_a, d_b, _) = run(g, implementation, reverse)
    alone = Given(g.a[middle], g.b[middle], 0 * g.h0, None, None, (0 * g.h0, g.weights[1][middle]))
    (_, want), (want_a, want_b, _) = run(alone, REFERENCE, reverse)
    assert error((hs[middle], d_a[middle], d_b[middle]), (want, want_a, want_b)) < 1e-12


@pytest.mark.parametrize("implementation", ("xla", "chunks"))
def test_zero_times_what_overflowed(implementation):
    """Products of factors overflow where the states, zero so far, do not."""
    a, b = jnp.full((300, 1), 100.0, jnp.float32), jnp.zeros((300, 1), jnp.float32)
    g = Given(a, b.at[-2:].set(1.0), b[0], None, None, (b[0], b.at[:2].set(1.0)))
    assert error(run(g, implementation), run(g, REFERENCE)) < 1e-6


# Transforms.


def vmapped(axes):
    """``function`` over three of each of some arguments."""

    def apply(f, args):
        several = [
            args[i] if axis is None else jnp.stack([args[i], 0.5 * args[i], -args[i]], axis)
            for i, axis in enumerate(axes)
        ]
        return jax.vmap(f, axes)(*several)

    return apply


TRANSFORMS = {
    "grad": lambda f, args: jax.grad(f, ALL)(*args),
    "jvp": lambda f, args: jax.jvp(f, args, args)[1],
    "jvp of b": lambda f, args: jax.jvp(lambda b: f(args[0], b, args[2]), args[1:2], args[1:2])[1],
    "jvp of jvp": lambda f, args: jax.jvp(lambda *a: jax.jvp(f, a, args)[1], args, args)[1],
    "hessian-vector": lambda f, args: jax.jvp(jax.grad(f, ALL), args, args)[1],
    "reverse over reverse": lambda f, args: jax.grad(
        lambda *a: sum((g**2).sum() for g in jax.grad(f, ALL)(*a)), ALL
    )(*args),
    "hessian": lambda f, args: jax.hessian(f, ALL)(*args),
    "jacfwd": lambda f, args: jax.jacfwd(f, ALL)(*args),
    "jacrev": lambda f, args: jax.jacrev(lambda *a: jnp.stack([f(*a), 2 * f(*a)]), ALL)(*args),
    "remat": lambda f, args: jax.grad(jax.remat(f), ALL)(*args),
    "linearize": lambda f, args: jax.linearize(f, *args)[1](*args),
    "outer scan": lambda f, args: jax.grad(
        lambda *a: jax.lax.scan(
            lambda total, factor: (total + f(a[0], factor * a[1], a[2]), None),
            jnp.zeros(()), jnp.array([1.0, 0.5, 2.0]),
        )[0],
        ALL,
    )(*args),
    **{
        f"{name} of {what}": (lambda f, args, axes=axes, change=change: change(axes, f, args))
        for what, axes in {
            "a": (0, None, None), "b": (None, 1, None), "h0": (None, None, 0), "all": (0, 0, 0),
        }.items()
        for name, change in {
            "vmap": lambda axes, f, args: vmapped(axes)(f, args),
            "vmap of grad": lambda axes, f, args: vmapped(axes)(jax.grad(f, ALL), args),
            "grad of vmap": lambda axes, f, args: jax.grad(
                lambda *a: (vmapped(axes)(f, a) ** 2).sum(), ALL
            )(*args),
        }.items()
    },
    "vmap of vmap": lambda f, args: vmapped((0, None, 0))(
        lambda *a: vmapped((None, 0, 0))(f, a), args
    ),
}  # fmt: skip


def loss(g, implementation=None):
    """A number made of hs and the final state, as a function of (a, b, h0)."""

    def value(a, b, h0):
        state, hs = jaxrnn.linear_scan(
            a, b, h0, mask=g.mask, starts=g.starts, implementation=implementation
        )
        return (jnp.sin(hs) * g.weights[1]).sum() + (jnp.cos(state) * g.weights[0]).sum()

    return value


@every_kind
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, constant):
    g, apply = given(4, (2,), 2, constant=constant), TRANSFORMS[transform]
    wanted = jax.jit(lambda *args: apply(loss(g, REFERENCE), args))(*g[:3])
    came, names = ran(lambda *args: apply(loss(g), args), *g[:3])
    assert error(came, wanted) < 1e-11
    assert any(name.startswith("linear_scan") for name in names), "the operation did not run"


@every_kind
@pytest.mark.parametrize("transform", ("remat", "vmap of grad of a", "vmap of grad of all"))
@pytest.mark.parametrize("implementation", ("chunks", "tpu"))
def test_transforms_of_others(transform, implementation, constant):
    g, apply = given(18, (2,), 2, constant=constant), TRANSFORMS[transform]
    wanted = apply(loss(g, REFERENCE), g[:3])
    with interpreted_as_jax():
        came = jax.jit(lambda *args: apply(loss(g, implementation), args))(*g[:3])
    assert error(came, wanted) < 1e-11


@every_kind
def test_gradients_are_fused(constant):
    g = given(4, (2,), 2, constant=constant)
    for function in (
        jax.grad(loss(g), ALL),
        lambda *a: TRANSFORMS["vmap of grad of a"](loss(g), a),
    ):
        names = names_in(function, *g[:3])
        assert "linear_scan_backward" in names and "linear_scan_tangent" not in names


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
    g = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float32), given(
        24, constant=constant
    ))  # fmt: skip

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
        return linear.tpu.unsupported(
            linear.Problem(False, None), operands, Target(**{"platform": "tpu"} | target)
        )

    g = given(dtype="float32")
    assert why(g) is None and why(given(dtype="complex64")) is None
    assert "for TPUs, not for cpu" in why(g, platform="cpu")
    assert "jax.shard_map" in why(g, devices=4)
    assert "float64" in why(given()) and "float16" in why(given(dtype="float16"))
    assert why(given(batch=(0,), dtype="float32")) is None  # no row: nothing it could not


def test_what_runs_is_recorded():
    g = given(dtype="float32", constant=True)
    for platform, runs in (("tpu", "tpu"), ("cpu", "xla")):
        with choice.recording(Target(platform)) as choices:
            jax.eval_shape(lambda *given: jaxrnn.linear_scan(*given), g.a, g.b)
        (found,) = choices
        assert found.runs == runs
        assert found.operation == "linear_scan T=21 B=(3,) D=4 constant float32"


DEVICES = 8


@pytest.mark.parametrize("implementation", ("xla", "chunks"))
@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=str)
@pytest.mark.parametrize("sharded", ("rows", "channels"))
@every_kind
def test_jit_on_a_mesh(implementation, kind, sharded, constant):
    """Sharded rows or channels stay where they are; only a constant's gradient meets."""
    if jax.device_count() < DEVICES:
        pytest.skip(f"{jax.device_count()} devices, wants {DEVICES}")
    g = given(19, (16,), 16, constant=constant)
    wanted = run(g, REFERENCE)
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(kind,))
    row, channel = ("x", None) if sharded == "rows" else (None, "x")

    def on(*axes):
        return NamedSharding(mesh, P(*axes))

    each, state, flag = on(None, row, channel), on(row, channel), on(None, row)
    places = Given(on(channel) if constant else each, each, state, flag, flag, (state, each))
    with jax.set_mesh(mesh):
        placed = jax.device_put(g, places)
        compiled = _both(implementation, False).lower(*placed).compile()
        came = compiled(*placed)
    assert error(came, wanted) < 1e-12
    for array in (came[0][1], came[1][1]):
        assert array.sharding.is_equivalent_to(each, 3)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    reductions = text.count(" all-reduce(") + text.count(" all-reduce-start(")
    assert reductions == int(constant and sharded == "rows")


@pytest.mark.parametrize("implementation", ("xla", "chunks"))
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
        both, mesh=Mesh(np.array(jax.devices()[:DEVICES]), ("x",)), in_specs=rows,
        out_specs=rows, check_vma=check,
    )  # fmt: skip
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
    "implementation": (dict(implementation="cpu"), V, "implementation: ", "'cpu'", "'reference'"),
    "implementation elsewhere": (
        dict(implementation="tpu"), V, "implementation='tpu'", "on cpu", "it is for TPUs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    changed, kind, *parts = BAD[case]
    arguments = dict(a=A, b=A) | changed
    with pytest.raises(kind) as raised:
        jaxrnn.linear_scan(arguments.pop("a"), arguments.pop("b"), **arguments)
    assert all(part in str(raised.value) for part in parts), raised.value
