"""65,536 steps and one more, in float32: finite, and as near to float64 as a short run is."""

import cases
import jax
import jax.numpy as jnp
import pytest

import jaxrnn

CELLS = {
    "lstm": lambda: jaxrnn.lstm(6, forget_bias=0.0),
    "gru": lambda: jaxrnn.gru(6),
    "lru": lambda: jaxrnn.lru(6, state=6),
    "rg_lru": lambda: jaxrnn.rg_lru(6),
    "min_gru": lambda: jaxrnn.min_gru(6),
    "mlstm": lambda: jaxrnn.mlstm(6, heads=2),
    "attention": lambda: jaxrnn.attention(6, heads=1, window=4),
}


@pytest.mark.parametrize("steps", (65_536, 65_537))
@pytest.mark.parametrize("name", CELLS)
def test_a_long_sequence(x64, name, steps):
    e = cases.example(cases.Case(lambda _: CELLS[name]()), cases.Shape(3, (2,), 6, 6))
    xs = jax.random.normal(jax.random.key(0), (steps, 2, 6))
    narrow = jax.tree.map(lambda p: p.astype(jnp.float32), e.params)
    wide = jax.tree.map(lambda p: p.astype(jnp.float64), narrow)
    run = jax.jit(lambda params, xs: jaxrnn.unroll(e.cell, params, xs))
    came = run(narrow, xs.astype(jnp.float32))
    wanted = run(wide, xs.astype(jnp.float32).astype(jnp.float64))
    assert cases.error(came, wanted) < 1e-5
