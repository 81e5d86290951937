"""Real-time recurrent learning: exact influences, where no unit's state sees another's.

M = D M' + I      D: of the state by the one before, a unit at a time; I: by the parameters
"""

from jax import lax

from jaxrnn._src.wrappers.online_gradients import influence as local


def initial(cell, params, batch_shape):
    return local.zeros(local.structure(cell, params), params, batch_shape)


def step(cell, params, state, influence, x, key):
    """A step of a row or more: ``(state, influence, y)``, and y knows the past."""
    del key  # the cell does not draw
    found = local.structure(cell, params, x.shape[-1])
    if found.mixed:
        raise ValueError(
            f"online: rule='rtrl' wants a cell in which a unit's state sees no other unit's, got"
            f" {cell}, whose units see others'"
        )
    state = lax.stop_gradient(state)
    fixed = lax.stop_gradient(params)
    after = lambda params, state, x: cell.step(params, state, x)[0]
    past = local.jacobian(found, lambda state: after(fixed, state, x), state)
    now = local.immediate(found, after, fixed, state, x)
    kept = local.carried(found, past, influence)
    new, y = cell.step(params, local.influenced(found, params, state, influence), x)
    return new, tuple(a + b for a, b in zip(kept, now)), y
