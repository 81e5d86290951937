"""Attention by cuDNN, lowered for a GPU on a machine without one: nothing runs.

What JAX asks of a GPU while it lowers is answered here; all else is JAX's own check of what cuDNN
takes.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instead import instead
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.attention import blockwise, cudnn
from jaxrnn._src.ops.attention.problem import Operands, Problem

FORWARD, BACKWARD = "@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("
WIDTH, HEADS, STEPS = 16, 2, 7
ANSWERS = (
    (cudnn, "_capability", lambda chip: 9.0),
    (fused_attention_stablehlo, "check_cudnn_version", lambda: 91900),
)


@pytest.fixture
def on_a_gpu():
    with instead(*ANSWERS):
        yield


def lowered(function, *args):
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def layer(dtype, batch=(3,), **options):
    """A layer of attention as a function of parameters and inputs, and what these look like."""
    cell = jaxrnn.attention(WIDTH * HEADS, heads=HEADS, **options)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 5))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    xs = jax.ShapeDtypeStruct((STEPS, *batch, 5), dtype)
    return (lambda params, xs: jaxrnn.unroll(cell, params, xs)[1]), params, xs


def gradient(apply):
    return jax.grad(lambda *args: apply(*args).astype(jnp.float32).sum(), (0, 1))


def several(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((4, *a.shape), a.dtype), tree)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_a_layer_and_its_gradient(on_a_gpu, dtype, window):
    apply, *like = layer(dtype, window=window)
    text = lowered(apply, *like)
    assert text.count(FORWARD) == 1 and BACKWARD not in text
    shown = 0 if window in (None, 100) else window
    assert f"sliding_window_length\\22: {shown}" in text
    text = lowered(gradient(apply), *like)
    assert text.count(BACKWARD) == 1 and FORWARD in text


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_axes(on_a_gpu, batch):
    apply, *like = layer("bfloat16", batch)
    assert BACKWARD in lowered(gradient(apply), *like)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
def test_vmap(on_a_gpu, axes):
    apply, *like = layer("bfloat16")
    like = [a if axis is None else several(a) for a, axis in zip(like, axes)]
    for function, call in ((apply, FORWARD), (gradient(apply), BACKWARD)):
        assert lowered(jax.vmap(function, axes), *like).count(call) == 1
    assert lowered(gradient(jax.vmap(apply, axes)), *like).count(BACKWARD) == 1


def test_vmap_over_cotangents(on_a_gpu):
    """As in ``jax.jacrev``: the queries, keys and values are the same for all."""
    apply, *like = layer("bfloat16")
    assert lowered(jax.jacrev(lambda *args: apply(*args)[-1, 0]), *like).count(BACKWARD) == 1


def test_other_transforms(on_a_gpu):
    apply, *like = layer("bfloat16")
    assert FORWARD in lowered(lambda *args: jax.jvp(apply, args, args), *like)
    assert BACKWARD in lowered(gradient(jax.remat(apply)), *like)
    scanned = lambda params, xs: jax.lax.map(lambda some: apply(params, some), xs)
    assert FORWARD in lowered(scanned, like[0], several(like[1]))
    loss = lambda *args: (gradient(apply)(*args)[1].astype(jnp.float32) ** 2).sum()
    lowered(jax.grad(loss), *like)


@pytest.mark.parametrize("kind", ["sharded", "shard_map"])
def test_over_devices(on_a_gpu, kind):
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    whole, rows = PartitionSpec(), PartitionSpec(None, "batch")
    apply, params, xs = layer("bfloat16", (4,))
    function = gradient(apply)
    if kind == "shard_map":
        function = jax.shard_map(
            function, mesh=mesh, in_specs=(whole, rows), out_specs=(whole, rows)
        )
    place = lambda spec, a: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=NamedSharding(mesh, spec)
    )
    params = jax.tree.map(functools.partial(place, whole), params)
    text = lowered(function, params, place(rows, xs))
    assert (BACKWARD if kind == "shard_map" else "@CustomSPMDPartitioning") in text


def test_what_is_exported_runs_elsewhere(on_a_gpu):
    """JAX promises nothing of cuDNN's calls in a program that is kept."""
    apply, *like = layer("bfloat16")
    text = jax.export.export(jax.jit(apply), platforms=("cuda",))(*like).mlir_module()
    assert "@__cudnn" not in text


