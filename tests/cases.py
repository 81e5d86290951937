"""The table of the tests: cells, shapes, tolerances. A new cell is one more row in ``CELLS``."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import truth
from case import NO_KERNEL, RECUR, Case  # noqa: F401, for others
from families import ROWS

import jaxrnn
from jaxrnn._src.ops import attention


def mgu_update(state, x, r):
    """A cell of a user's: the minimal gated unit, Zhou et al. 2016."""
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = jax.nn.sigmoid(xf + rf)
    return (h + f * (jnp.tanh(xn + f * rn) - h),)


def candidate_first_update(state, x, r):
    """The same with its gates the other way round: those that are sums come last."""
    (xn, xf), (rn, rf) = x, r
    return mgu_update(state, (xf, xn), (rf, rn))


def peephole_update(state, x, r, pi, pf, po):
    """A cell with weights of its own for each unit: Gers & Schmidhuber 2000."""
    (_, c), (xi, xf, xg, xo), (ri, rf, rg, ro) = state, x, r
    i, f = jax.nn.sigmoid(xi + ri + pi * c), jax.nn.sigmoid(xf + rf + pf * c)
    c = f * c + i * jnp.tanh(xg + rg)
    return jax.nn.sigmoid(xo + ro + po * c) * jnp.tanh(c), c


def smooth(hidden):
    """A cell lifted from its step, with a state that is no tuple."""

    def init(key, in_size):
        return {"rate": jax.random.uniform(key, (in_size,))}

    def initial_state(params, batch_shape):
        return {"mean": jnp.ones((*batch_shape, *params["rate"].shape), params["rate"].dtype)}

    def step(params, state, x):
        rate = jnp.broadcast_to(params["rate"], x.shape)
        mean = state["mean"] + rate * (x.astype(rate.dtype) - state["mean"])
        return {"mean": mean}, mean.astype(x.dtype)

    return jaxrnn.cell(init, initial_state, step)


def _small(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / 2


mgu = jaxrnn.gated(mgu_update, gates=2)
candidate_first = jaxrnn.gated(candidate_first_update, gates=2)
peephole = jaxrnn.gated(
    peephole_update, gates=4, states=2, unit={"pi": _small, "pf": _small, "po": _small}
)


# Which cells a run is about: a "few", one or more of each builder; the "usual", all of them, of
# which some are held to all laws; "all", held to all. Set by `pytest --cells`.
CHOSEN = "usual"
REFERENCE = "reference"
TPU = (*RECUR, "tpu")  # by an interpreter: see `interpreted`
ATTEND = tuple(name for name in attention.IMPLEMENTATIONS if name != "gpu")


GATED = {
    "elman": Case(jaxrnn.elman, truth.elman(np.tanh), TPU),
    "elman_relu": Case(lambda h: jaxrnn.elman(h, activation="relu"), truth.elman(truth.relu)),
    "lstm": Case(jaxrnn.lstm, truth.lstm, TPU),
    "lstm_states": Case(lambda h: jaxrnn.lstm(h, residuals="states"), truth.lstm),
    "lstm_chunks": Case(lambda h: jaxrnn.lstm(h, residuals="chunks"), truth.lstm),
    "lstm_heads": Case(lambda h: jaxrnn.lstm(h, heads=2), truth.lstm, heads=2),
    "gru": Case(jaxrnn.gru, truth.gru, TPU),
    "gru_states": Case(lambda h: jaxrnn.gru(h, residuals="states"), truth.gru),
    "gru_heads": Case(lambda h: jaxrnn.gru(h, heads=3), truth.gru, heads=3),
    "gru_reset_before": Case(
        lambda h: jaxrnn.gru(h, reset_after=False), truth.gru_reset_before, RECUR
    ),
    "mgu": Case(mgu, truth.mgu, TPU),
    "candidate_first": Case(candidate_first, truth.turned(truth.mgu)),
    "peephole": Case(peephole, truth.peephole_lstm),
}
ATTENTION = {
    "attention": Case(lambda h: jaxrnn.attention(h, heads=1, context=16), truth.attention, ATTEND),
    "attention_window": Case(
        lambda h: jaxrnn.attention(h, heads=1, window=3),
        functools.partial(truth.attention, window=3),
        ATTEND,
    ),
    "attention_heads": Case(
        lambda h: jaxrnn.attention(h, heads=2, context=16), truth.attention, ATTEND, heads=2
    ),
    "attention_grouped": Case(
        lambda h: jaxrnn.grouped_attention(
            h,
            heads=4,
            kv_heads=2,
            width=6,
            rotary=4,
            base=100.0,
            norm=0.1,
            gate=True,
            bias=True,
            window=4,
        ),
        functools.partial(truth.grouped_attention, rotary=4, base=100.0, epsilon=0.1, window=4),
        ATTEND,
    ),
}
MADE_OF_OTHERS = {
    "smooth": Case(smooth, faster=()),
    "project": Case(lambda h: jaxrnn.project(h, activation="tanh"), faster=()),
    "stack": Case(lambda h: jaxrnn.stack(jaxrnn.lstm(h), jaxrnn.project(3), jaxrnn.gru(h))),
    "residual": Case(lambda h: jaxrnn.stack(jaxrnn.gru(h), jaxrnn.residual(jaxrnn.elman(h)))),
    "dropout": Case(
        lambda h: jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.gru(h), jaxrnn.dropout(0.25))
    ),
    "dropout_sequence": Case(
        lambda h: jaxrnn.stack(jaxrnn.dropout(0.5, per="sequence"), jaxrnn.lstm(h))
    ),
    "transformer_block": Case(
        lambda h: jaxrnn.stack(
            jaxrnn.project(h), jaxrnn.transformer_block(h, heads=1, window=4, mlp=2)
        ),
        faster=ATTEND,
    ),
}
# Which steps of NumPy say what; the families' give outputs too, those above the state alone.
STEPS = {name: truth.first(case.truth) for name, case in GATED.items() if case.truth}
STEPS |= {name: case.truth for name, case in ROWS.items() if case.truth}
CELLS = GATED | ATTENTION | MADE_OF_OTHERS | ROWS


