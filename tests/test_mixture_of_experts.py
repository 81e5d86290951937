"""A mixture of experts: blocks of many rows, and what one input must not do to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families.experts import mixture

import jaxrnn

CELL = jaxrnn.mixture_of_experts(4, experts=4, width=5, shared=3)
PARAMS = jax.jit(jax.vmap(lambda key: CELL.init(key, 3)))(jax.random.split(jax.random.key(0), 2))
XS = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")


def test_many_rows_and_weights_of_an_ensemble():
    """Blocks of several rows, some of them not full, with NumPy's numbers; a NaN stays alone."""
    given = np.where(np.arange(40)[:, None] == 7, np.nan, XS)
    ys = jax.jit(jax.vmap(lambda p, x: jaxrnn.unroll(CELL, p, x)[1], (0, None)))(PARAMS, given)
    for member, came in enumerate(np.asarray(ys)):
        params = {name: np.asarray(a[member], "float64") for name, a in PARAMS.items()}
        wanted = np.stack([mixture(2, True)(params, (), x)[1] for x in XS.astype("float64")])
        assert np.isnan(came[7]).all()
        assert np.abs(np.delete(came - wanted, 7, 0)).max() < 1e-5


def test_arrays_of_numpy():
    params = {name: np.asarray(a[0]) for name, a in PARAMS.items()}
    both = params, jax.tree.map(jnp.asarray, params)
    came, want = (jaxrnn.unroll(CELL, p, XS)[1] for p in both)
    assert np.array_equal(came, want)


def test_the_work_is_that_of_the_chosen_experts():
    """Multiply-adds of the program, for few rows and for many: no more than half are in vain."""
    cell = jaxrnn.mixture_of_experts(4, experts=32, width=5)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    for rows in (1, 10, 64, 1000):
        xs = jax.ShapeDtypeStruct((rows, 3), jnp.float32)
        jaxpr = jax.make_jaxpr(lambda p, x: jaxrnn.unroll(cell, p, x)[1])(params, xs)
        assert 2 * rows <= places(jaxpr.jaxpr) <= 3 * rows


def places(jaxpr):
    """Rows of the last product of the blocks, [B, C, O]."""
    found = 0
    for eqn in jaxpr.eqns:
        inner = [getattr(v, "jaxpr", v) for v in eqn.params.values()]
        found = max([found, *(places(j) for j in inner if hasattr(j, "eqns"))])
        shape = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "dot_general" and len(shape) == 3:
            found = max(found, shape[0] * shape[1])
    return found


def test_more_than_there_are():
    with pytest.raises(ValueError, match="top_k: got 3, want 2 or less"):
        jaxrnn.mixture_of_experts(4, experts=2, top_k=3)
