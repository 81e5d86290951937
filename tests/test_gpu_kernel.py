"""The kernel for NVIDIA GPUs, run on a CPU: see `emulated`."""

import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, GATED, REFERENCE, TOLERANCE, Case, Shape, cotangents, error, example
from emulated import emulated, made, run_text
from instead import instead
from laws import options, value_and_grads, wide

import jaxrnn
from jaxrnn._src.core import lowering_target
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.gpu import chips
from jaxrnn._src.ops.recurrence import cpu
from jaxrnn._src.ops.recurrence.gpu import code, exchange, tiling

CELLS = (
    "elman",
    "lstm",
    "lstm_heads",
    "gru",
    "gru_heads",
    "mgu",
    "candidate_first",
    "peephole",
    "lstm_states",
)
SHAPES = (
    Shape(1, (), 3, 7),  # a step, a row, units that fill nothing
    Shape(3, (20,), 2, 33),  # two tiles of rows, two blocks and more
    Shape(4, (2, 3), 3, 65),
)


def agree(
    name,
    shape=BASE,
    *,
    dtype="float32",
    product="highest",
    tolerance=None,
    chip=None,
    every=False,
    **flags,
):
    """Results and gradients are those of the reference in float64, and of the right type."""
    e = example(GATED[name], shape, dtype=jnp.float32)
    given = options(e, **flags) | {"return_states": every}
    moving = e.params, e.xs.astype(dtype), e.state
    if dtype != "float32":  # the product's type: else weights of float32 decide
        moving = (jax.tree.map(lambda p: p.astype(dtype), e.params), *moving[1:])
    shapes = jax.eval_shape(lambda *moving: jaxrnn.unroll(e.cell, *moving, **given), *moving)
    weights = cotangents(shapes)
    real = jnp.ones(e.mask.shape, bool)  # the same program gives the truth without flags
    flags = {"mask": real, "starts": ~real} | {k: f for k, f in given.items() if f is not None}
    with jax.enable_x64(True):
        wanted = value_and_grads(
            e.cell, wide(moving), wide(weights), **given | flags, implementation=REFERENCE
        )
    with emulated(**(chip or {})) as emulation, jax.default_matmul_precision(product):
        came = value_and_grads(e.cell, moving, weights, **given, implementation="gpu")
        jax.block_until_ready(came)
    assert len(emulation.launched) == 2
    ys = (moving[1], e.state) if every else moving[1]
    chex.assert_trees_all_equal_dtypes(came[0], (e.state, ys))
    chex.assert_trees_all_equal_dtypes(came[1], moving)
    for found, true, most in zip(came, wanted, tolerance or TOLERANCE[dtype], strict=True):
        assert error(found, true) < most
    return emulation.launched


@pytest.mark.parametrize(
    ("name", "reverse"), [*((name, True) for name in CELLS), ("lstm", False), ("gru", False)]
)
def test_every_option(name, reverse):
    """And, one way, the states after all steps."""
    agree(name, reverse=reverse, every=reverse)


@pytest.mark.parametrize(
    ("name", "given"),
    [("lstm", "nothing"), ("gru", "nothing"), ("lstm", "mask"), ("gru", "starts")],
)
def test_one_option(name, given):
    """The paths without masks and resets are others than those with them."""
    flags = {"mask": False, "starts": False} | ({} if given == "nothing" else {given: True})
    agree(name, reverse=given == "starts", **flags)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape):
    agree("gru", shape)


def test_more_tiles_than_blocks():
    """Launches follow one another."""
    launched = agree("lstm", Shape(2, (70,), 3, 16), chip={"blocks": 2})
    assert any(at_once < groups for _, at_once, groups in launched)


