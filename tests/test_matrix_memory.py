"""The matrix memory over more than one chunk, with gates of any size."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated import emulated
from instead import instead

import jaxrnn
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops import matrix_memory
from jaxrnn._src.ops.gpu import compiler, library
from jaxrnn._src.ops.matrix_memory import gpu, problem

GATES = ("exp", "sigmoid")
MOST = 150  # steps: two chunks, and a part of one
FAST = ("xla", *["cpu"] * (cases.NO_KERNEL is None))  # the slowest first
ON_A_GPU = {"platform": "cuda", "chip": "NVIDIA H200"}
every_gate = pytest.mark.parametrize("gate", GATES)


@functools.cache
def example(gate):
    """With a cell that starts every now and then, and what results are multiplied with."""
    case = cases.Case(lambda h: jaxrnn.mlstm(h, heads=2, gate=gate))
    e = cases.example(case, cases.Shape(MOST, (3,), 3, 4))
    ys = jax.ShapeDtypeStruct((MOST, 3, 4), "float64")
    return e._replace(starts=e.starts & (np.arange(MOST) % 9 == 3)[:, None]), cases.cotangents(
        (e.state, ys)
    )


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("reverse", "implementation"))
def run(cell, moving, weights, **options):
    """Outputs, the final state, and the gradients of everything with random cotangents."""

    def unroll(params, xs, state):
        return jaxrnn.unroll(cell, params, xs, state, **options)

    out, pull = jax.vjp(unroll, *moving)
    return out, pull(weights)


def first(steps, e, weights, flags=True):
    """The arguments of ``run`` for a shorter sequence."""
    (d_state, d_ys), moving = weights, (e.params, e.xs[:steps], e.state)
    given = dict(mask=e.mask[:steps], starts=e.starts[:steps]) if flags else {}
    return moving, (d_state, d_ys[:steps]), given


def truth(e, weights, steps, flags=True, reverse=False):
    """Of so many steps, by the scan of the step, of which one program serves all: the rest is
    padding, and it needs no other one where there are no flags."""
    moving, weights, given = first(MOST, e, weights)
    if not flags:
        given = dict(mask=jnp.ones_like(e.mask), starts=jnp.zeros_like(e.starts))
    given = {name: flag & (np.arange(MOST) < steps)[:, None] for name, flag in given.items()}
    (state, ys), (d_params, d_xs, d_state) = run(
        e.cell, moving, weights, **given, reverse=reverse, implementation="reference"
    )
    return (state, ys[:steps]), (d_params, d_xs[:steps], d_state)


@pytest.mark.usefixtures("x64")
@every_gate
@pytest.mark.parametrize(
    ("steps", "flags", "reverse"),
    (
        *((steps, True, False) for steps in (63, 64, 65, MOST)),
        *((steps, True, True) for steps in (65, MOST)),
        (65, False, False),
    ),
)
def test_chunks_are_the_scan_of_the_step(gate, steps, flags, reverse):
    e, weights = example(gate)
    moving, some, given = first(steps, e, weights, flags)
    wanted = truth(e, weights, steps, flags, reverse)
    for name in FAST:
        came = run(e.cell, moving, some, **given, reverse=reverse, implementation=name)
        assert cases.error(came, wanted) < 1e-12, name


@pytest.mark.usefixtures("x64")
@every_gate
@pytest.mark.parametrize("i", (-1e3, 0.0, 1e3))
@pytest.mark.parametrize("f", (-1e3, 0.0, 1e3))
def test_gates_of_any_size(gate, i, f):
    """All is finite in float32, also the gradients; in float64 it is still the step's."""
    e, weights = example(gate)
    bias = jnp.array([i, f])[:, None] * jnp.ones((2, 2)) / 2
    e = e._replace(params=e.params | {"c": bias, "u": 100 * e.params["u"]})
    moving, some, _ = first(65, e, weights, flags=False)
    wanted = truth(e, weights, 65, flags=False)
    for name in FAST:
        came = run(e.cell, moving, some, reverse=False, implementation=name)
        assert cases.error(came[0], wanted[0]) < 1e-9, name
    narrow = jax.tree.map(lambda a: np.asarray(a, "float32"), (moving, some))
    for name in (*FAST, "reference"):
        leaves = jax.tree.leaves(run(e.cell, *narrow, implementation=name))
        assert all(bool(jnp.isfinite(a).all()) for a in leaves), name


