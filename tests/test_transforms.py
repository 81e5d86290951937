"""Transforms of each fused operation give what they give of its reference.

Every transform, of any nesting, is held of a toy (`test_operation`). Here are those in which an
operation's own functions can fail: how its operands, outputs and residuals are batched, what its
backward reads, and its implementations under ``vmap``.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import pytest
from cases import CELLS, REFERENCE
from interpreted import interpreted_as_jax
from transforms import equations, over, ran, six

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = cases.Shape(3, (2,), 2, 3)
OPERATION = {  # the cells whose transforms are tried, and the operation they run on
    "lstm": "recur",
    "gru_states": "recur",
    "gru_heads": "recur",
    "gru_reset_before": "loop",
    "attention_window": "attend",
}
FUSED = (
    *((name, None) for name in OPERATION),
    ("lstm", "xla"),
    ("lstm", "tpu"),
    ("gru_states", "tpu"),
)
AXES = dict(weights=(0, None), data=(None, 0))
SIX = six(**AXES)


def loss_of(name, implementation):
    """A number made of ys and the final state, as a function of (params, xs)."""
    e, weights = _example(name)

    def loss(params, xs):
        state, ys = jaxrnn.unroll(
            e.cell,
            params,
            xs,
            e.state,
            mask=e.mask,
            starts=e.starts,
            implementation=implementation,
        )
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(cases.floating((state, ys))))
        return sum(((d * jnp.sin(a)).sum() for d, a in pairs), jnp.zeros(()))

    return loss


@interpreted_as_jax()
@pytest.mark.parametrize(("name", "implementation"), FUSED)
def test_transforms(name, implementation):
    e, _ = _example(name)
    loss, operation = loss_of(name, implementation), OPERATION[name]
    found = ran({which: apply(loss) for which, apply in SIX.items()}, e.params, e.xs)
    for which, wanted in _plain(name).items():
        came, names = found[which]
        assert cases.error(came, wanted) < 1e-11, which
        assert f"{operation}_backward" in names, f"{which}: the fused path did not run"
        # Reverse mode runs nothing of the reference's derivative.
        assert f"{operation}_tangent" not in names, which


@functools.cache
def _plain(name):
    """What they give of the reference."""
    e, _ = _example(name)
    loss = loss_of(name, REFERENCE)
    found = ran({which: apply(loss) for which, apply in SIX.items()}, e.params, e.xs)
    assert not any(n.startswith(OPERATION[name]) for _, names in found.values() for n in names)
    return {which: out for which, (out, _) in found.items()}


@functools.cache
def _example(name):
    with jax.enable_x64(True):
        e = cases.example(CELLS[name], SHAPE)
        return e, cases.cotangents(jaxrnn.unroll(e.cell, e.params, e.xs, e.state))


@pytest.mark.parametrize("name", OPERATION)
def test_vmap_over_data_is_one_batch(name):
    """Rows mapped over data run as one batch: no level of ``maps``, the same program."""
    e = cases.example(CELLS[name], cases.Shape(3, (), 2, 6))
    rows = over(lambda x: jaxrnn.unroll(e.cell, e.params, x)[1], (0,))
    program = jax.make_jaxpr(rows)(e.xs)
    found = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == OPERATION[name]]
    assert len(found) == 1 and found[0].params["maps"] == ()
    if OPERATION[name] == "recur":  # whose kernels can take rows as they lie
        assert found[0].params["problem"].batch_first