@pytest.mark.parametrize("name", ("lstm", "gru", "peephole"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_every_type(name, dtype):
    """And, of one cell, the states after all steps, without a reset that follows them."""
    given = {"every": True, "starts": False} if name == "lstm" else {}
    agree(name, Shape(4, (18,), 3, 40), dtype=dtype, tolerance=TOLERANCE["bfloat16"], **given)


def test_the_initial_states_gradient():
    """What starts put back is learned, by way of all outputs and of one of two states."""
    cell = jaxrnn.learned_state(jaxrnn.lstm(9))
    e = example(Case(lambda hidden: cell), BASE, dtype=jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, params, xs):
        given = {"mask": e.mask, "starts": e.starts, "return_states": True}

        def loss(params):
            _, out = jaxrnn.unroll(cell, params, xs, **given, implementation=implementation)
            ys, (_, c) = out
            return jnp.sin(ys).sum() + jnp.cos(c).sum()

        return jax.grad(loss)(params)

    wanted = run(REFERENCE, e.params, e.xs)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(wanted))
    with emulated(), jax.default_matmul_precision("highest"):
        came = jax.block_until_ready(run("gpu", e.params, e.xs))
    assert error(came, wanted) < TOLERANCE["float32"][1]


def test_products_are_rounded_by_default():
    """Float32's factors as TF32, as XLA has them on these GPUs: the error shows it."""
    most = 1e-3, 2e-3
    agree("lstm", product="default", tolerance=most)
    with pytest.raises(AssertionError):
        agree("lstm", product="default")


def test_as_many_warps_as_on_a_gpu():
    agree("lstm", Shape(3, (18,), 2, 150), chip={"warps": 8})


def test_weights_in_shared_memory():
    """What registers cannot hold lies there."""
    layer, chip = tiling.Layer(4, 4, 112, 1, 1), chips.CHIPS["NVIDIA H200"]
    before = tiling.plan(layer, chip, backward=False)
    with emulated(held=8):
        assert tiling.plan(layer, chip, backward=False).shared > before.shared
    # One row: other lanes would wait for words of the step after.
    agree("lstm", Shape(3, (1,), 2, 112), chip={"held": 8})


@pytest.mark.parametrize("product", ("default", "highest"))
def test_a_full_nan_in_the_state_stops_nobody(product):
    """The very bits that stand for "not there yet" may come from a user."""
    cell = jaxrnn.elman(16)
    params = cell.init(jax.random.key(0), 2)
    bits = np.full((3, 16), 0xFFFFFFFF, np.uint32).view(np.float32)
    state = (jnp.asarray(np.where(np.arange(3)[:, None] == 1, bits, 0.5)),)
    xs = jnp.ones((2, 3, 2))
    with emulated(), jax.default_matmul_precision(product):
        _, ys = jaxrnn.unroll(cell, params, xs, state, implementation="gpu")
    assert np.isnan(ys[:, 1]).all() and np.isfinite(ys[:, (0, 2)]).all()


def hides_nan(state, x, r, p):
    """An update through whose branches no NaN comes, with a fused gate and a split one."""
    (_, c), (xf, xn), (rf, rn) = state, x, r
    c = jnp.where(xf + rf > 0, 0.5 * c + p, 0.25)
    return jnp.where(rn * xn > c, jnp.tanh(xn), 0.5), c


@pytest.mark.parametrize(
    ("lost", "clusters", "polls"),
    [((40,), 0, 1 << 11), ((0, 100), 0, 1 << 11), ((-40,), 1, 1 << 13)],
    ids=("forward", "backward", "in a cluster"),
)
def test_a_publish_that_never_arrives(lost, clusters, polls):
    """No block waits for ever: all that the call makes is NaN, and the host learns of it."""
    cell = jaxrnn.gated(hides_nan, gates=2, states=2, unit={"p": jax.random.normal})(40)
    e = example(Case(lambda hidden: cell), Shape(5, (20,), 2, 40), dtype=jnp.float32)

    @jax.jit
    def run(params, xs, state, weights):
        def run(*moving):
            given = {"mask": e.mask, "starts": e.starts, "return_states": True}
            return jaxrnn.unroll(cell, *moving, **given, implementation="gpu")

        out, pull = jax.vjp(run, params, xs, state)
        return out, pull(weights)

    step = jax.ShapeDtypeStruct((5, 20, 40), jnp.float32)
    weights = cotangents((e.state, (step, (step, step))))
    with emulated(blocks=3, polls=polls, lost=lost, clusters=clusters) as emulation:
        jax.block_until_ready(run(e.params, e.xs, e.state, weights))
    assert len(emulation.launched) == 2
    stuck = len(lost) - 1
    assert emulation.gave_up == [stuck == 0, stuck == 1]
    assert all(np.isnan(a.astype(np.float32)).all() for a in emulation.results[stuck])
    assert all(a.any() for a in emulation.results[stuck])
    for whole in emulation.results[:stuck]:
        assert all(np.isfinite(a).all() for a in whole)


def test_padding_changes_no_bit():
    e = example(GATED["gru"], BASE, dtype=jnp.float32)
    spoilt = jnp.where(e.mask[..., None], e.xs, jnp.nan)

    @jax.jit
    def run(params, xs, state):
        def loss(params, xs, state):
            state, ys = jaxrnn.unroll(e.cell, params, xs, state, mask=e.mask, implementation="gpu")
            return (ys**2).sum() + state[0].sum(), ys

        return jax.value_and_grad(loss, (0, 2), has_aux=True)(params, xs, state)

    with emulated():
        came, clean = run(e.params, spoilt, e.state), run(e.params, e.xs, e.state)
        jax.tree.map(np.testing.assert_array_equal, came, clean)


def three(tree):
    return jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, -a]), tree)