@pytest.mark.usefixtures("x64")
@every_gate
def test_a_forget_gate_of_zero(gate):
    """Its logarithm is -inf: of one head, at any steps, the first and the last of a chunk too."""
    e, weights = example(gate)
    closed = np.random.default_rng(2).random((MOST, 3)) < 0.1
    closed[[0, 63, 64]] = True
    switch = {name: e.params[name].at[-1].set(0) for name in "wu"}
    switch["u"] = switch["u"].at[-1, 1, 0].set(1e200)
    e = e._replace(params=e.params | switch, xs=e.xs.at[..., -1].set(jnp.where(closed, -1e200, 0)))
    moving, some, given = first(MOST, e, weights)

    def compared(found):
        """Without the gradients of the weights of the switch, which is too large a number."""
        out, (d_params, *others) = found
        return out, others, {n: a[:-1] if n in "wu" else a for n, a in d_params.items()}

    wanted = compared(truth(e, weights, MOST))
    for name in FAST:
        came = run(e.cell, moving, some, **given, reverse=False, implementation=name)
        assert cases.error(compared(came), wanted) < 1e-12, name


@every_gate
def test_a_start_puts_back_what_is_not_finite(gate):
    cell = jaxrnn.mlstm(4, heads=2, gate=gate)
    params = cell.init(jax.random.key(0), 3)
    xs, starts = jnp.ones((3, 3)), jnp.array([False, True, False])
    bad = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), cell.initial_state(params, ()))

    @jax.jit
    def results(params, xs):
        run = functools.partial(jaxrnn.unroll, cell, params, xs, bad, starts=starts)
        each = [run(implementation=name) for name in (*FAST, "reference")]
        return jaxrnn.unroll(cell, params, xs[1:])[1], each

    wanted, each = results(params, xs)
    for state, ys in each:
        assert cases.error(ys[1:], wanted) < 1e-6
        assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(state))


def test_it_says_what_it_runs_on():
    cell = jaxrnn.mlstm(8, heads=2)
    params = cell.init(jax.random.key(0), 3)
    (choice,) = jaxrnn.explain(cell, params, jnp.ones((5, 2, 3)), platform="cpu").choices
    assert choice.operation == "matrix_memory T=5 B=(2,) N=2 D=4 E=5 float32"
    everyone = {"cpu", "gpu", "xla", "reference"}
    assert choice.runs == FAST[-1] and set(choice.others) == everyone - {FAST[-1]}
    with pytest.raises(ValueError, match="implementation: got 'tpu', but this operation has only"):
        jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)), implementation="tpu")


def test_an_unknown_gate():
    with pytest.raises(ValueError, match="gate: got 'relu', want 'exp' or 'sigmoid'"):
        jaxrnn.mlstm(8, gate="relu")


@every_gate
@pytest.mark.parametrize("implementation", FAST)
def test_what_is_not_finite_stays_in_its_episode(gate, implementation):
    """Neither do steps before it, or the next episode, in a chunk of it or a later one.

    Nor do the gradients of the next episode.
    """
    cell = jaxrnn.mlstm(4, heads=2, gate=gate)
    xs = np.random.default_rng(0).normal(size=(70, 3)).astype("float32")
    params, times = cell.init(jax.random.key(0), 3), np.arange(70)
    broken = np.where((times == 5)[:, None], np.float32(np.nan), xs)

    @jax.jit
    def results(xs, starts):
        def loss(xs):
            out = jaxrnn.unroll(cell, params, xs, starts=starts, implementation=implementation)
            return sum(jnp.sin(a).sum() for a in jax.tree.leaves(out)), out

        return jax.grad(loss, has_aux=True)(xs)

    for end in (12, 67):
        (d_came, (after, came)), (d_wanted, (state, ys)) = (
            results(x, times == end) for x in (broken, xs)
        )
        found = after, came[:5], came[end:], d_came[end:]
        assert cases.error(found, (state, ys[:5], ys[end:], d_wanted[end:])) < 1e-6
        assert np.isnan(came[5:end]).all()


# the kernel for NVIDIA GPUs, emulated: the operation alone