def why_not(q=(3, 7, 2, 16), dtype="bfloat16", plain=True, platform="cuda", chip=None):
    problem, target = Problem(None, plain, None), Target(platform, chip)
    arrays = [jax.ShapeDtypeStruct(q, dtype)] * 3
    return cudnn.unsupported(problem, Operands(*arrays, None, None), target)


def test_what_cudnn_cannot_run(on_a_gpu, monkeypatch):
    assert why_not() is None and why_not(platform="gpu") is None
    for platform in ("cpu", "tpu", "rocm", None):
        assert why_not(platform=platform) == "needs an NVIDIA GPU"
    assert "no lengths" in why_not(plain=False)
    for dtype in ("float32", "float64", "float8_e4m3fn"):
        assert "bfloat16 or float16" in why_not(dtype=dtype)
    for width in (12, 136, 256):
        assert f"here {width}" in why_not((3, 7, 2, width))
    assert "not zero" in why_not((0, 7, 2, 16))
    (steps,) = jax.export.symbolic_shape("t")
    assert "sizes" in why_not((3, steps, 2, 16))
    monkeypatch.setattr(cudnn, "_capability", lambda chip: 7.5)
    assert "8.0" in why_not()


def test_a_machine_without_a_gpu():
    assert "that this machine has" in why_not()


def test_the_chip_lowered_for_is_asked(monkeypatch):
    """Not the first of this machine's devices, which may be of another kind."""
    kinds = {"NVIDIA T4": "7.5", "NVIDIA H100": "9.0"}
    devices = [
        types.SimpleNamespace(device_kind=kind, compute_capability=capability)
        for kind, capability in kinds.items()
    ]
    monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    assert "here 7.5" in why_not(chip="NVIDIA T4") and why_not(chip="NVIDIA H100") is None
    assert "here NVIDIA L4" in why_not(chip="NVIDIA L4")


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_any_number_of_steps(on_a_gpu, steps):
    """JAX refuses odd ones for a gradient, cuDNN a single one: they get one step more."""
    apply, params, xs = layer("bfloat16")
    xs = jax.ShapeDtypeStruct((steps, *xs.shape[1:]), xs.dtype)
    text = lowered(gradient(apply), params, xs)
    assert BACKWARD in text and f"tensor<3x{steps + steps % 2}x{HEADS}x{WIDTH}xbf16>" in text


def test_the_numbers(monkeypatch):
    """JAX's own attention, asked in the same way, sees what it should."""
    function = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **options: function(*args, **options),
    )
    q, k, v, d_ys = jax.random.normal(jax.random.key(0), (4, 2, 3, STEPS, HEADS, 8))
    operands, target = Operands(q, k, v, None, None), Target("cuda")
    for window in (None, 1, 3, STEPS, 100):
        problem = Problem(window, True, None)
        ys, sums = blockwise.forward(problem, operands, (True,), True, target)
        (got, _), (alone,) = (
            cudnn.forward(problem, operands, (True,), save, target) for save in (1, 0)
        )
        np.testing.assert_allclose(got, ys, atol=1e-5)
        np.testing.assert_allclose(alone, ys, atol=1e-5)
        given = problem, operands, (ys,), (sums,), (d_ys,), None, target
        wanted, got = blockwise.backward(*given), cudnn.backward(*given)
        for a, b in zip(got[:3], wanted[:3]):
            np.testing.assert_allclose(a, b, atol=1e-5)
