"""Influences of a weight on its own unit alone, of cells whose units see each other.

    M = D M' + I      D: of a unit's state by that unit's state before; I: by the unit's weights

SnAp-1 takes into D what a unit sees of itself through the recurrent product, and keeps no number
of M that is not in I. E-prop takes into D only what a unit keeps within itself.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.wrappers.online_gradients import influence as local


def initial(cell, params, batch_shape):
    return local.zeros(_structure(cell, params, None), params, batch_shape)


def snap1(cell, params, state, influence, x, key):
    """A step: ``(state, influence, y)``."""
    del key

    def around(found, factors, fixed):
        """``factors``, and those through the recurrent product."""
        through = _through_product(cell, fixed, state, x)
        return [[row[0] + through[k], *row[1:]] for k, row in enumerate(factors)]

    return _step(cell, params, state, influence, x, around, sparse=True)


def eprop(cell, params, state, influence, x, key):
    """A step: ``(state, influence, y)``."""
    del key
    return _step(cell, params, state, influence, x, lambda found, factors, fixed: factors)


def _structure(cell, params, features):
    if cell.gated is None:
        raise ValueError(
            f"online: rules 'snap1' and 'eprop' want a cell made by jaxrnn.gated, got {cell};"
            " 'uoro' takes any, 'rtrl' any whose units do not see each other"
        )
    return local.structure(cell, params, features)


def _step(cell, params, state, influence, x, around, *, sparse=False):
    found = _structure(cell, params, x.shape[-1])
    fixed, state = lax.stop_gradient((params, state))
    update = cell.gated.update
    gates, recurrent, unit = cell.gated.gates(fixed, state, x)
    within = local.jacobian(found, lambda state: update(state, gates, recurrent, **unit), state)
    now = local.immediate(found, lambda *given: cell.step(*given)[0], fixed, state, x)
    kept = local.carried(found, around(found, within, fixed), influence)
    if sparse:
        kept = tuple(_only(pattern, m) for pattern, m in zip(zip(*found.reached), kept))
    influence = tuple(a + b for a, b in zip(kept, now))
    influence = lax.stop_gradient(influence)
    new, _ = cell.step(fixed, state, x)
    new = local.influenced(found, params, new, influence)
    return new, influence, new[0].astype(x.dtype)


def _through_product(cell, params, state, x):
    """The derivative of each state by its unit's output before, [..., H], through the product."""
    form, (gates, recurrent, unit) = cell.gated.form, cell.gated.gates(params, state, x)
    if not form.recurrent:
        return tuple(map(jnp.zeros_like, state))
    r = form.filled(params["r"])
    own = jnp.einsum("hgh->gh" if r.ndim == 3 else "ndgd->gnd", r).reshape(len(form.gates), -1)
    moved = tuple(jnp.broadcast_to(a.astype(x.dtype), x.shape) for a, x in zip(own, recurrent))
    run = lambda recurrent: cell.gated.update(state, gates, recurrent, **unit)
    return jax.jvp(run, (recurrent,), (moved,))[1]


def _only(pattern, m):
    """The numbers of an influence, [..., parts, *shape], that a step alone could have made."""
    shape = jnp.broadcast_shapes(*(p.shape for p in pattern))
    kept = jnp.stack([jnp.broadcast_to(p, shape) for p in pattern])
    kept = kept.reshape((1,) * (m.ndim - kept.ndim) + kept.shape)
    return jnp.where(jnp.broadcast_to(kept, m.shape), m, 0)
