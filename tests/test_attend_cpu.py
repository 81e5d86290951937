"""Attention's kernel for CPUs: sizes that fill no block, every storage type, instruction sets."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attend import textbook

from jaxrnn._src.ops import native
from jaxrnn._src.ops.attention import attend

pytestmark = pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
SETS = native.library().instruction_sets
OUTPUTS, GRADIENTS = 5e-6, 1.5e-5
NARROW = {"bfloat16": (2e-2, 4e-2), "float16": (3e-3, 6e-3)}


@functools.partial(jax.jit, static_argnames=("window", "implementation"))
def both(q, k, v, d_y, places, window=None, implementation="cpu"):
    """Outputs, and the gradients of q, k and v."""
    run = lambda *qkv: attend(*qkv, *places, window=window, implementation=implementation)
    out, pull = jax.vjp(run, q, k, v)
    return out, *pull(d_y)


def sequences(batch, steps, keys, heads, width):
    """q, k, v and a cotangent; the places of a batch of sequences whose cache has ``keys`` - T."""
    rng = np.random.default_rng(0)
    q, d_y = rng.normal(size=(2, batch, steps, heads, width))
    k, v = rng.normal(size=(2, batch, keys, heads, width))
    real = rng.random((batch, keys)) < 0.9
    real[:, :3] = False  # the first queries of a row without a cache see nothing
    episode = np.cumsum(rng.random((batch, keys)) < 0.02, -1)
    position = np.cumsum(real, -1) - real  # not what positions are, but they need not ascend by 1
    last = (a[:, keys - steps :] for a in (position, episode))
    places = tuple(last), (position, np.where(real, episode, -1))
    return (q, k, v, d_y), jax.tree.map(lambda a: a.astype(np.int32), places)


def sees(places, window):
    (q_position, q_episode), (k_position, k_episode) = places
    back = q_position[:, None] - k_position[None, :]
    return (back >= 0) & (back < (window or 10**9)) & (q_episode[:, None] == k_episode[None, :])


def truth(arrays, places, window):
    rows = []
    for row in range(len(arrays[0])):
        at = jax.tree.map(lambda a, row=row: a[row], places)
        rows.append(textbook(*(np.asarray(a, float)[row] for a in arrays), sees(at, window)))
    return tuple(np.stack(parts) for parts in zip(*rows))


@pytest.mark.parametrize("isa", SETS)
def test_every_instruction_set(monkeypatch, isa):
    """Three chunks of queries, a cache, padding, episodes, a width that is no vector's."""
    monkeypatch.setenv(native.ISA, isa)
    arrays, places = sequences(batch=2, steps=531, keys=540, heads=2, width=37)
    arrays = [a.astype(np.float32) for a in arrays]
    window = {"avx512": 70, "avx2": None}.get(isa, 9)  # also what is compiled anew for each
    came, wanted = both(*arrays, places, window=window), truth(arrays, places, window)
    assert cases.error(came[0], wanted[0]) < OUTPUTS
    assert cases.error(came[1:], wanted[1:]) < GRADIENTS


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_types(dtype):
    arrays, places = sequences(batch=1, steps=75, keys=75, heads=1, width=16)
    arrays = [jnp.asarray(a, dtype) for a in arrays]
    came, wanted = both(*arrays, places), truth(arrays, places, None)
    assert {a.dtype for a in came} == {jnp.dtype(dtype)}
    assert cases.error(came[0], wanted[0]) < NARROW[dtype][0]
    assert cases.error(came[1:], wanted[1:]) < NARROW[dtype][1]


def test_same_bits_alone_and_in_a_batch():
    """Alone, a head's chunks are shared by all threads; in a batch, each thread has a head."""
    arrays, places = sequences(batch=9, steps=600, keys=600, heads=1, width=24)
    arrays = [a.astype(np.float32) for a in arrays]
    runs = [jax.tree.map(np.asarray, both(*arrays, places)) for _ in range(2)]
    for row in (0, 8):
        alone = jax.tree.map(lambda a, row=row: a[row : row + 1], (arrays, places))
        alone = both(*alone[0], alone[1])
        for batch in runs:
            for a, b in zip(batch, alone, strict=True):
                np.testing.assert_array_equal(a[row : row + 1], b)


@pytest.mark.parametrize("shape", ((0, 5, 5), (2, 1, 1), (1, 1, 70), (3, 65, 65)))
def test_sizes(shape):
    """No row, one step, one step after a cache, one step more than a block."""
    arrays, places = sequences(*shape, heads=2, width=3)
    arrays = [a.astype(np.float32) for a in arrays]
    came = both(*arrays, places)
    if shape[0]:
        assert cases.error(came, truth(arrays, places, None)) < GRADIENTS
    assert [a.shape for a in came] == [arrays[i].shape for i in (0, 0, 1, 2)]


def test_keys_that_all_members_share():
    """``vmap`` over queries and over keys, of each alone: an axis of members, or of rows."""
    (q, k, v, d_y), places = sequences(batch=3, steps=20, keys=20, heads=2, width=8)
    q, k, v, d_y = (a.astype(np.float32) for a in (q, k, v, d_y))
    places = jax.tree.map(lambda a: a[0], places)
    for axes in ((0, None, None, 0), (None, 0, None, None), (None, None, 0, 0)):
        given = [a if axis == 0 else a[0] for a, axis in zip((q, k, v, d_y), axes)]
        run = jax.jit(jax.vmap(lambda *a: both(*a, places), axes))
        whole = [a if axis == 0 else np.stack([a] * 3) for a, axis in zip(given, axes)]
        repeated = jax.tree.map(lambda a: np.stack([a] * 3), places)
        assert cases.error(run(*given), truth(whole, repeated, None)) < GRADIENTS


def test_a_call_that_nobody_should_make():
    """Of XLA's program the kernel believes nothing."""
    call = lambda window, *args: jax.jit(
        lambda *args: jax.ffi.ffi_call(
            "jaxrnn_attend_forward", jax.ShapeDtypeStruct((4, 1, 1, 2), jnp.float32)
        )(*args, window=np.int64(window), placed=False, save=False, isa="")
    )(*args)
    q, other = jnp.ones((4, 1, 1, 2)), jnp.ones((4, 1, 2, 2))
    call(3, q, q, q)
    for wrong in ((0, q, q, q), (3, q, other, q), (3, q, q), (3, q, q, q, q)):
        with pytest.raises(Exception, match="jaxrnn: "):
            call(*wrong)
