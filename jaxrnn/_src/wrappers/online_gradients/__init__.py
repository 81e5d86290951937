"""Gradients forward in time: a step has the gradient so far, and the past is not kept."""

import dataclasses
from typing import Literal

from jax import lax

from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.cell import cell as from_step
from jaxrnn._src.wrappers.online_gradients import exact, local, rank_one

# How an influence begins, and a step.
RULES = {
    "rtrl": (exact.initial, exact.step),
    "snap1": (local.initial, local.snap1),
    "eprop": (local.initial, local.eprop),
    "uoro": (rank_one.initial, rank_one.step),
}


@constructor
def online(cell: Cell, rule: Literal["rtrl", "snap1", "eprop", "uoro"] = "rtrl") -> Cell:
    """A cell whose gradients go forward in time: each step's is whole, and needs no past.

    The state carries, beside that of ``cell``, the influence of the parameters on it. So the
    gradient of a loss of one step's output, by the parameters, has in it what they did at all
    steps before. Nothing is kept of these steps: memory does not grow with time, and parameters
    may change after each step. Summed over the steps, gradients are those of back-propagation
    through time, exactly or about:

    | ``rule`` | gradients | cells | numbers kept for each row |
    | --- | --- | --- | --- |
    | ``"rtrl"`` | exact | whose units do not see each other | parameters x states of a unit |
    | ``"snap1"`` | without what goes from unit to unit | of ``jaxrnn.gated`` | the same |
    | ``"eprop"`` | without what goes through recurrent weights | of ``jaxrnn.gated`` | the same |
    | ``"uoro"`` | exact in expectation, noisy | any | parameters + states |

    - ``"rtrl"``: real-time recurrent learning (Williams & Zipser 1989), which for such cells costs
      no more than a step does (Zucchet et al. 2023, arXiv:2305.15947): ``lru``, ``s5``,
      ``rg_lru``, ``min_gru``, ``indrnn``, ``sru``, ``qrnn`` and others, found by their steps.
    - ``"snap1"``: the sparse n-step approximation with n = 1 (Menick et al. 2020,
      arXiv:2006.07232).
    - ``"eprop"``: eligibility propagation with the loss's own derivative as the learning signal
      (Bellec et al. 2020, doi:10.1038/s41467-020-17236-y).
    - ``"uoro"``: unbiased online recurrent optimization (Tallec & Ollivier 2017,
      arXiv:1702.05043). It draws signs, and wants a ``key`` where a gradient is taken; an
      evaluation without one gives the same outputs, and forgets the estimate.

    The inputs' gradients, and those of a cell below in a ``stack`` of such cells, are of the same
    step alone. The state that is returned has no gradient: what follows knows the past by the
    influence. After the parameters have changed, the influence is still that of the old ones at
    the steps before; with small changes this matters little.

    ``step`` is what it is for. ``unroll`` gives the sum over its steps, and then keeps all their
    influences: let it see few steps at a time, or use ``cell`` itself.

    Args:
      cell: a cell that draws no random numbers, with an initial state of its own.
      rule: "rtrl", "snap1", "eprop" or "uoro".

    Returns:
      A ``Cell`` with the parameters and outputs of ``cell`` and the state ``(state, influence)``.

    Raises:
      ValueError: an unknown rule, or a cell that draws random numbers; in ``initial_state`` and
        ``step``, a cell that the rule can't take, and why.

    >>> cell = jaxrnn.online(jaxrnn.lru(4))
    >>> params = cell.init(jax.random.key(0), 4)
    >>> def loss(params, state, x, target):
    ...     state, y = cell.step(params, state, x)
    ...     return ((y - target) ** 2).sum(), state
    >>> state = cell.initial_state(params, ())
    >>> for x in jax.random.normal(jax.random.key(1), (5, 4)):
    ...     gradient, state = jax.grad(loss, has_aux=True)(params, state, x, jnp.ones(4))
    ...     params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    """
    check_cell("online", cell)
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, want one of {tuple(RULES)}")
    if cell.draws:
        want = "a cell that draws no random numbers, which its gradients would not see"
        raise ValueError(f"online: got {cell}, want {want}")
    if cell.gated is not None and cell.gated.form.inputs:
        want = "a cell whose input is an array"
        raise ValueError(f"online: got {cell}, want {want}")
    begin, advance = RULES[rule]

    def initial_state(params, batch_shape):
        state = cell.initial_state(params, batch_shape)
        return state, begin(cell, params, batch_shape)

    def step(params, state, x, key):
        state, influence = lax.stop_gradient(state)
        state, influence, y = advance(cell, params, state, influence, x, key)
        return lax.stop_gradient((state, influence)), y

    made = from_step(cell.init, initial_state, step)
    return dataclasses.replace(made, draws=rule == "uoro")
