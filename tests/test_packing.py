"""Ragged sequences, several to a row: nothing is lost, and no state crosses between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

LENGTHS = (3, 7, 1, 4, 2, 7, 5, 1)
T = 8


def ragged(features=2):
    rng = np.random.default_rng(0)
    return [
        {"xs": np.float32(rng.normal(size=(n, features))), "targets": rng.integers(9, size=n)}
        for n in LENGTHS
    ]


def test_there_and_back():
    sequences = ragged()
    packed, ids = jaxrnn.pack(sequences, T)
    assert ids.shape == (T, 4) and ids.dtype == np.int32  # 30 steps: four rows of 8 are the least
    assert packed["xs"].shape == (T, 4, 2) and packed["targets"].dtype == np.int64
    assert [(ids == k + 1).sum() for k in range(len(LENGTHS))] == list(LENGTHS)
    assert not packed["xs"][ids == 0].any() and not packed["targets"][ids == 0].any()
    again = jaxrnn.unpack(packed, ids)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, sequences))
    wide, ids = jaxrnn.pack(sequences, T, rows=6)
    assert ids.shape == (T, 6) and not ids[:, 4:].any()
    assert jax.tree.all(jax.tree.map(np.array_equal, jaxrnn.unpack(wide, ids), sequences))


@pytest.mark.parametrize("reverse", [False, True])
def test_each_sequence_is_run_by_itself(reverse):
    """Packed rows against padded ones, and through both directions."""
    cell = jaxrnn.gru(3)
    params = cell.init(jax.random.key(0), 2)
    sequences = [one["xs"] for one in ragged()]
    xs, ids = jaxrnn.pack(sequences, T)
    run = functools.partial(jaxrnn.unroll, cell, params, xs, reverse=reverse)
    ys = run(segment_ids=ids)[1]
    came = jaxrnn.unpack(ys, ids)
    padded = np.stack([np.pad(x, ((0, T - len(x)), (0, 0))) for x in sequences], 1)
    lengths = np.array(LENGTHS, np.int32)
    wanted = jaxrnn.unroll(cell, params, jnp.asarray(padded), lengths=lengths, reverse=reverse)[1]
    for i, n in enumerate(LENGTHS):
        assert error(came[i], wanted[:n, i]) < 1e-6
    mask, starts = jaxrnn.from_segment_ids(ids)
    assert error(run(mask=mask, starts=starts)[1], ys) == 0
    holes = np.broadcast_to(np.arange(T)[:, None] % 3 > 0, ids.shape)
    lengths = [T - 1, 2, 0, T]
    came = run(segment_ids=ids, mask=holes, lengths=lengths)  # real if all say so
    assert error(came, run(mask=mask & holes, lengths=lengths, starts=starts)) == 0


def truth(ids):
    """``mask`` and ``starts`` of a row, step by step."""
    mask, starts, last = [], [], None
    for k in ids:
        mask.append(k != 0)
        starts.append(k != 0 and k != last)
        last = k if k else last
    return mask, starts


def test_segment_ids():
    """Any numbers, padding anywhere, several batch axes, none, and no steps."""
    ids = np.random.default_rng(0).integers(-1, 3, (40, 2, 3))
    ids = np.repeat(ids, 2, 0).astype(np.int32)
    for given in (ids, ids[:, 0, 0], ids[:0]):
        mask, starts = jax.jit(jaxrnn.from_segment_ids)(given)
        assert mask.shape == starts.shape == given.shape and mask.dtype == starts.dtype == bool
        if len(given):
            rows = given.reshape(len(given), -1).T
            wanted = np.array([truth(row) for row in rows.tolist()])  # [B, 2, T]
            came = np.stack([mask, starts]).reshape(2, len(given), -1)
            assert (came == wanted.transpose(1, 2, 0)).all()


X = np.ones((3, 2))
BAD = {
    "none": (lambda: jaxrnn.pack([], 4), "sequences: got none, want one or more"),
    "too long": (lambda: jaxrnn.pack([X[:1], X], 2), "[1]: got 3 steps, want 1 to length=2"),
    "empty": (lambda: jaxrnn.pack([X[:0]], 2), "sequences[0]: got 0 steps"),
    "numbers": (lambda: jaxrnn.pack([3.0], 2), "sequences[0]: got shapes [()], want [t, ...]"),
    "two lengths": (lambda: jaxrnn.pack([(X, X[:2])], 4), "want [t, ...] of one t"),
    "length": (lambda: jaxrnn.pack([X], 0), "length: got 0, want 1 or more"),
    "rows": (lambda: jaxrnn.pack([X, X], 3, rows=1), "rows: got 1, want 2 or more"),
    "shape": (lambda: jaxrnn.unpack(X, np.ones((2, 2), int)), "packed: got shape (3, 2), want"),
    "two rows": (
        lambda: jaxrnn.unpack(X, np.ones((3, 2), int)),
        "got 1 in the rows [0, 1], want each",
    ),
    "floats": (lambda: jaxrnn.from_segment_ids(X), "segment_ids: got float64, want an integer"),
    "a number": (lambda: jaxrnn.from_segment_ids(np.int32(3)), "segment_ids: got shape ()"),
    "a list": (lambda: jaxrnn.from_segment_ids([1]), "segment_ids: got list, want an int array"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, text = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert text in str(caught.value)
