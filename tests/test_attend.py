"""Attention over more than one block of keys, against the textbook in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTEND, error

from jaxrnn._src.ops.attention import attend, blockwise

pytestmark = pytest.mark.usefixtures("x64")
STEPS, HEADS, WIDTH = 2 * blockwise._BLOCK + 40, 2, 4
WINDOWS = (None, 3, blockwise._BLOCK - 56, blockwise._BLOCK + 44)  # within a block, and over two


def given():
    """q, k, v and the cotangent [T, N, D]; position and episode of each step, [T]."""
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(4, STEPS, HEADS, WIDTH))
    episode = np.cumsum(np.isin(np.arange(STEPS), (7, blockwise._BLOCK + 30)))
    first = np.array([np.argmax(episode == e) for e in episode])
    episode[rng.random(STEPS) < 0.1] = -1  # a key that nobody sees, and a query of no key
    return arrays, (np.arange(STEPS) - first, episode)


def textbook(q, k, v, d_y, seen):
    """Outputs, and the gradients of q, k and v."""
    out, root = tuple(map(np.zeros_like, (q, q, k, v))), np.sqrt(q.shape[-1])
    for n in range(q.shape[1]):
        q_, k_, v_, d = q[:, n], k[:, n], v[:, n], d_y[:, n]
        weights = np.where(seen, np.exp(q_ @ k_.T / root), 0)
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
        d_weights = d @ v_.T
        along = (weights * d_weights).sum(-1, keepdims=True)
        d_scores = weights * (d_weights - along) / root
        found = weights @ v_, d_scores @ k_, d_scores.T @ q_, weights.T @ d
        for whole, part in zip(out, found):
            whole[:, n] = part
    return out


@pytest.mark.parametrize("plain", (True, False), ids=("plain", "placed"))
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("implementation", ATTEND)
def test_several_blocks(window, plain, implementation):
    """With places of one's own, all blocks are looked at; without, those that a window reaches."""
    (q, k, v, d_y), (position, episode) = given()
    if plain:
        position, episode = np.arange(STEPS), np.zeros(STEPS, int)
    back = position[:, None] - position[None, :]
    seen = (back >= 0) & (back < (window or STEPS)) & (episode[:, None] == episode[None, :])
    seen &= episode[None, :] >= 0
    places = () if plain else ((position, np.where(episode < 0, -2, episode)), (position, episode))
    places = jax.tree.map(lambda a: jnp.asarray(a, jnp.int32), places)

    @jax.jit
    def run(*arrays):
        *moving, d_y = arrays
        out, pull = jax.vjp(
            lambda q, k, v: attend(q, k, v, *places, window=window, implementation=implementation),
            *moving,
        )
        return out, *pull(d_y)

    assert error(run(q, k, v, d_y), textbook(q, k, v, d_y, seen)) < 1e-12