TRANSFORMS = {
    "vmap of data": lambda f, params, xs: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(
        params, three(xs)
    ),
    "vmap of weights": lambda f, params, xs: jax.vmap(jax.grad(f, (0, 1)), (0, None))(
        three(params), xs
    ),
    "vmap of both": lambda f, params, xs: jax.vmap(jax.grad(f, (0, 1)))(three(params), three(xs)),
    "vmap of two weights": lambda f, params, xs: jax.vmap(
        lambda r: jax.vmap(lambda b: jax.grad(f)(params | {"r": r, "b": b}, xs))(
            three(params["b"])
        )
    )(three(params["r"])),
    "jvp": lambda f, params, xs: jax.jvp(f, (params, xs), (params, xs)),
    "jvp of grad": lambda f, params, xs: jax.jvp(jax.grad(f), (params, xs), (params, xs)),
    "remat": lambda f, params, xs: jax.grad(jax.remat(f))(params, xs),
    "scan": lambda f, params, xs: jax.grad(
        lambda p: jax.lax.scan(lambda c, x: (c + f(p, x), None), 0.0, three(xs))[0]
    )(params),
}


@pytest.mark.parametrize(
    ("name", "alone"), [*((name, False) for name in TRANSFORMS), ("vmap of both", True)]
)
def test_transforms(name, alone):
    e = example(GATED["lstm"], Shape(3, (3,), 2, 10), dtype=jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, params, xs):
        def loss(params, xs):
            ys = jaxrnn.unroll(e.cell, params, xs, starts=e.starts, implementation=implementation)[
                1
            ]
            return jnp.sin(ys).sum()

        return TRANSFORMS[name](loss, params, xs)

    with emulated(alone=alone) as emulation, jax.default_matmul_precision("highest"):
        came = jax.block_until_ready(run("gpu", e.params, e.xs))
    assert emulation.launched
    assert error(came, run(REFERENCE, e.params, e.xs)) < 1e-5


def test_sharded_rows_stay_where_they_are():
    """Each device launches a kernel for its own rows, and none asks for another's."""
    e = example(GATED["lstm"], Shape(3, (16,), 2, 10), dtype=jnp.float32)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch"))

    @jax.jit
    def run(params, xs):
        loss = lambda p, x: jnp.sin(jaxrnn.unroll(e.cell, p, x, implementation="gpu")[1]).sum()
        return jax.grad(loss)(params, xs)

    with made() as found:
        program = run.lower(e.params, jax.device_put(e.xs, rows)).compile()
    assert "all-gather" not in program.as_text()
    assert len(found.numbers) == 2  # and none is made for all rows, to see what comes out
    assert all(numbers.rows == 2 for numbers in found.numbers)


