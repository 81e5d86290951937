"""The delta rule's kernel for CPUs: instruction sets, blocks of columns, threads."""

import cases
import jax
import numpy as np
import pytest
from test_delta_rule import example, graded

from jaxrnn._src.ops import native

pytestmark = pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
SETS = native.library().instruction_sets
# Another rule for each instruction set, with every way to take away, and to read.
RULES = dict(zip(("avx512", "avx2"), ("anything", "gated_delta")))
STEPS = 40  # a chunk and a part of one
WIDTHS = 37, 21  # of a key and of a value: blocks of two vectors, of one, and a part of one


def given(rule):
    """Operands in float32, flags, and cotangents."""
    taken, state, before, mask, starts = example(rule, STEPS, widths=WIDTHS)
    taken, state = jax.tree.map(np.float32, (taken, state))
    weights = cases.cotangents((state, taken[2]))
    return taken, state, before, mask, starts, weights


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("isa", SETS)
def test_every_instruction_set(monkeypatch, isa):
    monkeypatch.setenv(native.ISA, isa)
    *operands, before, mask, starts, weights = given(RULES.get(isa, "vector_before"))
    narrow = jax.tree.map(np.float32, weights)
    came = graded(*operands, before, mask, starts, before, "cpu", narrow)
    wide = jax.tree.map(np.float64, (*operands, weights))
    wanted = graded(*wide[:2], before, mask, starts, before, "reference", wide[2])
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(came))
    assert cases.error(came, wanted) < 5e-6


def test_a_row_has_its_bits_alone_and_in_any_batch():
    """And on one thread as on all: so many products that threads share them."""
    taken, state, before, mask, starts, weights = given("anything")
    weights = jax.tree.map(np.float32, weights)
    run = lambda rows: graded(
        jax.tree.map(lambda a: a[:, rows], taken),
        state[rows],
        before,
        mask[:, rows],
        starts[:, rows],
        False,
        "cpu",
        (weights[0][rows], weights[1][:, rows]),
    )
    many = np.arange(24) % 3
    (whole, d_whole), (again, d_again), (alone, d_alone) = map(run, (many, many, slice(1, 2)))
    for came, other in ((whole, again), (d_whole, d_again)):
        jax.tree.map(np.testing.assert_array_equal, came, other)
    for (state_b, ys_b), (state_a, ys_a) in (
        (whole, alone),
        ((d_whole[1], d_whole[0][1]), (d_alone[1], d_alone[0][1])),
    ):
        np.testing.assert_array_equal(state_b[1:2], state_a)
        np.testing.assert_array_equal(ys_b[:, 1:2], ys_a)
