"""Whether a cell sees its device's stretch of the steps alone.

``jaxrnn.unroll`` says so for all that a cell does, in a context that is part of the keys of JAX's
caches. An operation that knows how to go on from one stretch to the next asks for the axis. Any
other that goes through time, or looks at another step, refuses.
"""

import jax

_axis = jax.make_user_context(None)


def divided(axis):
    """A context in which time is divided over a mesh axis; None: it is whole."""
    return _axis(axis)


def axis():
    """The name of the mesh axis that time is divided over, or None."""
    return _axis.value


def refuse():
    """Time is whole.

    Raises:
      ValueError: it is divided.
    """
    if _axis.value is not None:
        raise ValueError(
            f"time_axis: got {_axis.value!r}, want None: a step of the cell is not linear in its"
            " state, or not known to be. Linear recurrences, matrix memories, attention,"
            " convolutions and layers that see one step at a time can be divided; of other cells,"
            " divide the batch"
        )
