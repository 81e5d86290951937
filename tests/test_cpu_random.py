"""The kernel for CPUs under random shapes, and under calls that nobody should make."""

import functools
import os
import pathlib
import subprocess
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn

pytestmark = pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
steady = functools.partial(settings, deadline=None, derandomize=True, database=None)


@steady(max_examples=25)
@given(
    name=st.sampled_from(("lstm", "gru", "elman", "peephole")),
    dtype=st.sampled_from(("float32", "bfloat16", "float16")),
    sizes=st.tuples(st.integers(1, 7), st.integers(0, 70), st.integers(1, 70)),
    hidden=st.integers(1, 150),
    heads=st.sampled_from((1, 1, 2, 3)),
    residuals=st.sampled_from(("gates", "states", "chunks")),
    reverse=st.booleans(),
    rows_first=st.booleans(),
    given_flags=st.sets(st.sampled_from(("mask", "starts"))),
)
def test_random_shapes(
    name, dtype, sizes, hidden, heads, residuals, reverse, rows_first, given_flags
):
    """Outputs and gradients are the reference's, whatever the shape, type, padding and layout."""
    make = getattr(cases if name == "peephole" else jaxrnn, name)
    steps, batch, inputs = sizes
    cell = make(-(-hidden // heads) * heads, heads=heads, residuals=residuals)
    rng = np.random.default_rng(0)
    draw = lambda a, scale=0.5: (scale * rng.normal(size=a.shape)).astype(a.dtype)
    params = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
    state = jax.tree.map(draw, jax.eval_shape(lambda p: cell.initial_state(p, (batch,)), params))
    params = jax.tree.map(lambda p: draw(p, 0.5 / hidden**0.5), params)
    xs = rng.normal(size=(steps, batch, inputs)).astype(dtype)
    shares = {"mask": 0.7, "starts": 0.3}
    flags = {flag: rng.random((steps, batch)) < shares[flag] for flag in sorted(given_flags)}

    def results(which):
        def run(params, xs, state, flags):
            more = dict(reverse=reverse, implementation=which, **flags)
            return jaxrnn.unroll(cell, params, xs, state, **more)

        moved = (lambda a: a.swapaxes(0, 1)) if rows_first else (lambda a: a)
        if rows_first:
            run = jax.vmap(run, (None, 0, 0, 0))
        out, pull = jax.vjp(
            lambda *moving: run(*moving, jax.tree.map(moved, flags)), params, moved(xs), state
        )
        return out, pull(cases.cotangents(out))

    came, wanted = jax.jit(lambda: [results(which) for which in ("cpu", "reference")])()
    for ours, theirs, most in zip(came, wanted, cases.TOLERANCE[dtype], strict=True):
        assert cases.error(ours, theirs) < most


@pytest.mark.parametrize("threads", (3, 5))
def test_random_slices(threads):
    """With several threads, a batch is cut into slices, of which the last may be smaller.

    In a process of its own, which has so many: here each of eight devices has one.
    """
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    # NPROC is how many threads XLA makes, whatever the machine has.
    own = os.environ | {"XLA_FLAGS": flags, "NPROC": str(threads)}
    program = pathlib.Path(__file__).with_name("slices.py")
    command = [sys.executable, str(program), str(threads), "10"]
    done = subprocess.run(command, env=own, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@functools.cache
def recorded():
    """Calls of the kernel as the library makes them: target, results, arguments, attributes."""
    calls, ffi_call = [], jax.ffi.ffi_call

    def recording(target, shapes):
        def call(*args, **attributes):
            calls.append((target, shapes, [(a.shape, a.dtype) for a in args], attributes))
            return ffi_call(target, shapes)(*args, **attributes)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.ffi, "ffi_call", recording)
        for name in ("lstm", "gru_heads", "lstm_states", "layer_norm_lstm"):
            e = cases.example(cases.CELLS[name], cases.BASE, dtype=jnp.float32)
            loss = lambda p, e=e: jaxrnn.unroll(
                e.cell, p, e.xs, mask=e.mask, starts=e.starts, implementation="cpu"
            )[1].sum()
            jax.jit(jax.grad(loss)).lower(e.params)
    return calls


WHAT = ("other", "other", "other", "more", "less")


ANYTHING = st.integers(-3, 40) | st.sampled_from((-(2**31), 2**31 - 1, 1 << 20))


def integers(values):
    """The same integers but for one, or one more, or one less."""

    def changed(place, value, what):
        values_ = list(values)
        if what == "more":
            values_.append(value)
        elif values_:
            place %= len(values_)
            values_[place : place + 1] = [value] if what == "other" else []
        return np.array(values_, np.int32)

    return st.builds(changed, st.integers(0, 400), ANYTHING, st.sampled_from(WHAT))


@steady(max_examples=300)
@given(st.data())
def test_bad_calls(data):
    """One thing is wrong in a call: it gives an error or some numbers, and the process lives."""
    target, results, args, attributes = data.draw(st.sampled_from(recorded()))
    results, args, attributes = list(results), list(args), dict(attributes)
    what = data.draw(st.sampled_from(("number", "numbers", "missing", "argument", "result")))
    if what in ("number", "numbers", "missing"):
        one = {n: np.ndim(a) == 0 for n, a in attributes.items() if np.size(a) and n != "isa"}
        own = (n for n, single in one.items() if what == "missing" or single == (what == "number"))
        name = data.draw(st.sampled_from(sorted({*own} - {"constants"})))
        if what == "missing":
            del attributes[name]
        elif what == "number":
            attributes[name] = np.int32(data.draw(ANYTHING))
        else:
            attributes[name] = data.draw(integers(attributes[name].tolist()))
    else:
        arrays = args if what == "argument" else results
        place = data.draw(st.integers(0, len(arrays) - 1))
        shape, dtype = (
            arrays[place] if what == "argument" else (arrays[place].shape, arrays[place].dtype)
        )
        how = data.draw(st.sampled_from(("gone", "twice", "type", "shape", "rank")))
        if how == "gone":
            del arrays[place]
        elif how == "twice":
            arrays.insert(place, arrays[place])
        else:
            if how == "type":
                dtype = data.draw(
                    st.sampled_from((jnp.float32, jnp.bfloat16, jnp.bool_, jnp.int8))
                )
            elif how == "shape":
                axis = data.draw(st.integers(0, len(shape) - 1))
                shape = (*shape[:axis], data.draw(st.integers(0, 20)), *shape[axis + 1 :])
            else:
                shape = shape[1:] if data.draw(st.booleans()) else (2, *shape)
            made = (shape, dtype)
            arrays[place] = made if what == "argument" else jax.ShapeDtypeStruct(*made)
    given_arrays = [jnp.ones(shape, dtype) for shape, dtype in args]
    try:
        jax.block_until_ready(jax.ffi.ffi_call(target, results)(*given_arrays, **attributes))
    except Exception as error:
        assert "jaxrnn: " in str(error) or "buffer" in str(error), error