def on_gpu(dtype, stabilised):
    """Operands, flags and cotangents: heads of odd widths, a chunk and a part of one."""
    steps, rows, heads, keys, values = 70, 2, 2, 12, 37
    rng = np.random.default_rng(0)

    def random(*sizes, dtype="float32"):
        return np.array(jnp.array(rng.normal(size=sizes), dtype))

    q, k = (random(steps, rows, heads, keys, dtype=dtype) for _ in range(2))
    v = random(steps, rows, heads, values, dtype=dtype)
    log_f = -np.log1p(np.exp(-2 - random(steps, rows, heads)))
    log_f[[3, 40, 64], 0, 1] = -np.inf  # nothing is left
    log_i = random(steps, rows, heads)
    m = random(rows, heads) if stabilised else np.zeros((rows, heads), "float32")
    log_i = log_i if stabilised else np.minimum(log_i, 0)
    memory = random(rows, heads, keys, values)
    mask, starts = rng.random((steps, rows)) < 0.8, rng.random((steps, rows)) < 0.03
    starts[:, 1] = np.arange(steps) % 30 == 20
    starts[6, 1] = True  # in reverse before step 64, the first of a tile
    mask[[3, 45, 60], 1] = True  # which a test spoils
    weights = random(*memory.shape), random(*m.shape), random(*v.shape), random(*log_f.shape)
    return (q, k, v, log_f, log_i, (memory, m)), dict(mask=mask, starts=starts), weights


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def memory(implementation, stabilised, reverse, operands, flags, weights):
    """C, m, ys and ms, and with ``weights`` the gradients of the operands, flat."""

    def run(*operands):
        options = dict(stabilised=stabilised, reverse=reverse, implementation=implementation)
        state, out = matrix_memory.matrix_memory(*operands, **flags, **options)
        return *state, *out

    if weights is None:
        return jax.tree.leaves(run(*operands))
    out, pull = jax.vjp(run, *operands)
    return jax.tree.leaves((out, pull(weights)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("dtype", "stabilised", "reverse", "most"),
    [("float32", True, True, 2e-6), ("bfloat16", False, False, 1e-2)],
)
def test_chunks_on_a_gpu_are_the_scan_of_the_step(dtype, stabilised, reverse, most):
    """What is masked is never looked at; what is not finite stays in its row and episode.

    In bfloat16 forward alone: g++ compiles each of the kernels.
    """
    operands, flags, weights = on_gpu(dtype, stabilised)
    weights = weights if dtype == "float32" else None
    wide = jax.tree.map(lambda a: a.astype("float64"), (operands, weights))
    wanted = memory("reference", stabilised, reverse, wide[0], flags, wide[1])
    spoiled = [np.array(a) for a in operands[:5]]
    for a in spoiled:
        a[~flags["mask"]] = np.nan
    spoiled[1][45, 1, 0, 3] = np.nan
    spoiled[3][[30, 47], 1, 0] = -np.inf  # 0 times what is not finite
    later = slice(20, 46) if reverse else slice(45, 50)
    # In an episode that begins with a tile, beyond which no gradient gets; or goes on beyond one.
    at, last = (3, slice(0, 6)) if reverse else (60, slice(60, 70))
    spoiled[0 if reverse else 1][at, 1, 0, 3] = np.nan
    with emulated(shared=64 << 10), jax.default_matmul_precision("highest"):
        came = memory("gpu", stabilised, reverse, (*spoiled, operands[5]), flags, weights)
    spoiled, whole = (came[2][later, 1, head][flags["mask"][later, 1]] for head in range(2))
    assert np.isnan(spoiled).all() and np.isfinite(whole).all()
    if not reverse:
        assert np.isnan(came[2][last, 1, 0][flags["mask"][last, 1]]).all()
        assert np.isnan(came[0][1, 0]).all()
        came[0], wanted[0] = (a.at[1, 0].set(0) for a in (came[0], wanted[0]))
    for found, true in zip(came, wanted, strict=True):
        found, true = np.array(found, "float64"), np.array(true)
        if len(found) == len(operands[0]):  # time leads
            for episode in (slice(20, 50), last):
                found[episode, 1, 0] = true[episode, 1, 0] = 0
        assert cases.error(found, true) < most


def test_what_the_kernel_for_gpus_cannot_run():
    def why(dtype="bfloat16", implementation="gpu", **target):
        operands, flags, _ = on_gpu(dtype, True)
        operands = problem.Operands(*operands, **flags)
        asked = problem.Problem(True, False, implementation)
        return gpu.unsupported(asked, operands, Target(**ON_A_GPU | target))

    assert "for NVIDIA GPUs, not for tpu" in why(platform="tpu")
    with instead((library, "missing", lambda: None), (compiler, "capabilities", lambda: (90,))):
        assert why() is None and why("float32") is None
        assert "no GPU of compute capability 9.0 has run it" in why(implementation=None)
        assert "int32; the kernel knows float32, bfloat16, float16" in why("int32")
        with instead((gpu, "TILES", ())):
            assert "keys of 12 and values of 37 in bfloat16 do not fit into 227 KiB" in why()
    # Wider heads have fewer columns in a block, then none.
    widths = {width: gpu.tile(width, width, 2, 227 << 10) for width in (64, 256, 1024, 2048)}
    assert [found and found[:2] for found in widths.values()] == [(64, 32), (64, 32), None, None]