def made_for_a_gpu(function, *args):
    """What is made when a function is lowered for a GPU, by the kernel's own choice."""
    with made() as found:
        jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
    return found.numbers


def test_rows_are_those_of_a_device():
    """Eight devices with 64 rows each run what one of them can, and one does not run 512."""
    cell = jaxrnn.lstm(1024)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
    mesh = jax.make_mesh((8, 1), ("batch", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch"))
    run = lambda params, xs: jaxrnn.unroll(cell, params, xs)[1].astype(jnp.float32).sum()
    grad = jax.grad(run)
    xs = jax.ShapeDtypeStruct((3, 512, 8), jnp.bfloat16)
    assert not made_for_a_gpu(grad, params, xs)
    divided = jax.ShapeDtypeStruct(xs.shape, xs.dtype, sharding=rows)
    with made() as found, instead((cpu, "unsupported", lambda *_: "it is a GPU here")):
        jax.jit(grad).lower(params, divided).compile()
    assert len(found.numbers) == 2
    for numbers in found.numbers:
        assert numbers.rows == 64 and numbers.at_once == numbers.groups


@pytest.mark.parametrize(
    ("hidden", "members", "steps", "at_once"),
    [(512, (64,), 3, False), (64, (4, 16), 3, True), (512, (64,), 100_000, False)],
)
def test_members_are_one_call(hidden, members, steps, at_once):
    """In one launch where all are on the chip at once, else in few, however long they are."""
    cell = jaxrnn.lstm(hidden)
    like = lambda p, sizes: jax.ShapeDtypeStruct((*sizes, *p.shape), jnp.bfloat16)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    one, all_of_them = (
        jax.tree.map(functools.partial(like, sizes=sizes), params) for sizes in ((), members)
    )
    xs = jax.ShapeDtypeStruct((steps, 4, 8), jnp.bfloat16)
    run = jax.grad(lambda p, xs: jaxrnn.unroll(cell, p, xs)[1].astype(jnp.float32).sum())
    assert len(made_for_a_gpu(run, one, xs)) == 2
    for _ in members:
        run = jax.vmap(run, (0, None))
    calls = made_for_a_gpu(run, all_of_them, xs)
    assert len(calls) == 2
    for numbers in calls:
        assert numbers.groups == 64 and (numbers.at_once == 64) == at_once


LAYERS = [
    tiling.Layer(size, gates, width, groups, rows)
    for size in (2, 4)
    for gates in (1, 3, 4)
    for width, groups in ((1, 1), (100, 1), (128, 8), (512, 1), (1024, 1))
    for rows in (1, 16, 100, 1024)
]


def test_blocks_that_share_a_multiprocessor_fit_into_its_memory():
    """A cooperative launch runs all blocks at once, or fails."""
    chip = chips.CHIPS["NVIDIA L4"]  # 100 KiB, of which one block may have 99
    layer = tiling.Layer(4, 12, 16, 1, 1 << 14)
    plan = tiling.plan(layer, chip, backward=True)
    assert plan.alone and plan.shared == 12 * chips.KIB
    assert plan.at_once == 7 * chip.blocks


@pytest.mark.parametrize("blocks", (2, 8, 16, 132))
def test_what_fits_one_row_fits_any(blocks):
    """It is chosen for a device's share of the rows, and XLA may not divide them."""
    chip = chips.CHIPS["NVIDIA H200"]._replace(blocks=blocks)
    for gates, width, backward in itertools.product((1, 4), (256, 512, 1024, 2048), (False, True)):
        layers = (tiling.Layer(2, gates, width, 1, rows) for rows in (1, 8, 16, 17, 40, 512))
        found = {tiling.plan(layer, chip, backward=backward) is None for layer in layers}
        assert len(found) == 1, (gates, width, backward)


@pytest.mark.parametrize("backward", (False, True))
def test_plans_fit(backward):
    """Every row and every unit is somebody's, and all blocks of a launch run at once."""
    chip = chips.CHIPS["NVIDIA H200"]._replace(clusters=31)
    for layer in LAYERS:
        plans = tiling.plans(layer, chip, backward)
        assert plans, layer
        for plan in plans:
            assert plan.units * plan.blocks >= layer.width
            assert plan.tile * plan.tiles >= layer.rows
            each = -(-plan.tile * plan.units // (32 * plan.warps))  # units of a thread
            assert plan.alone or each <= 4
            on_one = 8 // plan.warps if plan.alone else 1  # blocks of a multiprocessor
            most = chip.blocks * on_one if plan.cluster == 1 else plan.cluster * chip.clusters
            assert plan.at_once * plan.blocks <= most and plan.blocks % plan.cluster == 0
            assert plan.shared <= chip.shared
            assert plan.at_once * plan.launches >= layer.groups * plan.tiles


def test_every_operation_has_its_expression():
    """The programs of the kernel for CPUs and those of this one are made of the same."""
    from jaxrnn._src.ops import native

    if native.library().missing:
        pytest.skip(native.library().missing)
    assert set(native.library().operations) == set(code.OPERATIONS)


OPERATIONS = {
    "smooth": lambda a, b: (
        jnp.tanh(a)
        + jax.nn.sigmoid(b)
        + jnp.exp(-a * a)
        + jnp.log1p(b * b)
        + jnp.expm1(a / 4)
        + jax.nn.softplus(b)
        + jnp.sqrt(1 + a * a)
        + jnp.cbrt(2 + b * b)
        + jnp.sin(a) * jnp.cos(b)
        + jax.lax.erf(a)
        + jnp.arctan2(a, 2 + b * b)
        + jnp.power(2 + a * a, b / 4)
        + a**3
    ),
    "rough": lambda a, b: (
        jnp.where(a < b, a, 2 * b)
        + jnp.maximum(a, 0.1)
        + jnp.minimum(b, 0.2)
        + jnp.abs(a)
        + jnp.sign(b)
        + jax.nn.elu(a)
        + jax.nn.hard_tanh(b)
        + jnp.where((a > 0) & (b >= 0), a, b)
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    function = OPERATIONS[name]

    def update(state, x, r):
        return (jnp.tanh(function(x[0] + r[0], x[1] + r[1]) / 4),)

    cell = jaxrnn.gated(update, gates=2)(9)
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (3, 4, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, params, xs):
        run = lambda *args: jaxrnn.unroll(cell, *args, implementation=implementation)[1]
        ys, pull = jax.vjp(run, params, xs)
        return ys, pull(jnp.cos(ys))

    with emulated(), jax.default_matmul_precision("highest"):
        came = jax.block_until_ready(run("gpu", params, xs))
    assert error(came, run(REFERENCE, params, xs)) < 1e-5


def why(cell, dtype="float32", rows=3, steps=5, platform="gpu"):
    with jax.enable_x64(dtype == "float64"):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
        xs = jax.ShapeDtypeStruct((steps, rows, 3), dtype)
        found = jaxrnn.explain(cell, params, xs, platform=platform)
    return found.choices[0].others.get("gpu", found.choices[0].runs)


def test_why_not():
    assert why(jaxrnn.lstm(8)) == "gpu"
    assert "for NVIDIA GPUs, not for cpu" in why(jaxrnn.lstm(8), platform="cpu")
    assert "float64" in why(jaxrnn.lstm(8), dtype="float64")
    assert "(4096, 4, 4096)" in why(jaxrnn.lstm(4096))
    assert "for so many rows it would be launched" in why(jaxrnn.lstm(1024), rows=4096)
    assert "for so many rows and heads it" in why(jaxrnn.lstm(64 * 256, heads=64), rows=1)
    many = lambda state, x, r: tuple(s + x[0] + r[0] for s in state)
    ten = jaxrnn.gated(many, gates=1, states=10)(8)
    assert "10 states and 0 per-unit weights, which may take more than the" in why(ten)
    assert why(jaxrnn.lstm(64), rows=10**5) == "gpu"  # blocks that do not need each other
    assert why(jaxrnn.lstm(1024), rows=16, steps=10**6) == "gpu"
    assert "no row" in why(jaxrnn.lstm(8), rows=0)


@pytest.mark.parametrize(
    ("lowered", "device", "known"),
    [("cuda", "gpu", True), ("rocm", "gpu", True), ("cpu", "cpu", True), ("cuda", "cpu", False)],
)
def test_the_chip_is_known_when_a_program_is_lowered(lowered, device, known):
    """JAX lowers for "cuda"; its devices say "gpu"."""
    device = types.SimpleNamespace(platform=device, device_kind="a chip")
    place = types.SimpleNamespace(device_assignment=(device,), num_devices=1)
    parameters = types.SimpleNamespace(for_export=False)
    module = types.SimpleNamespace(axis_context=place, lowering_parameters=parameters)
    found = lowering_target.of_lowering(lowered, types.SimpleNamespace(module_context=module))
    assert found == Target(lowered, "a chip" if known else None)


LITMUS = """
#include EMULATED
constexpr int EXCHANGE = 0, ROUNDS = 64;
struct Args {
  char* array[1];
  long long member[1];
  char* host;
  int steps, rows, tiles, groups, first;
};

// Two blocks of a cluster send each other four words at once, many times, and look at what they
// are sent until all is counted. Which words of four were there is counted in `seen`: before, and
// then.
void send_and_look(unsigned* seen) {
  unsigned* shared = reinterpret_cast<unsigned*>(emulated::shared());
  unsigned* counter = shared + 4 * ROUNDS;
  const int other = 1 - blockIdx.x;
  if (threadIdx.x == 0) begin_counting(counter);
  meet_cluster();
  if (threadIdx.x != 0) return;
  expect(counter, 16 * ROUNDS);
  bool all = false;
  for (int turn = 0; !all || turn < ROUNDS; ++turn) {
    if (turn < ROUNDS)
      send(place_in(shared + 4 * turn, other), place_in(counter, other), make_float4(1, 1, 1, 1));
    all = arrived(counter, 0);
    for (int i = 0; i < ROUNDS; ++i) {
      unsigned there = 0;
      for (int j = 0; j < 4; ++j) there |= unsigned(shared[4 * i + j] == 0x3f800000) << j;
      ++seen[16 * all + there];
    }
  }
}

// One thread publishes four words, one after the other; another reads them at once until it sees
// one, and says which it saw.
void run(const Args& args) {
  unsigned* seen = reinterpret_cast<unsigned*>(args.array[0]);
  if (args.steps == 1) return send_and_look(seen);
  for (int i = 0; i < (threadIdx.x == 0 ? ROUNDS : 0); ++i) {
    unsigned* words = seen + ROUNDS + 4 * i;
    for (int j = 0; j < (blockIdx.x == 0 ? 4 : 0); ++j) poke(words + j, 1);
    while (blockIdx.x == 1) {
      const uint4 v = peek(words);
      seen[i] = v.x | v.y << 1 | v.z << 2 | v.w << 3;
      if (seen[i]) break;
    }
  }
}
"""


def test_what_is_published_arrives_late_in_any_order_and_torn():
    """Of the emulator: a kernel that relies on more than a GPU promises is found out."""
    words = np.zeros(64 * 5, np.uint32)
    numbers = [2, 1, 32, 2048, 0, 0, 0, 1, 1, 1]  # two blocks, one group at once, a warp each
    assert run_text(LITMUS, [words.ctypes.data], [0], numbers) == (None, False)
    seen, rest = set(words[:64].tolist()), words[64:]
    assert rest.all()  # all arrive in the end
    in_order = {0b1, 0b11, 0b111, 0b1111}
    assert seen - in_order and seen & in_order and len(seen) > 4

    words, sent = np.zeros(32, np.uint32), [*numbers[:4], 1, *numbers[5:9], 2]  # in a cluster
    assert run_text(LITMUS, [words.ctypes.data], [0], sent) == (None, False)
    before, after = words[:16], words[16:]
    assert set(np.flatnonzero(before).tolist()) - in_order - {0}
    assert after[15] == after.sum() >= 128  # what is counted is there


def test_a_derivative_is_divided_where_cotangents_are_needed():
    """What needs none comes first, and only multiplications and additions are done again."""
    from jaxrnn._src.ops.recurrence.program import compiled

    def function(a, b, d):
        return jnp.tanh(a) * (1 + a) * d, jnp.exp(b) * d + a, jnp.sin(a), jnp.tanh(a) - d

    row = jax.ShapeDtypeStruct((3,), jnp.float32)
    program = compiled(function, [row] * 3, code.OPERATIONS)
    text, kept = code.functions(program, 2)
    before, after = text.split("void derivative")
    assert all(name in before and name not in after for name in ("TANH", "expf", "sinf"))
    assert "given[0]" in after and "given" not in before
    assert kept == 4  # tanh(a), a, exp(b), sin(a); not the product of the first two


@pytest.mark.parametrize("name", ("lstm_heads", "gru", "peephole", "candidate_first"))
def test_one_block_alone(name):
    """Where a block has all units, h goes through its shared memory."""
    launched = agree(name, reverse=name == "gru", chip={"alone": True})
    assert all(blocks == 1 for blocks, *_ in launched)


@pytest.mark.parametrize(
    ("dtype", "product", "shape"),
    [
        ("bfloat16", "default", Shape(3, (18,), 3, 40)),
        ("float16", "default", Shape(3, (11,), 3, 33)),
        ("float32", "default", Shape(3, (9,), 3, 20)),
        ("float32", "highest", Shape(1, (), 3, 7)),
    ],
    ids=str,
)
def test_one_block_alone_in_every_type(dtype, product, shape):
    most = (1e-3, 2e-3) if dtype == "float32" and product == "default" else None
    most = TOLERANCE["bfloat16"] if dtype != "float32" else most
    chip = {"alone": True, "blocks": 2}
    agree("lstm", shape, dtype=dtype, product=product, tolerance=most, chip=chip)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "chip"),
    [
        ("gru", Shape(4, (2, 3), 3, 65), "float32", {"clusters": 5}),
        ("lstm", Shape(3, (20,), 2, 33), "bfloat16", {"clusters": 2, "held": 8}),
        ("lstm", Shape(17, (1,), 2, 33), "float32", {"clusters": 2, "ring": 8}),
    ],
    ids=("gru", "weights in shared memory", "a ring"),
)
def test_clusters(name, shape, dtype, chip):
    """Blocks that divide K send their sums to each other."""
    most = TOLERANCE[dtype]
    launched = agree(name, shape, dtype=dtype, tolerance=most, chip=chip)
    assert all(blocks % chips.CLUSTER == 0 for blocks, *_ in launched)


@pytest.mark.parametrize("name", ("lstm", "gru"))
def test_a_ring(name):
    """Places of the exchange are used again, many times over."""
    agree(name, Shape(41, (3,), 2, 33), chip={"ring": 8})


def test_where_the_exchange_is_a_ring():
    """A long sequence's takes no more memory than 64 MB, or 64 steps of it."""
    chip = chips.CHIPS["NVIDIA H200"]
    one = tiling.plan(tiling.Layer(2, 4, 512, 1, 16), chip, backward=False)
    many = tiling.plan(tiling.Layer(2, 4, 512, 64, 16), chip, backward=False)
    assert (one.exchange, many.exchange) == (16 * 512 * 2, 64 * 16 * 512 * 2)
    assert [exchange.ring(one, steps) for steps in (65, 4096, 4097, 10**6)] == [0, 0, 64, 64]
    assert [exchange.ring(many, steps) for steps in (64, 65, 10**6)] == [0, 64, 64]