class Shape(NamedTuple):
    steps: int
    batch: tuple
    inputs: int
    hidden: int


BASE = Shape(6, (5,), 3, 6)
USUAL = Shape(6, (2, 3), 3, 6)  # that most laws are tried at
SHAPES = (
    BASE,
    Shape(0, (5,), 3, 6),
    Shape(1, (5,), 3, 6),
    Shape(4, (), 3, 7),
    Shape(4, (0,), 3, 6),
    Shape(4, (1,), 1, 1),
    Shape(3, (4, 5), 3, 6),
    Shape(3, (2, 1, 3), 2, 17),
    Shape(3, (5,), 2, 33),
    Shape(3, (1,), 5, 65),
    Shape(2, (5,), 3, 100),
    Shape(2, (5,), 129, 129),
)

# The largest error over the largest value, tensor by tensor: of outputs and states, of gradients.
TOLERANCE = {
    "float64": (1e-12, 1e-12),
    "float32": (5e-6, 1.5e-5),
    "bfloat16": (2e-2, 4e-2),
    "float16": (4e-3, 8e-3),
}


class Example(NamedTuple):
    """A cell with everything ``unroll`` can be given, and what its results are multiplied with."""

    cell: object
    params: dict
    xs: object
    state: object
    lengths: object
    mask: object
    starts: object
    key: object


@functools.cache
def example(case, shape=BASE, seed=0, dtype=jnp.float64):
    """Random arrays; every kind of row: full, empty, with holes, with several episodes."""
    steps, batch, inputs, hidden = shape
    hidden, inputs = -(-hidden // case.heads) * case.heads, case.inputs or inputs
    cell, rng = case.make(hidden), np.random.default_rng(seed)
    params = _begun(case, inputs, hidden, seed, jax.config.jax_enable_x64)
    # What begins at zero, like a bias, would hide mistakes.
    params = jax.tree.map(
        lambda p: _array(np.asarray(p) + 0.1 * rng.normal(size=p.shape), dtype), params
    )
    xs = _array(rng.normal(size=(steps, *batch, inputs)), dtype)
    before = _array(rng.normal(size=(3, *batch, inputs)), dtype)
    state = cell.initial_state(params, tuple(batch))
    if not case.whole:
        for x in before:
            state = _after(cell, params, state, x)
    lengths = np.resize([steps, 0, steps // 2, steps, 1], batch).clip(0, steps)
    mask = rng.random((steps, *batch)) < 0.7
    starts = rng.random((steps, *batch)) < 0.3
    flags = _array(lengths, jnp.int32), _array(mask, bool), _array(starts, bool)
    return Example(cell, params, xs, state, *flags, jax.random.key(seed + 1))


@functools.partial(jax.jit, static_argnums=0)
def _after(cell, params, state, x):
    return cell.step(params, state, x)[0]


def _array(values, dtype):
    """As ``jnp.array``, which compiles a program for each shape."""
    return jax.device_put(values.astype(dtype))


@functools.cache
def _begun(case, inputs, hidden, seed, x64):
    """Shared by examples of many shapes and types: it takes longer to compile than a run."""
    return jax.jit(case.make(hidden).init, static_argnums=1)(jax.random.key(seed), inputs)


def cotangents(tree, seed=1):
    """Random numbers, NumPy's, in the shapes of a tree; None in place of integers."""
    rng = np.random.default_rng(seed)

    def random(a):
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            return (rng.normal(size=a.shape) + 1j * rng.normal(size=a.shape)).astype(a.dtype)
        if jnp.issubdtype(a.dtype, jnp.floating):
            return np.asarray(rng.normal(size=a.shape), a.dtype)

    return jax.tree.map(random, tree)


def floating(tree):
    """Without the counters, and the gradients of counters."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def error(came, wanted):
    """The largest error over the largest value; of a whole tree, the worst tensor's."""
    pairs = zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True)
    return max((_error(_wide(a), _wide(b)) for a, b in pairs), default=0)


def _wide(a):
    return np.asarray(a, complex if jnp.iscomplexobj(a) else float)


def _error(came, wanted):
    assert came.shape == wanted.shape, f"{came.shape} against {wanted.shape}"
    if not wanted.size:
        return 0.0
    worst = np.abs(came - wanted).max()
    assert np.isfinite(worst), "not finite"
    return worst / max(np.abs(wanted).max(), 1e-6)  # zero but for rounding
